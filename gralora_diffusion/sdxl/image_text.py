"""Texts in the PNG files of generated images: how they were generated, for other tools and to repeat them.

`parameters` is in the format of AUTOMATIC1111's web UI, which ComfyUI and others read too: the prompt, the
negative prompt, a line of "Name: value" pairs. `gralora` is JSON with every setting.
"""

import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gralora_diffusion import __version__
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.sdxl.objective import objective_of_scheduler
from gralora_diffusion.sdxl.sampling_settings import Origin, SamplingSettings
from gralora_diffusion.sdxl.schedulers import title_of

PARAMETERS, OWN = "parameters", "gralora"
PROGRAM = f"gralora {__version__}"
SHORT = 12  # hexadecimal digits of A1111's hash of a LoRA


def texts_of(
    prompt: str, seed: int, settings: SamplingSettings, size: tuple[int, int], scheduler, origin: Origin
) -> dict[str, str]:
    """{name of the text: the text} of an image of size (width, height)."""
    return {
        PARAMETERS: parameters_text(prompt, seed, settings, size, scheduler, origin),
        OWN: json.dumps(own_settings(prompt, seed, settings, size, scheduler, origin), ensure_ascii=False),
    }


def parameters_text(
    prompt: str, seed: int, settings: SamplingSettings, size: tuple[int, int], scheduler, origin: Origin
) -> str:
    """The text of A1111; each adapter is a tag <lora:NAME:STRENGTH> after the prompt."""
    tags = [f"<lora:{plain(adapter.name)}:{adapter.strength:g}>" for adapter in origin.adapters]
    sampler, schedule = title_of(settings.scheduler, scheduler)
    hashes = []
    for adapter in origin.adapters:
        if adapter.tensor_hash:
            hashes.append(f"{plain(adapter.name)}: {adapter.tensor_hash[:SHORT]}")
    facts = {
        "Steps": settings.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Clip skip": settings.clip_skip,
        "Model": origin.model,
        "VAE": origin.vae,
        "Lora hashes": ", ".join(hashes) or None,
        "Version": PROGRAM,
    }
    pairs = [f"{name}: {quoted(value)}" for name, value in facts.items() if value is not None]
    lines = [
        " ".join([one_line(prompt), *tags]),
        f"Negative prompt: {one_line(settings.negative_prompt)}",
        ", ".join(pairs),
    ]
    return "\n".join(lines)


def own_settings(
    prompt: str, seed: int, settings: SamplingSettings, size: tuple[int, int], scheduler, origin: Origin
) -> dict:
    """Every setting, by the names of the options of `gralora sample`."""
    adapters = []
    for adapter in origin.adapters:
        adapters.append(dict(name=adapter.name, strength=adapter.strength, sha256=adapter.file_hash))
    return dict(
        program=PROGRAM,
        prompt=readable(prompt),
        negative_prompt=readable(settings.negative_prompt),
        seed=seed,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        size=f"{size[0]}x{size[1]}",
        scheduler=settings.scheduler,
        clip_skip=settings.clip_skip,
        weighted_prompts=settings.weighted_prompts,
        scheduler_class=type(scheduler).__name__,
        **objective_of_scheduler(scheduler.config),
        base=dict(name=origin.model, vae=origin.vae, revision=origin.revision, variant=origin.variant),
        adapters=adapters,
        step=origin.step,
    )


def quoted(value) -> str:
    """A value as A1111 writes it: in quotation marks, as JSON, where it holds what separates values."""
    text = one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"') else text


def plain(name: str) -> str:
    """A name that may stand in a tag and in a list."""
    return "".join("_" if c in '<>:,"' else c for c in one_line(name))


def one_line(text: str) -> str:
    return " ".join(readable(text).split())


def readable(text: str) -> str:
    """The text without halves of characters, which no file can hold, and without NUL."""
    return text.replace("\0", "").encode(errors="replace").decode()


def save_image(image: Image.Image, path: Path) -> None:
    """A PNG with the texts that generate() has put into the image, complete or absent."""
    with complete_or_absent(path) as part:
        image.save(part, format="PNG", pnginfo=info_of(image))


def info_of(image: Image.Image) -> PngInfo:
    found = PngInfo()
    for name in (PARAMETERS, OWN):
        if name in image.info:
            found.add_text(name, str(image.info[name]))
    return found
