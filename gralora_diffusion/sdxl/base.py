"""An SDXL base as training, sampling and evaluation use it.

The only place that knows what its models take.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import load_sdxl, shapes
from gralora_diffusion.sdxl.prompt_chunks import (
    PENULTIMATE,
    Chunks,
    PromptRules,
    Reading,
    common_chunks,
    empty_chunk,
    read_prompt,
)

CAPTIONS = PromptRules()


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

    def encode_prompts(self, prompts: list[str], rules: PromptRules = CAPTIONS) -> Prompts:
        return encode_prompts(self.pipeline, prompts, rules)

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


def encode_prompts(pipeline, prompts: list[str], rules: PromptRules = CAPTIONS) -> Prompts:
    """The embeddings of prompts, as embed_readings() gives them.  Raises ConfigError, see read_prompt()."""
    readings = [read_prompt(pipeline, prompt, rules) for prompt in prompts]
    return embed_readings(pipeline, prompts, readings, rules.clip_skip)


def caption_encoder(pipeline, captions: list[str], rules: PromptRules) -> Callable[[list[str]], Prompts]:
    """A function from some of these captions to their Prompts, all of the same number of chunks."""
    chunks = common_chunks(read_prompt(pipeline, caption, rules).chunks for caption in captions)

    @functools.lru_cache(maxsize=1024)
    def reading(caption: str) -> Reading:
        return read_prompt(pipeline, caption, rules)

    def encode(wanted: list[str]) -> Prompts:
        read = [reading(caption) for caption in wanted]
        return embed_readings(pipeline, wanted, read, rules.clip_skip, chunks)

    return encode


def embed_readings(
    pipeline,
    prompts: list[str],
    readings: list[Reading],
    clip_skip: int = PENULTIMATE,
    chunks: int | None = None,
) -> Prompts:
    """The embeddings of prompts, read by read_prompt(); gradients flow if they are enabled.

    chunks: how many all get, a multiple of each prompt's own, which are repeated; by default the least that
    fits all. An empty prompt gives what the pipeline guides away from: zeros, where the base was trained with
    them as SDXL was.
    """
    chunks = chunks or common_chunks(reading.chunks for reading in readings)
    if clip_skip == PENULTIMATE and all(reading.plain for reading in readings):
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt=prompts, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        embeds = embeds.repeat(1, chunks, 1) if chunks > 1 else embeds
    else:
        embeds, pooled = embed_chunks(pipeline, readings, clip_skip, chunks)
    if not all(prompts) and pipeline.config.force_zeros_for_empty_prompt:
        words = torch.tensor([bool(prompt) for prompt in prompts], dtype=embeds.dtype, device=embeds.device)
        return Prompts(embeds * words[:, None, None], pooled * words[:, None])
    return Prompts(embeds, pooled)


def embed_chunks(
    pipeline, readings: list[Reading], clip_skip: int, chunks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(embeds [n, chunks * length, width], pooled [n, width]) of n prompts.

    A token's weight moves its embedding on the line from that of an empty prompt at the same place: empty +
    weight * (own - empty). What is pooled is that of the first chunk, without weights.
    """
    check_clip_skip(pipeline, clip_skip)
    encoders = pipeline.text_encoder, pipeline.text_encoder_2
    tokenizers = pipeline.tokenizer, pipeline.tokenizer_2
    starts = [0]
    for reading in readings:
        starts.append(starts[-1] + reading.chunks)
    of_encoders, pooled = [], None
    for which, encoder in enumerate(encoders):
        own = [reading.of_encoders[which] for reading in readings]
        states, pools = weighted_states(encoder, own, tokenizers[which], clip_skip)
        of_prompts = []
        for reading, start in zip(readings, starts, strict=False):
            flat = states[start : start + reading.chunks].flatten(0, 1)
            of_prompts.append(flat.repeat(chunks // reading.chunks, 1))
        of_encoders.append(torch.stack(of_prompts))
        pooled = pools if pools is not None else pooled
    dtype = pipeline.text_encoder_2.dtype
    return torch.cat(of_encoders, -1).to(dtype), pooled[starts[:-1]].to(dtype)


def check_clip_skip(pipeline, clip_skip: int) -> None:
    """Raises ConfigError where a text encoder has fewer layers."""
    layers = min(e.config.num_hidden_layers for e in (pipeline.text_encoder, pipeline.text_encoder_2))
    if not 1 <= clip_skip <= layers:
        problem = f"--clip_skip is {clip_skip}; it must be from 1 to {layers}, the layers of"
        raise ConfigError(f"{problem} this base's smaller text encoder", option="clip_skip")


def weighted_states(
    encoder, prompts: list[Chunks], tokenizer, clip_skip: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(states [chunks of all prompts, length, width], pooled [chunks, width] or None) of one text encoder."""
    tokens = [row for chunks in prompts for row in chunks.tokens]
    weights = torch.tensor([row for chunks in prompts for row in chunks.weights], device=encoder.device)
    has_weights = any(weight != 1 for chunks in prompts for row in chunks.weights for weight in row)
    if has_weights:
        tokens.append(empty_chunk(tokenizer))
    output = encoder(torch.tensor(tokens, device=encoder.device), output_hidden_states=True)
    states = output.hidden_states[-clip_skip]
    if has_weights:
        own, empty = states[:-1].float(), states[-1].float()
        moved = empty + weights[..., None] * (own - empty)
        states = torch.where(weights[..., None] == 1, own, moved).to(states.dtype)
    return states, output[0] if output[0].ndim == 2 else None


def encode_images(vae, pixels: torch.Tensor) -> torch.Tensor:
    """pixels [n, 3, h, w] in [-1, 1] -> (mean, std) of the scaled latents, fp32 [n, 2, c, h/8, w/8]."""
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return torch.stack([posterior.mean, posterior.std], 1).float() * vae.config.scaling_factor


def time_ids(original_size, crop, target_size) -> torch.Tensor:
    """SDXL's size and crop conditioning (arXiv 2307.01952, section 2.2): six fp32 numbers.

    In pixels, as (height, width) or (top, left).
    """
    return torch.tensor([*original_size, *crop, *target_size], dtype=torch.float32)
