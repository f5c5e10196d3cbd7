"""Images from prompts.

Image i has a seed of its own, so that it does not depend on how many are made at once.
"""

import torch
from PIL import Image, ImageDraw, ImageFont

from gralora_diffusion.sdxl.base import resolution_of


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
) -> list[Image.Image]:
    """num_images images for each prompt; image n of a prompt starts from the noise of seed + n.

    scheduler: by default the pipeline's own; a copy of it is used, so that its state does not change.
    """
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(num_images)]
    return generate(
        pipeline, wanted, num_inference_steps, guidance_scale, batch_size, resolution, scheduler=scheduler
    )


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
) -> list[Image.Image]:
    """An image for each (prompt, seed).  resolution: a side, or (height, width).

    embeds: of embed_prompts(), for a pipeline whose text encoders are freed.
    """
    resolution, device = resolution or resolution_of(pipeline), pipeline.unet.device
    height, width = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    own, scheduler = pipeline.scheduler, scheduler or pipeline.scheduler
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)
    images = []
    try:
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            prompts = [prompt for prompt, _ in part]
            given = dict(prompt=prompts)
            if embeds is not None:
                given = {}
                for name in embeds[prompts[0]]:
                    given[name] = torch.cat([embeds[prompt][name] for prompt in prompts]).to(device)
            latents = pipeline(
                **given,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                generator=[torch.Generator().manual_seed(seed) for _, seed in part],
                output_type="latent",
            ).images
            # one by one, in fp32: SDXL's VAE overflows in fp16, and it takes more memory than the UNet
            for latent in latents:
                scaled = latent[None].to(pipeline.vae.dtype) / pipeline.vae.config.scaling_factor
                pixels = pipeline.vae.decode(scaled).sample
                images += pipeline.image_processor.postprocess(pixels, output_type="pil")
    finally:
        pipeline.scheduler = own
    return images


def as_trained(scheduler, prediction_type: str | None = None, rescale_betas_zero_snr: bool = False):
    """The scheduler for what was trained with this objective: the base's own, or a changed copy.

    With zero terminal SNR sampling begins at the last timestep (arXiv 2305.08891, section 3.3).
    """
    from diffusers import EulerDiscreteScheduler

    changes = {}
    if prediction_type not in (None, scheduler.config.prediction_type):
        changes["prediction_type"] = prediction_type
    if rescale_betas_zero_snr and not scheduler.config.get("rescale_betas_zero_snr"):
        changes |= dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    kind = type(scheduler) if set(changes) <= set(scheduler.config) else EulerDiscreteScheduler
    return kind.from_config(scheduler.config, **changes) if changes else scheduler


@torch.no_grad()
def embed_prompts(pipeline, prompts: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """{prompt: what the pipeline takes in its place, guidance's negative included}, on the CPU."""
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    found = {}
    for prompt in dict.fromkeys(prompts):
        parts = pipeline.encode_prompt(
            prompt=[prompt], device=pipeline.text_encoder.device, do_classifier_free_guidance=True
        )
        found[prompt] = {name: part.cpu() for name, part in zip(names, parts, strict=True)}
    return found


def sheet(
    rows: dict[str, list[Image.Image]],
    columns: list[str],
    size: int = 192,
    above: dict[str, list[Image.Image]] | None = None,
) -> Image.Image:
    """One image of all: a labelled row for each entry, and a caption above each column.

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
