"""An SDXL base as training, sampling and evaluation use it.

The only place that knows what its models take.
"""

import functools
from typing import NamedTuple

import torch

from gralora_diffusion.sdxl.load import load_sdxl, shapes


class Prompts(NamedTuple):
    """The embeddings of n prompts, as the UNet takes them."""

    embeds: torch.Tensor  # [n, tokens, width of both text encoders]
    pooled: torch.Tensor  # [n, width of the second text encoder]


class SDXL:
    """A base: prompts and images in, predictions out.

    Its models are the pipeline's, and may be freed one by one.
    """

    shapes = staticmethod(shapes)

    def __init__(self, pipeline):
        self.pipeline = pipeline

    @classmethod
    def load(cls, path: str | None = None, **how) -> "SDXL":
        """The base at this path: see load_sdxl() for the keywords and errors."""
        return cls(load_sdxl(path, **how))

    def encode_prompts(self, prompts: list[str]) -> Prompts:
        return encode_prompts(self.pipeline, prompts)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return encode_images(self.pipeline.vae, pixels)

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: Prompts, sizes: torch.Tensor
    ) -> torch.Tensor:
        return predict(self.pipeline.unet, noisy, timesteps, prompts, sizes)


def predict(
    unet, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: Prompts, sizes: torch.Tensor
) -> torch.Tensor:
    """noisy [n, c, h, w], timesteps [n], sizes [n, 6] of time_ids() -> the UNet's prediction [n, c, h, w]."""
    conditions = dict(text_embeds=prompts.pooled, time_ids=sizes)
    return unet(noisy, timesteps, prompts.embeds, added_cond_kwargs=conditions).sample


def blank_inputs(
    unet_config, n: int, side: int, tokens: int = 77, device=None
) -> tuple[torch.Tensor, torch.Tensor, Prompts, torch.Tensor]:
    """What predict() takes for n images of side x side latents, all of it zero."""
    pooled = unet_config.projection_class_embeddings_input_dim - 6 * unet_config.addition_time_embed_dim
    zeros = functools.partial(torch.zeros, device=device)
    prompts = Prompts(zeros(n, tokens, unet_config.cross_attention_dim), zeros(n, pooled))
    return zeros(n, unet_config.in_channels, side, side), zeros(n, dtype=torch.long), prompts, zeros(n, 6)


def hidden_states(text_encoders: list, tokens: torch.Tensor) -> torch.Tensor:
    """tokens [n, length] -> what the UNet attends to, [n, length, width of both text encoders]."""
    states = [encoder(tokens, output_hidden_states=True).hidden_states[-2] for encoder in text_encoders]
    return torch.cat(states, -1)


def resolution_of(pipeline) -> int:
    """The side, in pixels, of the images that the base was made for: 1024 for SDXL."""
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor


def encode_prompts(pipeline, prompts: list[str]) -> Prompts:
    """The embeddings of prompts; gradients flow if they are enabled.

    An empty prompt gives what the pipeline guides away from: zeros, where the base was trained with them as
    SDXL was.
    """
    embeds, _, pooled, _ = pipeline.encode_prompt(
        prompt=prompts, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
    )
    if not all(prompts) and pipeline.config.force_zeros_for_empty_prompt:
        words = torch.tensor([bool(prompt) for prompt in prompts], dtype=embeds.dtype, device=embeds.device)
        return Prompts(embeds * words[:, None, None], pooled * words[:, None])
    return Prompts(embeds, pooled)


def encode_images(vae, pixels: torch.Tensor) -> torch.Tensor:
    """pixels [n, 3, h, w] in [-1, 1] -> (mean, std) of the scaled latents, fp32 [n, 2, c, h/8, w/8]."""
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return torch.stack([posterior.mean, posterior.std], 1).float() * vae.config.scaling_factor


def time_ids(original_size, crop, target_size) -> torch.Tensor:
    """SDXL's size and crop conditioning (arXiv 2307.01952, section 2.2): six fp32 numbers.

    In pixels, as (height, width) or (top, left).
    """
    return torch.tensor([*original_size, *crop, *target_size], dtype=torch.float32)
