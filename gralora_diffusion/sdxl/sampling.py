"""Images from prompts.

Image i has a seed of its own, so that it does not depend on how many are made at once.
"""

from collections.abc import Callable

import torch
from PIL import Image

from gralora_diffusion.options import TrainingError
from gralora_diffusion.sdxl.base import resolution_of
from gralora_diffusion.sdxl.flow import FLOW, flow_scheduler, for_pipeline, is_flow
from gralora_diffusion.sdxl.image_text import texts_of
from gralora_diffusion.sdxl.libraries import import_libraries
from gralora_diffusion.sdxl.placement import (
    DECODING,
    DENOISING,
    bring,
    how_many_fit,
    pixels,
    set_tiles,
)
from gralora_diffusion.sdxl.prompt_chunks import PENULTIMATE
from gralora_diffusion.sdxl.prompt_embeds import batches_of, embed_batches
from gralora_diffusion.sdxl.sampling_settings import Origin, SamplingSettings
from gralora_diffusion.sdxl.schedulers import scheduler_named
from gralora_diffusion.sdxl.single_file import SDXL_SCHEDULER


def sample(
    pipeline,
    prompts: list[str],
    seed: int = 0,
    num_images: int = 1,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    batch_size: int = 8,
    resolution: int | tuple[int, int] | None = None,
    scheduler=None,
    device=None,
    negative_prompt: str = "",
    clip_skip: int = PENULTIMATE,
    weighted_prompts: bool = True,
) -> list[Image.Image]:
    """num_images images for each prompt; image n of a prompt starts from the noise of seed + n.

    resolution: a side, or (height, width). scheduler: a name of SCHEDULERS or an object, by default the
    pipeline's own; a copy of it is used, so that its state does not change. device: as generate() takes it.
    """
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(num_images)]
    named = scheduler if isinstance(scheduler, str) else None
    size = None if resolution is None else sides(resolution)
    how = num_inference_steps, guidance_scale, size, negative_prompt, named, clip_skip, weighted_prompts
    settings = SamplingSettings(*how)
    given = None if named else scheduler
    return generate(pipeline, wanted, settings, batch_size, scheduler=given, device=device)


@torch.no_grad()
def generate(
    pipeline,
    wanted: list[tuple[str, int]],
    settings: SamplingSettings,
    batch_size: int = 8,
    embeds: dict | None = None,
    scheduler=None,
    device: torch.device | None = None,
    origin: Origin | None = None,
    progress: Callable[[float], object] | None = None,
    problems: dict[int, str] | None = None,
    watch: Callable | None = None,
) -> list[Image.Image]:
    """An image for each (prompt, seed).

    embeds: of embed_prompts(), for a pipeline whose text encoders are freed. scheduler: of as_trained(), by
    default the pipeline's; settings.scheduler names another for the same objective. device: where to compute,
    by default where the UNet is. Each model is moved there when it is needed; where memory is short, idle
    models are moved to the CPU, and fewer images are made at once. origin: what the texts in the images name;
    by default they get none. progress: called with images' worth of work. problems: filled with {number:
    sentence} where numbers are not finite, and the image is None; by default TrainingError is raised.
    watch: called after each step with (the denoising pipeline, step from 0, latents [n, c, h/8, w/8]).
    """
    device = device or pipeline.unet.device
    size = settings.size or sides(resolution_of(pipeline))
    scheduler = scheduler or pipeline.scheduler
    if settings.scheduler is not None:
        scheduler = scheduler_named(settings.scheduler, scheduler)
    batches = batches_of(pipeline, wanted, settings, embeds, batch_size)
    embedded = embed_batches(pipeline, batches, settings, embeds, device)
    per_image = pixels(size) * DENOISING * (2 if settings.guidance_scale > 1 else 1)
    bring(pipeline, ("unet",), device, min(batch_size, len(wanted)) * per_image)
    at_once = how_many_fit(device, per_image)
    denoiser = without_other_models(pipeline, scheduler)
    latents, rows = [], []
    for batch, prompts in zip(batches, embedded, strict=True):
        for first in range(0, len(batch), at_once):
            part = slice(first, first + at_once)
            inputs = {name: tensor[part] for name, tensor in prompts.items()}
            seeds = [seed for _, seed in batch[part]]
            on_step = reporter(progress, len(seeds), watch)
            latents += denoise(denoiser, inputs, seeds, settings, size, device, on_step)
            rows += [{name: tensor[n : n + 1] for name, tensor in inputs.items()} for n in range(len(seeds))]
    images = decode(pipeline, latents, size, device)
    for number, (image, (prompt, seed)) in enumerate(zip(images, wanted, strict=True)):
        if image is None:
            again = denoiser, rows[number], [seed], settings, size, device
            problem = f"image {number + 1} (seed {seed}): {what_overflowed(latents[number], *again)}"
            if problems is None:
                raise TrainingError(problem)
            problems[number] = problem
        elif origin is not None:
            image.info |= texts_of(prompt, seed, settings, image.size, scheduler, origin)
    return images


def denoise(
    denoiser,
    prompts: dict[str, torch.Tensor],
    seeds: list[int],
    settings: SamplingSettings,
    size: tuple[int, int],
    device,
    on_step: Callable | None = None,
) -> torch.Tensor:
    """The latents [n, c, h/8, w/8] of prompts of embedded() with these seeds."""
    return denoiser(
        **{name: tensor.to(device) for name, tensor in prompts.items()},
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        height=size[0],
        width=size[1],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
        callback_on_step_end=on_step,
    ).images


def reporter(
    progress: Callable[[float], object] | None, images: int, watch: Callable | None = None
) -> Callable | None:
    """A callback of the pipeline that reports each step of so many images."""
    if progress is None and watch is None:
        return None

    def on_step(denoiser, step, _timestep, tensors) -> dict:
        if progress is not None:
            progress(images / denoiser.num_timesteps)
        if watch is not None:
            watch(denoiser, step, tensors["latents"])
        return {}

    return on_step


def what_overflowed(latent: torch.Tensor, denoiser, prompts: dict, *how) -> str:
    """The model, and the step, whose numbers are not finite, and what to do; the image is denoised again."""
    unusable = "gave numbers that are not finite"
    if latent.isfinite().all():
        ways = "use another, such as --pretrained_vae_model_name_or_path madebyollin/sdxl-vae-fp16-fix"
        return f"the VAE {unusable}: {ways}"
    half = denoiser.unet.dtype == torch.float16
    ways = (
        "use --mixed_precision bf16 or no instead of fp16" if half else "check the base's and adapter's files"
    )
    if not all(tensor.isfinite().all() for tensor in prompts.values()):
        return f"the text encoders {unusable}: {ways}"
    bad = []

    def on_step(_denoiser, step, _timestep, tensors) -> dict:
        if not bad and not tensors["latents"].isfinite().all():
            bad.append(step + 1)
        return {}

    denoise(denoiser, prompts, *how, on_step)
    where = f" in step {bad[0]} of {denoiser.num_timesteps}" if bad else ""
    return f"the UNet {unusable}{where}: {ways}, or lower the adapter's strength"


def sides(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width)"""
    return tuple(resolution) if isinstance(resolution, tuple | list) else (resolution, resolution)


def without_other_models(pipeline, scheduler):
    """A pipeline that denoises: it has a fresh copy of the scheduler, and computes where the UNet is."""
    others = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    fresh = for_pipeline(scheduler)
    denoiser = type(pipeline)(**others, unet=pipeline.unet, scheduler=fresh, add_watermarker=False)
    denoiser.vae_scale_factor = pipeline.vae_scale_factor
    denoiser.set_progress_bar_config(disable=True)
    return denoiser


def decode(pipeline, latents: list[torch.Tensor], size: tuple[int, int], device) -> list[Image.Image | None]:
    """One by one, in fp32: SDXL's VAE overflows in fp16.  None where the result is not finite."""
    vae = pipeline.vae
    fits = bring(pipeline, ("vae",), device, pixels(size) * DECODING)
    set_tiles(vae, not fits)
    images = []
    for latent in latents:
        scaled = latent[None].to(vae.dtype) / vae.config.scaling_factor
        decoded = vae.decode(scaled).sample.cpu()
        finite = decoded.isfinite().all()
        images += pipeline.image_processor.postprocess(decoded, output_type="pil") if finite else [None]
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
    import_libraries()
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
