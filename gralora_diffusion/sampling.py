"""Pictures from prompts.  Picture i has a seed of its own, so that it does not depend on how many are made at once."""

import torch
from PIL import Image, ImageDraw, ImageFont

from .sdxl import resolution_of


@torch.no_grad()
def sample(
    pipeline, prompts: list[str], seed: int = 0, num_images: int = 1, num_inference_steps: int = 25, guidance_scale: float = 5.0,
    batch_size: int = 8, resolution: int | None = None,
) -> list[Image.Image]:  # fmt: skip
    """num_images pictures for each prompt, prompt by prompt; picture n of a prompt starts from the noise of seed + n.

    The pipeline's own scheduler draws them, a copy of it, so that nothing is left behind.
    """
    resolution = resolution or resolution_of(pipeline)
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(num_images)]
    scheduler, pipeline.scheduler = pipeline.scheduler, type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    images = []
    try:
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            latents = pipeline(
                [prompt for prompt, _ in part], num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=resolution,
                width=resolution, generator=[torch.Generator().manual_seed(s) for _, s in part], output_type="latent",
            ).images  # fmt: skip
            for latent in latents:  # one by one, in fp32: SDXL's VAE overflows in fp16, and it takes more memory than the UNet
                pixels = pipeline.vae.decode(latent[None].to(pipeline.vae.dtype) / pipeline.vae.config.scaling_factor).sample
                images += pipeline.image_processor.postprocess(pixels, output_type="pil")
    finally:
        pipeline.scheduler = scheduler
    return images


def sheet(rows: dict[str, list[Image.Image]], columns: list[str], size: int = 192) -> Image.Image:
    """One picture of all: a labelled row for each entry, a caption above each column."""
    left, top, font = 110, 34, ImageFont.load_default(13)
    page = Image.new("RGB", (left + max(map(len, rows.values())) * (size + 6), top + len(rows) * (size + 6)), "white")
    draw = ImageDraw.Draw(page)
    for c, text in enumerate(columns):
        draw.multiline_text((left + c * (size + 6), 2), wrap(text, size, font), fill="black", font=font, spacing=1)
    for r, (label, images) in enumerate(rows.items()):
        draw.multiline_text((4, top + r * (size + 6) + size // 2 - 8), wrap(label, left - 8, font), fill="black", font=font)
        for c, image in enumerate(images):
            scaled = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS if min(image.size) > size else Image.Resampling.NEAREST)
            page.paste(scaled, (left + c * (size + 6), top + r * (size + 6)))
    return page


def wrap(text: str, width: int, font) -> str:
    """Break `text` at spaces into at most two lines of `width` pixels; what does not fit ends in an ellipsis."""
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
