"""What `gralora sample` does once its options are read."""

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from gralora_diffusion import load_adapter, load_sdxl
from gralora_diffusion.adapters.control import bake_in
from gralora_diffusion.cli.prompt_file import Line, read_prompts
from gralora_diffusion.config import EMBEDDED_DEFAULTS, SDXL_DEFAULTS
from gralora_diffusion.console import counted, note
from gralora_diffusion.devices import best_device, drawing_dtype
from gralora_diffusion.formats.used_adapter import common_clip_skip, used_adapter
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import check_clip_skip
from gralora_diffusion.sdxl.image_text import save_image
from gralora_diffusion.sdxl.objective import common_objective, objective_of_scheduler, objective_text
from gralora_diffusion.sdxl.placement import bring
from gralora_diffusion.sdxl.prompt_chunks import read_prompt
from gralora_diffusion.sdxl.sampling import as_trained, generate
from gralora_diffusion.sdxl.sampling_settings import Origin, SamplingSettings
from gralora_diffusion.sdxl.schedulers import scheduler_named
from gralora_diffusion.sdxl.sheet import sheet

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BATCHES = 8  # after so many, images are written
MOST_COLUMNS = 100  # of a sheet
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
SMALL = 192  # pixels of an image of the sheet


class Wanted(NamedTuple):
    """An image to generate."""

    prompt: str
    seed: int
    settings: SamplingSettings


def generate_all(args: argparse.Namespace) -> None:
    """Generate and write all images.  Raises ConfigError, TrainingError, and OSError."""
    wanted = all_wanted(args)
    device = best_device()
    dtype = DTYPES[args.mixed_precision] if args.mixed_precision else drawing_dtype(device)
    if dtype == torch.float16 and device.type == "cpu":
        raise ConfigError("--mixed_precision fp16 needs a GPU: use bf16 or no here")
    folder = args.output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    base, vae = args.pretrained_model_name_or_path, args.pretrained_vae_model_name_or_path
    where = dict(revision=args.revision, variant=args.variant, cache_dir=args.cache_dir)
    pipeline = load_sdxl(base, vae, dtype, **where)
    check_sampling(pipeline, wanted)
    origin = Origin.of(base, vae, args.revision, args.variant)
    rows = {}
    runs = 2 if args.compare and args.adapter else 1
    with tqdm(desc="images", total=runs * len(wanted), disable=None, bar_format=BAR) as bar:
        common = args.batch_size, device, folder, bar
        if args.compare or not args.adapter:
            check_scheduler(args.scheduler, pipeline.scheduler)
            rows["base"] = generate_row("base", pipeline, wanted, origin, pipeline.scheduler, *common)
        if args.adapter:
            bring(pipeline, ("unet",), device, 0)
            facts = load_all(pipeline, args.adapter, args.strength)
            if not any(own["config"]["tlora"] for own in facts):  # active ranks depend on the timestep
                bake_in(pipeline.unet)
            objective = common_objective([own.get("objective") for own in facts])
            scheduler = as_trained(pipeline.scheduler, **objective)
            check_scheduler(args.scheduler, scheduler)
            print(f"prediction: {objective_text(objective_of_scheduler(scheduler.config))}")
            label = "strength " + ", ".join(f"{strength:g}" for strength in args.strength)
            used = tuple(map(used_adapter, args.adapter, args.strength))
            own_origin = replace(origin, adapters=used)
            rows[label] = generate_row(label, pipeline, wanted, own_origin, scheduler, *common)
    write_sheet(rows, [f"seed {image.seed}: {image.prompt}" for image in wanted], args)


def all_wanted(args: argparse.Namespace) -> list[Wanted]:
    """Every image, prompt by prompt.  Raises ConfigError for a file of prompts."""
    guidance = args.guidance_scale
    if guidance is None:
        embedded = args.pretrained_model_name_or_path is None
        guidance = (EMBEDDED_DEFAULTS if embedded else SDXL_DEFAULTS)["guidance_scale"]
    common = SamplingSettings(
        args.num_inference_steps,
        guidance,
        args.size,
        args.negative_prompt.strip(),
        args.scheduler,
        common_clip_skip(args.adapter) if args.clip_skip is None else args.clip_skip,
        not args.plain_prompts,
    )
    if args.prompt_file is not None:
        lines = read_prompts(args.prompt_file)
    else:
        lines = [Line(prompt.strip()) for prompt in args.prompt.split("|")]
    found = []
    for line in lines:
        settings = line.settings(common)
        if settings.negative_prompt and settings.guidance_scale <= 1:
            note("a negative prompt has no effect at a guidance scale of 1 or less")
        seeds = args.seeds if line.seed is None else [line.seed + n for n in range(len(args.seeds))]
        found += [Wanted(line.prompt, seed, settings) for seed in seeds]
    return found


def check_sampling(pipeline, wanted: list[Wanted]) -> None:
    """Raises ConfigError, before anything is computed, for prompts that cannot be used."""
    for prompt, settings in dict.fromkeys((image.prompt, image.settings) for image in wanted):
        check_clip_skip(pipeline, settings.clip_skip)
        for text in (prompt, settings.negative_prompt):
            read_prompt(pipeline, text, settings.rules())


def check_scheduler(name: str | None, of_base) -> None:
    """Raises ConfigError, before anything is computed, where it cannot sample what the base predicts."""
    if name is not None:
        scheduler_named(name, of_base)


def parts_of(wanted: list[Wanted], most: int) -> Iterator[list[Wanted]]:
    """The images in parts with the same settings, of at most `most`."""
    for _, group in groupby(wanted, key=lambda image: image.settings):
        members = list(group)
        for start in range(0, len(members), most):
            yield members[start : start + most]


def generate_row(
    label: str,
    pipeline,
    wanted: list[Wanted],
    origin: Origin,
    scheduler,
    batch_size: int,
    device: torch.device,
    folder: Path,
    bar: tqdm,
) -> list[Image.Image | None]:
    """Generate and write images, some at a time.

    Returns them, with None for those that the sheet does not show.
    """
    found = []
    for part in parts_of(wanted, BATCHES * batch_size):
        prompts = [(image.prompt, image.seed) for image in part]
        how = dict(scheduler=scheduler, device=device, origin=origin, progress=bar.update)
        for image in generate(pipeline, prompts, part[0].settings, batch_size, **how):
            number = len(found)
            name = f"{label.replace(' ', '-')}-{number:03d}.png"
            if all(low == high for low, high in image.getextrema()):
                warnings.warn(
                    f"{folder / name} has a single color: the model may have overflowed", stacklevel=2
                )
            save_image(image, folder / name)
            found.append(image if number < MOST_COLUMNS else None)
    return found


def load_all(pipeline, paths: list[str], strengths: list[float]) -> list[dict]:
    """The facts of the adapters, which are now in the pipeline, each under a name of its own."""
    facts = []
    for number, (path, strength) in enumerate(zip(paths, strengths, strict=True)):
        facts.append(load_adapter(pipeline, path, strength, name=f"adapter {number + 1}"))
    return facts


def write_sheet(rows: dict[str, list], columns: list[str], args: argparse.Namespace) -> None:
    """Write the sheet, with a caption for each column, and print where the images are."""
    folder = args.output.with_suffix("")
    counts = [f"{counted(len(images), 'image')} of {label}" for label, images in rows.items()]
    if not args.grid:
        print(f"{' and '.join(counts)}: single images in {folder}/")
        return
    if len(columns) > MOST_COLUMNS:
        note(f"the grid shows the first {MOST_COLUMNS} of {len(columns)} columns")
    shown = {label: images[:MOST_COLUMNS] for label, images in rows.items()}
    save_image(sheet(shown, columns[:MOST_COLUMNS], SMALL), args.output)
    print(f"{args.output}: {' and '.join(counts)}; single images in {folder}/")
