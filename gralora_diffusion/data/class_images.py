"""Images of the class for prior preservation (DreamBooth, arXiv 2208.12242): those there are, and those the base draws."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.data.cache import Cache, key_of
from gralora_diffusion.data.image_folder import TrainingImage, find_images
from gralora_diffusion.data.images import bucket_of
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.sdxl.base import resolution_of
from gralora_diffusion.sdxl.load import load_sdxl
from gralora_diffusion.sdxl.sampling import draw
from gralora_diffusion.seeding import generator

DRAWN = re.compile(r"class-([0-9a-f]{12})-(\d{5})\.png")
PRECISIONS = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SEEDS = 24  # what a generator's key says it draws


def class_images(
    config: TrainConfig, images: list[TrainingImage], base: dict, accelerator, cache: Cache | None = None
) -> list[TrainingImage]:
    """num_class_images images of class_data_dir; the base, as load_sdxl(**base) gives it, draws those missing, each process its share.

    Image i has a seed of its own and is written complete or not at all, so that a broken run goes on where it was.
    Images that were drawn for another prompt, base or seed are left out.  Raises ConfigError if a file cannot be used.
    """
    if not config.with_prior_preservation:
        if config.class_data_dir or config.class_prompt:
            note("--class_data_dir and --class_prompt have no effect without --with_prior_preservation")
        return []
    folder, dtype = (
        Path(config.class_data_dir),
        PRECISIONS.get(config.prior_generation_precision, base["dtype"]),
    )
    if config.prior_generation_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("--prior_generation_precision fp16 needs a GPU: use fp32 or bf16 here")
    theirs, drawn, others = existing(config, cache, drawn_for(config, dtype))
    if others:
        note(f"{folder} holds {others} image(s) drawn for another prompt, base or seed, which are left out")
    accelerator.wait_for_everyone()  # all have seen the same folder
    missing = [i for i in range(config.num_class_images - len(theirs)) if i not in drawn]
    if missing:
        if accelerator.is_main_process:
            print(f"drawing {len(missing)} class images -> {folder}", flush=True)
        draw_missing(
            missing[accelerator.process_index :: accelerator.num_processes],
            config,
            images,
            base | dict(dtype=dtype),
            accelerator,
        )
        accelerator.wait_for_everyone()
        theirs, drawn, _ = existing(config, cache, drawn_for(config, dtype))
    found = (theirs + [drawn[i] for i in sorted(drawn)])[: config.num_class_images]
    if len(found) < config.num_class_images:
        raise ConfigError(
            f"class images that were just drawn are not in {folder}: --class_data_dir must name a folder that all processes share"
        )
    return found


def drawn_for(config: TrainConfig, dtype: torch.dtype) -> str:
    """What tells the images that this run would draw from others: part of their names."""
    base = [
        config.pretrained_model_name_or_path,
        config.pretrained_vae_model_name_or_path,
        config.revision,
        config.variant,
    ]
    return key_of(
        "class",
        *base,
        config.class_prompt,
        config.seed,
        config.resolution,
        str(dtype),
        config.num_inference_steps,
        config.guidance_scale,
    )[:12]


def existing(
    config: TrainConfig, cache: Cache | None, mark: str
) -> tuple[list[TrainingImage], dict[int, TrainingImage], int]:
    """(images that are not ours, {number: image drawn for this run}, how many were drawn for another)"""
    folder, theirs, drawn, others = Path(config.class_data_dir), [], {}, 0
    if not folder.exists():
        return theirs, drawn, others
    common = dict(skip=config.on_bad_image == "skip", cache=cache, workers=config.dataloader_num_workers)
    for image in find_images(folder, config.class_prompt, "--class_data_dir", least=0, **common):
        match = DRAWN.fullmatch(image.path.name)
        if match is None:
            theirs.append(image)
        elif match[1] == mark:
            drawn[int(match[2])] = image
        else:
            others += 1
    return theirs, drawn, others


@torch.no_grad()
def draw_missing(
    numbers: list[int], config: TrainConfig, images: list[TrainingImage], base: dict, accelerator
) -> None:
    """Draw and write the class images of these numbers, number i in the bucket of instance image i."""
    if not numbers:
        return
    folder, mark = Path(config.class_data_dir), drawn_for(config, base["dtype"])
    pipeline = load_sdxl(**base).to(accelerator.device)
    resolution = config.resolution or resolution_of(pipeline)
    for shape, part in batches(numbers, images, resolution, config):
        wanted = [(config.class_prompt, generator(config.seed, SEEDS, i).initial_seed()) for i in part]
        images = draw(pipeline, wanted, config.num_inference_steps, config.guidance_scale, len(part), shape)
        for i, image in zip(part, images, strict=True):
            if all(low == high for low, high in image.getextrema()):
                raise TrainingError(
                    f"class image {i} has a single colour, as after an overflow: use --prior_generation_precision fp32"
                )
            try:
                with complete_or_absent(folder / f"class-{mark}-{i:05d}.png") as file:
                    image.save(file, "PNG")
            except OSError as error:
                raise ConfigError(f"--class_data_dir {folder} cannot be written: {error}") from None


def batches(
    numbers: list[int], images: list[TrainingImage], resolution: int, config: TrainConfig
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """(shape, numbers) of at most sample_batch_size images each"""
    by_shape = {}
    for i in numbers:
        by_shape.setdefault(
            bucket_of(images[i % len(images)].size, resolution, config.use_aspect_ratio_buckets), []
        ).append(i)
    for shape, members in by_shape.items():
        for start in range(0, len(members), config.sample_batch_size):
            yield shape, members[start : start + config.sample_batch_size]
