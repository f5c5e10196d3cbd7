"""The loss on held-out images, on the same noise and timesteps at each evaluation."""

import contextlib

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import BatchPlan, variation_of
from gralora_diffusion.data.captions import forms_of
from gralora_diffusion.data.encode import CachedImage
from gralora_diffusion.sdxl.base import Prompts, predict
from gralora_diffusion.sdxl.flow import FLOW_STEPS
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.compiled import uncompiled
from gralora_diffusion.training.loss import add_noise, area_weights, noise_schedule, target

TIMES = 8  # noised copies of each image, at one timestep of each eighth of the schedule
VALIDATION = 26  # in a generator's key: it draws their noise and timesteps


def draw_stratified(shape, schedule_length: int | None, seed: int, key: int) -> tuple[torch.Tensor, ...]:
    """(noise of the VAE's posterior [1, *shape], noise to add, timesteps [TIMES]) of one image.

    Timestep i is uniform within the i-th of TIMES equal parts of the schedule, whose length is None for a
    flow. noise is [TIMES, *shape].
    """
    random = generator(seed, VALIDATION, key)
    posterior = torch.randn(1, *shape, generator=random)
    noise = torch.randn(TIMES, *shape, generator=random)
    places = (torch.arange(TIMES) + torch.rand(TIMES, generator=random)) / TIMES
    if schedule_length is None:
        return posterior, noise, places * FLOW_STEPS
    timesteps = (places * schedule_length).long().clamp(max=schedule_length - 1)
    return posterior, noise, timesteps


class ValidationLoss:
    """The mean squared error of the UNet's prediction on held-out images, without any weight by timestep.

    It is that of the run's prediction type, so that runs of one type can be compared whatever --loss_type,
    --snr_gamma and the like say. With --masked_loss the area of an image is weighted as in training. Crop,
    caption, noise and timesteps of an image follow from its content and the seed.
    """

    def __init__(
        self, models: dict, scheduler, plan: BatchPlan, encode, config: TrainConfig, accelerator, dtype
    ):
        self.models, self.plan, self.encode = models, plan, encode
        self.config, self.accelerator, self.dtype = config, accelerator, dtype
        self.schedule = noise_schedule(scheduler, config.rescale_betas_zero_snr, config.prediction_type)
        self.batches: list[list[tuple[CachedImage, int]]] = []  # of (image, number of its noised copy)
        for bucket in plan.instance:
            images = {cached.image.path: cached for cached in bucket}.values()
            rows = [(cached, number) for cached in images for number in range(TIMES)]
            size = config.train_batch_size
            self.batches += [rows[start : start + size] for start in range(0, len(rows), size)]

    @torch.no_grad()
    def measure(self) -> float:
        """The mean over all images and timesteps; each process computes its share, and all get the same."""
        processes = self.accelerator.num_processes
        errors = torch.zeros(sum(map(len, self.batches)), device=self.accelerator.device)
        starts = [0]
        for batch in self.batches:
            starts.append(starts[-1] + len(batch))
        turns = -(-len(self.batches) // processes)  # of every process, since a sharded UNet needs all of them
        training = [model for model in self.models.values() if model.training]
        with uncompiled() if self.config.compile else contextlib.nullcontext():
            try:
                for model in training:
                    model.eval()
                for turn in range(turns):
                    number = turn * processes + self.accelerator.process_index
                    found = self.errors_of(self.batches[min(number, len(self.batches) - 1)])
                    if number < len(self.batches):
                        errors[starts[number] : starts[number + 1]] = found
            finally:
                for model in training:
                    model.train()
        if processes > 1:
            errors = self.accelerator.reduce(errors, "sum")
        return errors.cpu().double().mean().item()

    def errors_of(self, batch: list[tuple[CachedImage, int]]) -> torch.Tensor:
        """The mean squared error of each row, [n], over its area as --masked_loss weighs it."""
        config, device, schedule = self.config, self.accelerator.device, self.schedule
        length = None if schedule is None else len(schedule)
        latents, noises, times, sizes, captions, masks = [], [], [], [], [], []
        for cached, number in batch:
            key = int(cached.image.digest[:12], 16)
            (mean, std), time_ids = cached.crop_at(self.plan.cache, config.seed, key)
            posterior, noise, timesteps = draw_stratified(mean.shape, length, config.seed, key)
            latents.append(mean + std * posterior[0])
            noises.append(noise[number])
            times.append(timesteps[number])
            sizes.append(time_ids)
            mask = cached.mask_at(self.plan.cache, config.seed, key)
            masks.append(torch.ones(mean.shape[1:]) if mask is None else mask)
            how = variation_of(cached.image, config), config.weighted_captions
            captions.append(forms_of(cached.image.caption, *how)[0])
        clean, noise, timesteps = torch.stack(latents), torch.stack(noises), torch.stack(times)
        noisy = add_noise(clean, noise, timesteps, schedule)
        wanted = target(clean, noise, timesteps, schedule, config.prediction_type)
        embeds, pooled = self.encode(captions)
        prompts = Prompts(embeds.to(device, self.dtype), pooled.to(device, self.dtype))
        inputs = noisy.to(device, self.dtype), timesteps.to(device), prompts, torch.stack(sizes).to(device)
        predicted = predict(self.models["unet"], *inputs)
        errors = (predicted.float() - wanted.to(device)).square()
        if config.masked_loss:
            area = area_weights(torch.stack(masks), config.mask_background_weight)
            errors = errors * area.unsqueeze(1).to(device)
        return errors.mean((1, 2, 3))
