"""Small images of latents while they are denoised, decoded by the base's own VAE."""

import math

import torch
from PIL import Image

from gralora_diffusion.sdxl.flow import is_flow

SIDE = 24  # cells of the latents that are decoded: larger ones are averaged first


class LatentPreviews:
    """What an image would be if its noise were removed at once, for `watch` of sampling.generate().

    With Euler steps, of a flow too, x = x_0 + s e at noise level s, and a step from s to t moves x by
    (t - s) e: from the latents before and after it, x_0 = x_t - t (x_t - x_s) / (t - s). With other
    schedulers the latents are decoded as they are, and the first previews are noisy.
    """

    def __init__(self):
        self.before = None  # the latents before the last step

    def clean(self, denoiser, step: int, latents: torch.Tensor) -> torch.Tensor:
        """Latents [n, c, h, w] without noise, as they are estimated after this step, counted from 0."""
        before, self.before = self.before, latents
        scheduler = denoiser.scheduler
        if not is_euler(scheduler) or before is None or before.shape != latents.shape:
            return latents
        now, later = scheduler.sigmas[step : step + 2].tolist()
        return latents if now == later else latents - later * (latents - before) / (later - now)


def is_euler(scheduler) -> bool:
    return is_flow(scheduler.config) or type(scheduler).__name__ == "EulerDiscreteScheduler"


@torch.no_grad()
def small_image(vae, latents: torch.Tensor, size: tuple[int, int]) -> Image.Image | None:
    """Latents [c, h, w] as an image of this (width, height); None where numbers are not finite.

    They are decoded where the VAE is, averaged to SIDE cells at most: the preview is blurred, and costs
    (SIDE / cells)^2 of the image's own decoding.
    """
    factor = math.ceil(max(latents.shape[1:]) / SIDE)
    parameter = next(vae.parameters())
    small = latents[None].to(parameter.device, torch.float32)
    if factor > 1:
        small = torch.nn.functional.avg_pool2d(small, factor, ceil_mode=True)
    decoded = vae.decode(small.to(parameter.dtype) / vae.config.scaling_factor).sample[0].float().cpu()
    if not decoded.isfinite().all():
        return None
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BILINEAR)
