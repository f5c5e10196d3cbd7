"""The training loss: random noise and timesteps, what the UNet must predict, and the weight of its error."""

import torch

from gralora_diffusion.sdxl.flow import FLOW, FLOW_STEPS, is_flow
from gralora_diffusion.sdxl.libraries import import_libraries
from gralora_diffusion.sdxl.single_file import SDXL_SCHEDULER
from gralora_diffusion.seeding import generator


def draw_noise(
    shape, num_train_timesteps: int, seed: int, positions, noise_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noise of the VAE's posterior [n, *shape], noise to add [n, *shape], timesteps [n]) of n positions.

    Timesteps are uniform. Each position has its own generator, so that batch size and processes change
    nothing. noise_offset: adds N(0, noise_offset^2) to the noise, one value per image and channel.
    """
    random = [generator(seed, 4, position) for position in positions]
    normal = torch.stack([torch.randn(2, *shape, generator=r) for r in random])
    timesteps = torch.cat([torch.randint(0, num_train_timesteps, (1,), generator=r) for r in random])
    posterior, noise = normal.unbind(1)
    if noise_offset:
        offsets = torch.stack([torch.randn(shape[0], 1, 1, generator=r) for r in random])
        noise = noise + noise_offset * offsets
    return posterior, noise, timesteps


def noise_schedule(
    scheduler, zero_terminal_snr: bool = False, prediction_type: str = "epsilon"
) -> torch.Tensor | None:
    """abar [timesteps] of the base's scheduler, fp32; with zero terminal SNR if asked for, or as in the base.

    None for a flow, which has no such schedule.

    Zero terminal SNR (arXiv 2305.08891, algorithm 1): sqrt(abar) is shifted to end in 0 and scaled to start
    as before.
    """
    if prediction_type == FLOW:
        return None
    if is_flow(scheduler.config):  # a base that is trained for another prediction
        import_libraries()
        from diffusers import EulerDiscreteScheduler

        scheduler = EulerDiscreteScheduler.from_config(SDXL_SCHEDULER)
    if not (zero_terminal_snr or scheduler.config.get("rescale_betas_zero_snr")):
        return scheduler.alphas_cumprod.float()
    # From the betas, since Euler's scheduler has 2^-24 instead of 0 in alphas_cumprod.
    root = (1 - scheduler.betas.double()).cumprod(0).sqrt()
    return (((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2).float()


def add_noise(latents, noise, timesteps, alphas_cumprod) -> torch.Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (arXiv 2006.11239, eq. 4).

    alphas_cumprod None, of a flow: x_t = (1 - s) x_0 + s noise at s = t / 1000 (arXiv 2209.03003).
    """
    if alphas_cumprod is None:
        s = timesteps.view(-1, 1, 1, 1) / FLOW_STEPS
        return (1 - s) * latents + s * noise
    a = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents, noise, timesteps, alphas_cumprod, prediction_type: str) -> torch.Tensor:
    """What the UNet predicts: noise (epsilon), v (arXiv 2202.00512), x_0 (sample), or noise - x_0 (flow)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == FLOW:
        return noise - latents
    a = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def snr_weights(
    timesteps, alphas_cumprod, prediction_type: str, gamma: float | None = None, debiased: bool = False
) -> torch.Tensor:
    """Loss weights [n] from SNR = abar / (1 - abar), finite at SNR 0 too; with both options, their product.

    gamma: min-SNR (arXiv 2303.09556), min(1, gamma / SNR) on the error of the noise. debiased: debiased
    estimation (arXiv 2310.08442), 1 / sqrt(SNR) on it, with SNR clamped to [0.001, 1000]. The error of v is
    (SNR + 1) / SNR times that of the noise, and the error of x_0 is 1 / SNR times; their weights are smaller
    by these factors.
    """
    snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
    weights = torch.ones_like(snr)
    if gamma is not None:
        weights = weights * (gamma / snr).clamp(max=1)
    if debiased:
        weights = weights * snr.clamp(1e-3, 1e3).rsqrt()
    return weights * {"epsilon": 1, "v_prediction": snr / (snr + 1), "sample": snr}[prediction_type]


def huber_thresholds(timesteps, alphas_cumprod, huber_c: float, schedule: str) -> torch.Tensor:
    """c [n] of the pseudo-Huber loss (arXiv 2403.16728).

    huber_c with much noise; near 1 with little, unless the schedule is constant. alphas_cumprod None: of a
    flow, whose SNR is ((1 - s) / s)^2.
    """
    if alphas_cumprod is None:
        s = timesteps / FLOW_STEPS
        by_schedule = dict(constant=huber_c + 0 * s, exponential=huber_c**s)
        return by_schedule.get(schedule, (1 - huber_c) * (1 - s) ** 2 + huber_c)
    a = alphas_cumprod[timesteps]
    if schedule == "constant":
        return torch.full_like(a, huber_c)
    if schedule == "exponential":
        return huber_c ** (timesteps.to(a.dtype) / len(alphas_cumprod))
    return (1 - huber_c) / (1 + ((1 - a) / a).sqrt()) ** 2 + huber_c


def area_weights(masks: torch.Tensor, background: float) -> torch.Tensor:
    """Weights [n, h, w] of an image's area, with mean 1, from masks [n, h, w] in [0, 1].

    w = background + (1 - background) mask, divided by its mean, so that the loss of an image is
    sum(w e) / sum(w) over its area: that of a small subject is as large as that of one that fills the image.
    """
    weights = background + (1 - background) * masks
    return weights / weights.mean((1, 2), keepdim=True)


def diffusion_loss(
    prediction: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str = "epsilon",
    snr_gamma: float | None = None,
    debiased_estimation: bool = False,
    loss_type: str = "l2",
    huber_c: float = 0.1,
    huber_schedule: str = "snr",
    weights: torch.Tensor | None = None,
    area: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean over the images, in fp32, of each one's error times its own weights: a scalar.

    loss_type: l2 is e^2; huber is 2c (sqrt(e^2 + c^2) - c), near e^2 below c; smooth_l1 is huber / c, near
    2|e| above c. weights [n]: further weights, such as prior_loss_weight of the class images. area [n, h, w]:
    area_weights(), which the error e of every channel is multiplied with; where it is 0, so is the gradient.
    """
    error = prediction.float() - target(latents, noise, timesteps, alphas_cumprod, prediction_type)
    if loss_type == "l2":
        error = error.square()
    else:
        c = huber_thresholds(timesteps, alphas_cumprod, huber_c, huber_schedule).view(-1, 1, 1, 1)
        error = 2 * ((error.square() + c.square()).sqrt() - c) * (c if loss_type == "huber" else 1)
    if area is not None:
        error = error * area.unsqueeze(1)
    error = error.mean((1, 2, 3))
    if snr_gamma is not None or debiased_estimation:
        error = error * snr_weights(
            timesteps, alphas_cumprod, prediction_type, snr_gamma, debiased_estimation
        )
    return (error if weights is None else error * weights).mean()
