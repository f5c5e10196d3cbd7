"""The training objective: what is drawn at random, what the UNet must predict, and how its error is weighed."""

import torch

from gralora_diffusion.seeding import generator


def draw(
    shape, num_train_timesteps: int, seed: int, positions, noise_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is random for the images at these positions of the training series: (noise for the VAE's posterior [n, *shape],
    noise to be added [n, *shape], timesteps [n], uniform).  Each image has its own generator: batch size and processes change nothing.

    noise_offset: strength of a part of the added noise that is the same at all places of a channel, N(0, noise_offset^2).
    """
    random = [generator(seed, 4, position) for position in positions]
    normal = torch.stack([torch.randn(2, *shape, generator=r) for r in random])
    timesteps = torch.cat([torch.randint(0, num_train_timesteps, (1,), generator=r) for r in random])
    posterior, noise = normal.unbind(1)
    if noise_offset:
        noise = noise + noise_offset * torch.stack([torch.randn(shape[0], 1, 1, generator=r) for r in random])
    return posterior, noise, timesteps


def noise_schedule(scheduler, zero_terminal_snr: bool = False) -> torch.Tensor:
    """abar [timesteps] in fp32, of the base's scheduler; scaled to end in zero if asked for, or if the base was trained so.

    Zero terminal SNR (arXiv 2305.08891, algorithm 1): sqrt(abar) is shifted to end in 0 and stretched to begin where it did.
    """
    if not (zero_terminal_snr or scheduler.config.get("rescale_betas_zero_snr")):
        return scheduler.alphas_cumprod.float()
    root = (
        (1 - scheduler.betas.double()).cumprod(0).sqrt()
    )  # from the betas: Euler's scheduler puts 2^-24 for 0 into alphas_cumprod
    return (((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2).float()


def add_noise(latents, noise, timesteps, alphas_cumprod) -> torch.Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (arXiv 2006.11239, eq. 4)."""
    a = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents, noise, timesteps, alphas_cumprod, prediction_type: str) -> torch.Tensor:
    """What the UNet is to predict: noise (epsilon), v (arXiv 2202.00512), or x_0 (sample)."""
    a = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * latents, "sample": latents}[
        prediction_type
    ]


def snr_weights(
    timesteps, alphas_cumprod, prediction_type: str, gamma: float | None = None, debiased: bool = False
) -> torch.Tensor:
    """Loss weights [n] from SNR = abar / (1 - abar), finite at SNR 0 too; both together multiply.

    gamma: min-SNR (arXiv 2303.09556), min(1, gamma / SNR) on the error of the noise.
    debiased: debiased estimation (arXiv 2310.08442), 1 / sqrt(SNR) on the error of the noise, SNR taken within [0.001, 1000].
    The error of v is (SNR + 1) / SNR times that of the noise, and the error of x_0 1 / SNR times: their weights are so much smaller.
    """
    snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
    weights = torch.ones_like(snr)
    if gamma is not None:
        weights = weights * (gamma / snr).clamp(max=1)
    if debiased:
        weights = weights * snr.clamp(1e-3, 1e3).rsqrt()
    return weights * {"epsilon": 1, "v_prediction": snr / (snr + 1), "sample": snr}[prediction_type]


def huber_thresholds(timesteps, alphas_cumprod, huber_c: float, schedule: str) -> torch.Tensor:
    """c [n] of the pseudo-Huber loss (arXiv 2403.16728): with much noise huber_c; with little, near 1, unless the schedule is constant."""
    a = alphas_cumprod[timesteps]
    if schedule == "constant":
        return torch.full_like(a, huber_c)
    if schedule == "exponential":
        return huber_c ** (timesteps.to(a.dtype) / len(alphas_cumprod))
    return (1 - huber_c) / (1 + ((1 - a) / a).sqrt()) ** 2 + huber_c


def diffusion_loss(
    prediction, latents, noise, timesteps, alphas_cumprod, prediction_type: str = "epsilon", snr_gamma: float | None = None,
    debiased_estimation: bool = False, loss_type: str = "l2", huber_c: float = 0.1, huber_schedule: str = "snr",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The mean over the images, in fp32, of each one's error times its own weights: a scalar.

    loss_type: l2 is e^2; huber is 2c (sqrt(e^2 + c^2) - c), near e^2 below c; smooth_l1 is that over c, near 2|e| above c.
    weights [n]: one more weight for each image, for instance prior_loss_weight for the class images.
    """
    error = prediction.float() - target(latents, noise, timesteps, alphas_cumprod, prediction_type)
    if loss_type == "l2":
        error = error.square()
    else:
        c = huber_thresholds(timesteps, alphas_cumprod, huber_c, huber_schedule).view(-1, 1, 1, 1)
        error = 2 * ((error.square() + c.square()).sqrt() - c) * (c if loss_type == "huber" else 1)
    error = error.mean((1, 2, 3))
    if snr_gamma is not None or debiased_estimation:
        error = error * snr_weights(
            timesteps, alphas_cumprod, prediction_type, snr_gamma, debiased_estimation
        )
    return (error if weights is None else error * weights).mean()
