"""The training objective: what is drawn at random, what the UNet must predict, and how its error is weighed."""

import torch
import torch.nn.functional as F


def generator(*key: int) -> torch.Generator:
    """A CPU generator for this key, for instance (seed, step, rank): randomness that depends on nothing that ran before."""
    state = 0
    for part in key:  # SplitMix64's finaliser, so that near keys give far seeds
        state = (state + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator().manual_seed(state & (2**63 - 1))


def draw(shape, num_train_timesteps: int, seed: int, positions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is random for the pictures at these positions of the training series: (noise for the VAE's posterior [n, *shape],
    noise to be added [n, *shape], timesteps [n], uniform).  Each picture has its own generator: batch size and processes change nothing.
    """
    random = [generator(seed, 4, position) for position in positions]
    normal = torch.stack([torch.randn(2, *shape, generator=r) for r in random])
    timesteps = torch.cat([torch.randint(0, num_train_timesteps, (1,), generator=r) for r in random])
    return normal[:, 0], normal[:, 1], timesteps


def add_noise(latents, noise, timesteps, alphas_cumprod) -> torch.Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (arXiv 2006.11239, eq. 4)."""
    a = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents, noise, timesteps, alphas_cumprod, prediction_type: str) -> torch.Tensor:
    """What the UNet is to predict: noise (epsilon), v (arXiv 2202.00512), or x_0 (sample)."""
    a = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * latents, "sample": latents}[prediction_type]


def snr_weights(timesteps, alphas_cumprod, prediction_type: str, gamma: float) -> torch.Tensor:
    """min-SNR weights (arXiv 2303.09556): min(SNR, gamma) for x_0, divided by SNR for epsilon and by SNR + 1 for v: [n]."""
    snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
    return snr.clamp(max=gamma) / {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[prediction_type]


def diffusion_loss(prediction, latents, noise, timesteps, alphas_cumprod, prediction_type="epsilon", snr_gamma=None) -> torch.Tensor:
    """Mean squared error in fp32, each picture weighed by its own min-SNR weight: a scalar."""
    wanted = target(latents, noise, timesteps, alphas_cumprod, prediction_type)
    error = F.mse_loss(prediction.float(), wanted, reduction="none").mean((1, 2, 3))
    if snr_gamma is not None:
        error = error * snr_weights(timesteps, alphas_cumprod, prediction_type, snr_gamma)
    return error.mean()
