"""The loss of one batch: examples, noise, the UNet's prediction, and its weighted error."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import BatchPlan, examples_at
from gralora_diffusion.sdxl.base import Prompts, predict
from gralora_diffusion.sdxl.flow import FLOW_STEPS
from gralora_diffusion.training.loss import (
    add_noise,
    area_weights,
    diffusion_loss,
    draw_noise,
    noise_schedule,
)
from gralora_diffusion.training.prefetch import PINNED, Packed, Prefetcher
from gralora_diffusion.training.prior_prediction import PriorPrediction
from gralora_diffusion.training.timesteps import shaped

LOSS_OPTIONS = (
    "prediction_type", "snr_gamma", "debiased_estimation", "loss_type", "huber_c", "huber_schedule",
)  # fmt: skip


class Inputs(NamedTuple):
    """The tensors of a batch of n images, with class images 2n."""

    noisy: torch.Tensor  # [n, c, h, w], in the dtype that the UNet computes in
    timesteps: torch.Tensor  # [n]
    sizes: torch.Tensor  # [n, 6] of time_ids()
    latents: torch.Tensor  # [n, c, h, w]
    noise: torch.Tensor
    weights: torch.Tensor  # [n], of the loss
    embeds: torch.Tensor | None = None  # of the captions, as in Prompts, unless the text encoders train
    pooled: torch.Tensor | None = None
    area: torch.Tensor | None = None  # [n, h, w], with masked_loss: area_weights()


def objective(
    unet,
    scheduler,
    batch_plan: BatchPlan,
    encode: Callable,
    config: TrainConfig,
    accelerator,
    dtype: torch.dtype,
    draw: Callable = draw_noise,
    autocast: bool = False,
    models: dict | None = None,
) -> Callable[[int], torch.Tensor]:
    """loss_of(index): the loss of batch number `index` of the plan, counted over all processes.

    encode(captions) gives their Prompts; draw is loss.draw_noise() or a variant of it. The UNet computes in
    `dtype`, the statistics of its norms and softmax in fp32; noise schedule, latents, time ids and the loss
    are fp32. autocast: for layers with fp32 parameters of their own, which would compute in fp32 without it.
    models: {component: adapted model}, where text encoders are adapted too. On a GPU a thread prepares the
    inputs of the next batch meanwhile.
    """
    schedule = noise_schedule(scheduler, config.rescale_betas_zero_snr, config.prediction_type)
    draw = shaped(draw, config)
    device = accelerator.device
    alphas = None if schedule is None else schedule.to(device)
    length = FLOW_STEPS if schedule is None else len(schedule)
    options = {name: getattr(config, name) for name in LOSS_OPTIONS}

    def inputs_of(index: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """(the Inputs of a batch on the CPU, its captions)"""
        positions = range(index * config.train_batch_size, (index + 1) * config.train_batch_size)
        batch = examples_at(batch_plan, positions)  # with prior preservation, twice as many as positions
        shape = batch[0].moments.shape[1:]
        keys = [example.position for example in batch]
        posterior, noise, timesteps = draw(shape, length, config.seed, keys, config.noise_offset)
        mean, std = torch.stack([example.moments for example in batch]).unbind(1)
        latents = mean + std * posterior
        noisy = add_noise(latents, noise, timesteps, schedule).to(dtype)
        sizes = torch.stack([example.time_ids for example in batch])
        # The loss is the mean over the instance images plus the weighted mean over the class images.
        weights = torch.tensor([example.weight for example in batch]) * len(batch) / len(positions)
        captions = [example.caption for example in batch]
        tensors = dict(
            noisy=noisy, timesteps=timesteps, sizes=sizes, latents=latents, noise=noise, weights=weights
        )
        if not config.train_text_encoder:
            tensors["embeds"], tensors["pooled"] = (part.to(dtype) for part in encode(captions))
        if config.masked_loss:
            whole = torch.ones(shape[1:])
            masks = [whole if example.mask is None else example.mask for example in batch]
            tensors["area"] = area_weights(torch.stack(masks), config.mask_background_weight)
        return tensors, captions

    def packed_inputs_of(index: int) -> tuple[tuple[str, ...], Packed, list[str]]:
        tensors, captions = inputs_of(index)
        return tuple(tensors), Packed(list(tensors.values())), captions

    prefetcher = Prefetcher(packed_inputs_of, accelerator.num_processes)

    def on_device(index: int) -> tuple[Inputs, list[str]]:
        if device.type in PINNED:
            names, packed, captions = prefetcher.get(index)
            return Inputs(**dict(zip(names, packed.to(device), strict=True))), captions
        tensors, captions = inputs_of(index)
        return Inputs(**{name: tensor.to(device) for name, tensor in tensors.items()}), captions

    prior = None
    if config.prior_by_prediction:
        prior = PriorPrediction(models or dict(unet=unet), encode, config, device, dtype)

    def loss_of(index: int) -> torch.Tensor:
        inputs, captions = on_device(index)
        given = inputs.noisy, inputs.timesteps, inputs.sizes
        embeds, pooled = encode(captions) if config.train_text_encoder else (inputs.embeds, inputs.pooled)
        prompts = Prompts(embeds.to(device, dtype), pooled.to(device, dtype))
        with torch.autocast(device.type, dtype, enabled=autocast and dtype != torch.float32):
            if prior:
                of_base = prior.of_base(*given)
                predicted, of_class = prior.with_class(*given, prompts)
            else:
                predicted = predict(unet, inputs.noisy, inputs.timesteps, prompts, inputs.sizes)
        of_batch = inputs.latents, inputs.noise, inputs.timesteps
        weights = dict(weights=inputs.weights, area=inputs.area)
        loss = diffusion_loss(predicted, *of_batch, alphas, **options, **weights)
        return loss + prior.loss(of_class, of_base) if prior else loss

    return loss_of
