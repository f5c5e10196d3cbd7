"""Which timesteps and which noise a run draws, where options change them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.sdxl.flow import FLOW, FLOW_STEPS
from gralora_diffusion.seeding import generator

WITHIN, LEVELS = 27, 28  # in a generator's key: a place within a timestep, and levels of noise
TENTHS = 10


def shapes_timesteps(config: TrainConfig) -> bool:
    """Whether timesteps are others than the uniform whole numbers of a diffusion model."""
    of_all = config.min_timestep == 0 and config.max_timestep == FLOW_STEPS
    return config.prediction_type == FLOW or config.timestep_density != "uniform" or not of_all


def shaped(draw: Callable, config: TrainConfig) -> Callable:
    """`draw`, see loss.draw_noise(), with the timesteps and the noise of the options; itself without any."""
    has_levels = config.multires_noise_iterations > 0
    has_shape = shapes_timesteps(config)
    if not (has_levels or has_shape):
        return draw

    def drawn(shape, num_train_timesteps: int, seed: int, positions, *options):
        posterior, noise, timesteps = draw(shape, num_train_timesteps, seed, positions, *options)
        if has_levels:
            levels = config.multires_noise_iterations, config.multires_noise_discount
            parts = zip(noise, positions, strict=True)
            noise = torch.stack([multires(one, generator(seed, LEVELS, p), *levels) for one, p in parts])
        if has_shape:
            within = [
                torch.rand(1, dtype=torch.double, generator=generator(seed, WITHIN, p)) for p in positions
            ]
            places = (timesteps + torch.cat(within)) / num_train_timesteps
            timesteps = timesteps_at(places, num_train_timesteps, config)
        return posterior, noise, timesteps

    return drawn


def timesteps_at(places: torch.Tensor, num_train_timesteps: int, config: TrainConfig) -> torch.Tensor:
    """The timesteps at these quantiles [n] in (0, 1) of the run's density; of flow numbers, else whole ones.

    logit_normal: sigmoid(mean + std z), z of N(0, 1) (arXiv 2403.03206, eq. 19). Flow's are shifted then:
    s -> shift s / (1 + (shift - 1) s) (eq. 23). The result fills [min_timestep, max_timestep).
    """
    if config.timestep_density == "logit_normal":
        normal = torch.special.ndtri(places)
        places = torch.sigmoid(config.logit_mean + config.logit_std * normal)
    if config.prediction_type == FLOW:
        shift = config.flow_shift or 1.0
        places = shift * places / (1 + (shift - 1) * places)
    low, high = config.min_timestep / FLOW_STEPS, config.max_timestep / FLOW_STEPS
    timesteps = (low + (high - low) * places) * num_train_timesteps
    if config.prediction_type == FLOW:
        return timesteps.float()
    return timesteps.long().clamp(max=num_train_timesteps - 1)


def multires(noise: torch.Tensor, random: torch.Generator, iterations: int, discount: float) -> torch.Tensor:
    """Multi-resolution noise [c, h, w] of standard deviation 1: (noise + sum_i discount^i up(N_i)) / std.

    N_i is white noise of h / r_i^i x w / r_i^i, i = 0 .. iterations - 1, r_i uniform in [2, 4], enlarged
    bilinearly; the sum ends after a level of one pixel. (J. Whitaker, "Multi-resolution noise for diffusion
    model training", 2023; as in kohya's scripts, but normalized image by image.)
    """
    channels, height, width = noise.shape
    for level in range(iterations):
        ratio = (2 + 2 * torch.rand(1, generator=random).item()) ** level
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn(1, channels, *size, generator=random)
        enlarged = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]
        noise = noise + discount**level * enlarged
        if size == (1, 1):
            break
    return noise / noise.std()


def shares_of_tenths(config: TrainConfig) -> list[float]:
    """The share of each tenth of the timesteps, from little noise to much."""
    places = (torch.arange(10_000, dtype=torch.double) + 0.5) / 10_000
    tenths = (timesteps_at(places, FLOW_STEPS, config) * TENTHS / FLOW_STEPS).long().clamp(max=TENTHS - 1)
    return (torch.bincount(tenths, minlength=TENTHS) / len(places)).tolist()
