"""How fast a folder of many images starts training, and how much memory it takes.

    python scripts/benchmarks/measure_data.py --images 500 2000

For each number, writes that many JPEGs of 512 x 384 pixels and runs two processes, the first with an empty
cache, the second with the first one's.  A process loads the embedded base; then it is measured while it finds
and checks the images, encodes those that the cache lacks, and reads a batch.  grown_mb is the growth of its
resident memory meanwhile.  Prints a line for each process, and one line of JSON last.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000], help="default: 500 2000")
    about = "where images and cache are kept (default: a temporary folder)"
    parser.add_argument("--folder", metavar="FOLDER", help=about)
    parser.add_argument("--start", nargs=2, metavar=("IMAGES", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start(*args.start)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in args.images:
            folder = Path(args.folder or temporary) / str(count)
            write_images(folder / "images", count)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for cached in (False, True):
                row = dict(cached=cached) | start_apart(folder / "images", folder / "cache")
                rows.append(row)
                print(", ".join(f"{name} {round(value, 1)}" for name, value in row.items()), flush=True)
    print(json.dumps(rows))


def write_images(folder: Path, count: int) -> None:
    """Images that are all different, each with a caption."""
    from PIL import Image

    size = (512, 384)
    folder.mkdir(parents=True, exist_ok=True)
    noise = Image.effect_noise(size, 40)
    for i in range(count):
        caption = folder / f"{i:05d}.txt"
        if caption.exists():
            continue
        gray = Image.new("L", size, i % 256)
        gradient = Image.linear_gradient("L").resize(size).rotate(i % 360)
        Image.merge("RGB", (noise, gray, gradient)).save(folder / f"{i:05d}.jpg", quality=85)
        caption.write_text(f"image number {i}")


def start_apart(images: Path, cache: Path) -> dict:
    """What start() measures, in a process of its own."""
    command = [sys.executable, __file__, "--start", str(images), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def start(folder: str, cache: str) -> None:
    """What train() does before its first step, in this process; prints one line of JSON."""
    import torch
    from accelerate import Accelerator

    from gralora_diffusion import TrainConfig, load_sdxl
    from gralora_diffusion.data.batches import examples_at, plan_batches
    from gralora_diffusion.data.cache import Cache
    from gralora_diffusion.data.dataset import image_cache, instance_images
    from gralora_diffusion.data.encode import encode_captions

    torch.set_num_threads(1)
    config = TrainConfig(
        instance_data_dir=folder,
        latent_cache_dir=cache,
        center_crop=True,
        dataloader_num_workers=2,
        resolution=64,
        train_batch_size=8,
    )
    pipeline = load_sdxl()
    accelerator = Accelerator(cpu=True)
    # one image of the bundled ones warms up
    image = instance_images(TrainConfig(resolution=64), None)[:1]
    warm = plan_batches(image, [], pipeline.vae, config, Cache(f"{cache}/warm"), accelerator)
    examples_at(warm, [0])

    memory = resident()
    began = time.monotonic()
    cpu = time.process_time()
    images = instance_images(config, image_cache(config))
    checked = time.monotonic() - began
    plan = plan_batches(images, [], pipeline.vae, config, image_cache(config), accelerator)
    encode = encode_captions(plan.captions(), pipeline, plan.cache, accelerator, 2)
    encode([example.caption for example in examples_at(plan, range(8))])
    found = dict(
        images=len(images),
        check_s=checked,
        start_s=time.monotonic() - began,
        start_cpu_s=time.process_time() - cpu,
        grown_mb=resident() - memory,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    )
    print(json.dumps(found))


def resident() -> float:
    """The resident memory of this process in MB."""
    import psutil

    return psutil.Process().memory_info().rss / 1e6


if __name__ == "__main__":
    main()
