"""Images from prompts.

Image i has a seed of its own, so that it does not depend on how many are made at once.
"""

import torch
from PIL import Image, ImageDraw, ImageFont

from gralora_diffusion.sdxl.base import resolution_of
from gralora_diffusion.sdxl.flow import FLOW, flow_scheduler, for_pipeline, is_flow
from gralora_diffusion.sdxl.placement import (
    DECODING,
    DENOISING,
    TOKENS,
    bring,
    how_many_fit,
    pixels,
    set_tiles,
)
from gralora_diffusion.sdxl.single_file import SDXL_SCHEDULER

EMBEDS = (  # what SDXL's encode_prompt() returns
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


def sample(
    pipeline,
    prompts: list[str],
    seed: int = 0,
    num_images: int = 1,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    batch_size: int = 8,
    resolution: int | None = None,
    scheduler=None,
    device=None,
) -> list[Image.Image]:
    """num_images images for each prompt; image n of a prompt starts from the noise of seed + n.

    scheduler: by default the pipeline's own; a copy of it is used, so that its state does not change.
    device: as generate() takes it.
    """
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(num_images)]
    how = dict(scheduler=scheduler, device=device)
    return generate(pipeline, wanted, num_inference_steps, guidance_scale, batch_size, resolution, **how)


@torch.no_grad()
def generate(
    pipeline,
    wanted: list[tuple[str, int]],
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    batch_size: int = 8,
    resolution: int | tuple[int, int] | None = None,
    embeds: dict | None = None,
    scheduler=None,
    device: torch.device | None = None,
) -> list[Image.Image]:
    """An image for each (prompt, seed).  resolution: a side, or (height, width).

    embeds: of embed_prompts(), for a pipeline whose text encoders are freed. device: where to compute, by
    default where the UNet is. Each model is moved there when it is needed; where memory is short, idle
    models are moved to the CPU, and fewer images are made at once.
    """
    device = device or pipeline.unet.device
    size = sides(resolution or resolution_of(pipeline))
    batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    embedded = embed_batches(pipeline, batches, guidance_scale, embeds, device)
    per_image = pixels(size) * DENOISING * (2 if guidance_scale > 1 else 1)
    bring(pipeline, ("unet",), device, min(batch_size, len(wanted)) * per_image)
    at_once = how_many_fit(device, per_image)
    denoiser = without_other_models(pipeline, scheduler or pipeline.scheduler)
    latents = []
    for batch, prompts in zip(batches, embedded, strict=True):
        for first in range(0, len(batch), at_once):
            part = slice(first, first + at_once)
            latents += denoiser(
                **{name: tensor[part].to(device) for name, tensor in prompts.items()},
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                height=size[0],
                width=size[1],
                generator=[torch.Generator().manual_seed(seed) for _, seed in batch[part]],
                output_type="latent",
            ).images
    return decode(pipeline, latents, size, device)


def sides(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width)"""
    return resolution if isinstance(resolution, tuple) else (resolution, resolution)


def embed_batches(
    pipeline, batches: list, guidance_scale: float, embeds: dict | None, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """What the pipeline takes in the place of each batch's prompts."""
    found = []
    if embeds is None:
        bring(pipeline, ("text_encoder", "text_encoder_2"), device, TOKENS)
    for batch in batches:
        prompts = [prompt for prompt, _ in batch]
        if embeds is None:
            guided = guidance_scale > 1
            found.append(embedded(pipeline, prompts, device, guided))
            continue
        of_prompts = [embeds[prompt] for prompt in prompts]
        found.append({name: torch.cat([e[name] for e in of_prompts]) for name in of_prompts[0]})
    return found


def embedded(pipeline, prompts: list[str], device, guided: bool = True) -> dict[str, torch.Tensor]:
    """{argument of the pipeline: its value} for these prompts; guided: guidance's negative included."""
    parts = pipeline.encode_prompt(prompt=prompts, device=device, do_classifier_free_guidance=guided)
    return {name: part for name, part in zip(EMBEDS, parts, strict=True) if part is not None}


def without_other_models(pipeline, scheduler):
    """A pipeline that denoises: it has a fresh copy of the scheduler, and computes where the UNet is."""
    others = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    fresh = for_pipeline(scheduler)
    denoiser = type(pipeline)(**others, unet=pipeline.unet, scheduler=fresh, add_watermarker=False)
    denoiser.vae_scale_factor = pipeline.vae_scale_factor
    denoiser.set_progress_bar_config(disable=True)
    return denoiser


def decode(pipeline, latents: list[torch.Tensor], size: tuple[int, int], device) -> list[Image.Image]:
    """One by one, in fp32: SDXL's VAE overflows in fp16."""
    vae = pipeline.vae
    fits = bring(pipeline, ("vae",), device, pixels(size) * DECODING)
    set_tiles(vae, not fits)
    images = []
    for latent in latents:
        scaled = latent[None].to(vae.dtype) / vae.config.scaling_factor
        images += pipeline.image_processor.postprocess(vae.decode(scaled).sample, output_type="pil")
    return images


def as_trained(
    scheduler,
    prediction_type: str | None = None,
    rescale_betas_zero_snr: bool = False,
    flow_shift: float | None = None,
):
    """The scheduler for what was trained with this objective: the base's own, or a changed copy.

    With zero terminal SNR sampling begins at the last timestep (arXiv 2305.08891, section 3.3).
    """
    from diffusers import EulerDiscreteScheduler

    if prediction_type == FLOW:
        return flow_scheduler(scheduler, flow_shift)
    if prediction_type and is_flow(scheduler.config):
        scheduler = EulerDiscreteScheduler.from_config(SDXL_SCHEDULER)
    changes = {}
    if prediction_type not in (None, scheduler.config.prediction_type):
        changes["prediction_type"] = prediction_type
    if rescale_betas_zero_snr and not scheduler.config.get("rescale_betas_zero_snr"):
        changes |= dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    elif changes and not rescale_betas_zero_snr and scheduler.config.get("rescale_betas_zero_snr"):
        changes["rescale_betas_zero_snr"] = False
    kind = type(scheduler) if set(changes) <= set(scheduler.config) else EulerDiscreteScheduler
    return kind.from_config(scheduler.config, **changes) if changes else scheduler


@torch.no_grad()
def embed_prompts(pipeline, prompts: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """{prompt: what the pipeline takes in its place, guidance's negative included}, on the CPU."""
    found = {}
    for prompt in dict.fromkeys(prompts):
        parts = embedded(pipeline, [prompt], pipeline.text_encoder.device)
        found[prompt] = {name: part.cpu() for name, part in parts.items()}
    return found


def sheet(
    rows: dict[str, list[Image.Image]],
    columns: list[str],
    size: int = 192,
    above: dict[str, list[Image.Image]] | None = None,
) -> Image.Image:
    """One image of all: a labeled row for each entry, and a caption above each column.

    above: rows that are placed over the captions.
    """
    left, heading, font, pitch = 110, 34, ImageFont.load_default(13), size + 6
    rows, first = (above or {}) | rows, pitch * len(above or {})
    page = Image.new(
        "RGB", (left + max(map(len, rows.values())) * pitch, heading + len(rows) * pitch), "white"
    )
    draw = ImageDraw.Draw(page)
    for c, text in enumerate(columns):
        draw.multiline_text(
            (left + c * pitch, first + 2), wrap(text, size, font), fill="black", font=font, spacing=1
        )
    for r, (label, images) in enumerate(rows.items()):
        top = r * pitch + (heading if r * pitch >= first else 0)
        draw.multiline_text((4, top + size // 2 - 8), wrap(label, left - 8, font), fill="black", font=font)
        for c, image in enumerate(images):
            scaled = image.convert("RGB").resize(
                (size, size), Image.Resampling.LANCZOS if min(image.size) > size else Image.Resampling.NEAREST
            )
            page.paste(scaled, (left + c * pitch, top))
    return page


def wrap(text: str, width: int, font) -> str:
    """`text` broken at spaces into at most two lines of `width` pixels; longer text ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > 2:
        lines = [lines[0], lines[1] + " ..."]
    return "\n".join(lines)
