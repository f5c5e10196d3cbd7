"""The loss of one batch: examples, noise, the UNet's prediction, and its weighted error."""

from collections.abc import Callable

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import BatchPlan, examples_at
from gralora_diffusion.sdxl.base import Prompts, predict
from gralora_diffusion.training.loss import add_noise, diffusion_loss, draw_noise, noise_schedule

LOSS_OPTIONS = (
    "prediction_type", "snr_gamma", "debiased_estimation", "loss_type", "huber_c", "huber_schedule",
)  # fmt: skip


def objective(
    unet,
    scheduler,
    batch_plan: BatchPlan,
    encode: Callable,
    config: TrainConfig,
    accelerator,
    dtype: torch.dtype,
    draw: Callable = draw_noise,
) -> Callable[[int], torch.Tensor]:
    """loss_of(index): the loss of batch number `index` of the plan, counted over all processes.

    encode(captions) gives their Prompts; draw is loss.draw_noise() or a variant of it. Noise schedule,
    latents and time ids stay fp32; the UNet gets them in `dtype` and computes under autocast.
    """
    alphas = noise_schedule(scheduler, config.rescale_betas_zero_snr)
    device = accelerator.device
    options = {name: getattr(config, name) for name in LOSS_OPTIONS}

    def loss_of(index: int) -> torch.Tensor:
        positions = range(index * config.train_batch_size, (index + 1) * config.train_batch_size)
        batch = examples_at(batch_plan, positions)  # with prior preservation, twice as many as positions
        shape = batch[0].moments.shape[1:]
        keys = [example.position for example in batch]
        posterior, noise, t = draw(shape, len(alphas), config.seed, keys, config.noise_offset)
        mean, std = torch.stack([example.moments for example in batch]).unbind(1)
        latents = mean + std * posterior
        noisy = add_noise(latents, noise, t, alphas).to(device, dtype)
        captions = [example.caption for example in batch]
        with accelerator.autocast():
            embeds, pooled = encode(captions)
            prompts = Prompts(embeds.to(device), pooled.to(device))
            sizes = torch.stack([example.time_ids for example in batch]).to(device)
            predicted = predict(unet, noisy, t.to(device), prompts, sizes)
        # The loss is the mean over the instance images plus the weighted mean over the class images.
        weights = torch.tensor([example.weight for example in batch]) * len(batch) / len(positions)
        on_device = [x.to(device) for x in (latents, noise, t, alphas)]
        return diffusion_loss(predicted, *on_device, **options, weights=weights.to(device))

    return loss_of
