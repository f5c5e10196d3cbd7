"""gpu.sh's section of presets: what a run forecasts and what it takes, for each preset that fits the card."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_base import Sizes, forget_accelerator, gib, random_base
from gpu_sections import Clock, attempt, release

from gralora_diffusion.command_line import PRESETS
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import from_flat
from gralora_diffusion.training.train import train

ORDER = ("subject-24gb", "style-24gb", "subject-12gb", "style-16gb")  # first, where the time is short
STEPS = 3
DENOISING = 2  # steps of a sample image
SMALL = dict(resolution=64, rank=8, k=2)  # of the embedded base's shape, in the place of a preset's own


def run(sizes: Sizes, clock: Clock, add: Callable) -> str:
    total = torch.cuda.get_device_properties(0).total_memory
    longest = 0.0
    with (
        tempfile.TemporaryDirectory(prefix="gralora-gpu-") as folder,
        random_base(sizes.small, Path(folder)) as base,
    ):
        for name in sorted(PRESETS, key=place):
            start = time.monotonic()
            if sizes.small and name not in ORDER[:2]:
                add(preset=name, problem="skipped: --quick runs two presets")
            elif bytes_for(name) > total:
                add(preset=name, problem="skipped: it is for a larger card")
            elif clock.left() < longest:
                add(preset=name, problem="skipped: no time was left")
            else:
                add(**attempt(dict(preset=name), measure, name, sizes, Path(folder), base))
            longest = max(longest, time.monotonic() - start)
    about = f"{STEPS} steps, sample images before and after them in {DENOISING} denoising steps"
    return f"{about}; the estimate is the run's own, from its first batches"


def place(preset: str) -> int:
    return ORDER.index(preset) if preset in ORDER else len(ORDER)


def bytes_for(preset: str) -> float:
    """Of the card that a preset is for; a card of 8 GB has 8e9 bytes and a little more."""
    return 1e9 * float(preset.rpartition("-")[2].removesuffix("gb"))


def measure(preset: str, sizes: Sizes, folder: Path, base: str) -> dict:
    """A row of the table: train() with a preset's options."""
    output = folder / preset
    options = PRESETS[preset]["options"] | (SMALL if sizes.small else {})
    options |= dict(
        pretrained_model_name_or_path=base,
        output_dir=str(output),
        latent_cache_dir=str(folder / "cache"),
        max_train_steps=STEPS,
        num_inference_steps=DENOISING,
    )
    forget_accelerator()
    release()
    torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    try:
        train(from_flat(TrainConfig, options))
        seconds = time.monotonic() - start
        status = json.loads((output / "status.json").read_text())
        images = len(list(output.glob("samples/step-*/*.png")))
    finally:
        shutil.rmtree(output, ignore_errors=True)  # the files of a large rank take gigabytes
    forecast, actual = status["forecast"], status["actual"]
    expected, peak = forecast["memory_mb"] * 1e6, actual["memory_mb"] * 1e6
    return {
        "preset's GiB": PRESETS[preset]["forecast_gib"],
        "estimated GiB": gib(expected),
        "peak GiB": gib(peak),
        "reserved GiB": gib(torch.cuda.max_memory_reserved()),
        "peak / estimate": peak / expected,
        "card's GiB": gib(torch.cuda.get_device_properties(0).total_memory),
        "estimated s": round(forecast["seconds"], 1),
        "taken s": round(actual["seconds"], 1),
        "whole run s": round(seconds, 1),
        "images": images,
    }
