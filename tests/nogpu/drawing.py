"""drawing.py [--gib FLOAT] [--json FILE] [--rank INT]: memory of drawing 1024 px images with a GraLoRA.

As `gralora sample` does it, one image and four at once; as the page does it, one image and the base's.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import card

if __name__ == "__main__":
    card.start()

import counters
import hollow
import stand_ins  # noqa: F401 - installs them
import torch

from gralora_diffusion import AdapterConfig, console, inject
from gralora_diffusion.cli import sample
from gralora_diffusion.formats.load import save_adapter
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.ui.sampler import ImageRequest, Sampler
from gralora_diffusion.ui.workspace import Workspace

RANK = 64  # of the adapter
STEPS = 2  # denoising steps
PROMPT = "a photo of sks dog"
ADAPTER = "dog.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, default=RANK)
    own = parser.parse_args()
    console.quiet_libraries()
    console.plain_warnings()
    found = draw_all(hollow.install(), [float(os.environ[card.MARK])], own.rank)
    for line in found:
        print(text_of(line))
    if own.json:
        own.json.write_text(json.dumps(found, indent=1))


def draw_all(base: str, sizes: list[float], rank: int) -> list[dict]:
    """Every way of drawing with this base on cards of these GiB."""
    found = []
    with tempfile.TemporaryDirectory(prefix="no-gpu-") as folder:
        home = Workspace(Path(folder))
        write_adapter(home.adapters / ADAPTER, rank)
        ways = {
            "sample, 1 image": lambda: run_sample(base, home, 1),
            "sample, 4 images at once": lambda: run_sample(base, home, 4),
            "page, 1 image and the base's": lambda: run_page(base, home),
        }
        for gib in sizes:
            counters.set_limit(gib)
            found += [measured(draw, dict(way=way, gib=gib)) for way, draw in ways.items()]
    return found


def write_adapter(path: Path, rank: int) -> None:
    """A GraLoRA's native file, whose factors are those of a new adapter."""
    unet = hollow.hollow_unet(torch.float16)
    inject(unet, AdapterConfig(rank=rank, k=4))
    save_adapter(path, {"unet": unet}, dtype=torch.float16)


def run_sample(base: str, home: Workspace, images: int) -> None:
    """`gralora sample` with an adapter."""
    console.set_program("gralora sample")
    files = ["--adapter", str(home.adapters / ADAPTER), "--output", str(home.root / "sheet.png")]
    numbers = ["--num_images", str(images), "--num_inference_steps", str(STEPS)]
    sample.main(["--pretrained_model_name_or_path", base, "--prompt", PROMPT, *files, *numbers])


def run_page(base: str, home: Workspace) -> None:
    """What the page's tab for images does."""
    sampler = Sampler(home)
    request = ImageRequest(PROMPT, 0, ((ADAPTER, 1.0),), STEPS, None)
    for wanted in (replace(request, adapters=()), request):
        sampler.generate(wanted, base)
    sampler.unload()


def measured(draw, line: dict) -> dict:
    """The line with memory, counts, and how it ended: "done", a sentence, or an exception's name."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    counters.reset()
    try:
        draw()
        ended = "done"
    except (ConfigError, TrainingError) as error:
        ended = str(error)
    except SystemExit as stop:
        ended = f"exit code {stop.code}"
    except torch.OutOfMemoryError:
        ended = "OutOfMemoryError"
    report = counters.report()
    return line | dict(
        peak=torch.cuda.max_memory_allocated() / card.GIB,
        reserved=torch.cuda.max_memory_reserved() / card.GIB,
        launches=report.launches,
        syncs=report.syncs,
        copies=report.copies,
        ended=ended,
    )


def text_of(line: dict) -> str:
    memory = f"peak {line['peak']:6.2f}, reserved {line['reserved']:6.2f} of {line['gib']:5.1f} GiB"
    counts = f"launches {line['launches']:>7,} syncs {line['syncs']:>6,} copies {line['copies']:>6,}"
    return f"{line['way']:<30} {memory}  {counts}  {line['ended']}"


if __name__ == "__main__":
    sys.exit(main())
