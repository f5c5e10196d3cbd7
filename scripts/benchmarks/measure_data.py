"""How fast a folder of many images starts training, and how much memory it takes.

    python scripts/measure_data.py --images 500 2000

For each number: draws that many JPEGs (512 x 384), then runs two processes, the first with an empty cache, the second with what the first
left there.  A process loads the embedded base, and is measured from there: it finds and checks the images, encodes what the cache lacks,
and reads a batch.  grown_mb is the resident size after that, less that before.  Prints one line each, and last all of it as JSON.
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


def draw(folder: Path, count: int) -> None:
    """Images that are all different, each with a caption."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    noise = Image.effect_noise((512, 384), 40)
    for i in range(count):
        if not (folder / f"{i:05d}.txt").exists():
            colour = (
                Image.new("L", (512, 384), i % 256),
                Image.linear_gradient("L").resize((512, 384)).rotate(i % 360),
            )
            Image.merge("RGB", (noise, *colour)).save(folder / f"{i:05d}.jpg", quality=85)
            (folder / f"{i:05d}.txt").write_text(f"image number {i}")


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
    options = dict(center_crop=True, dataloader_num_workers=2, resolution=64, train_batch_size=8)
    config = TrainConfig(instance_data_dir=folder, latent_cache_dir=cache, **options)
    pipeline, accelerator = load_sdxl(), Accelerator(cpu=True)
    examples_at(
        plan_batches(
            instance_images(TrainConfig(resolution=64), None)[:1],
            [],
            pipeline.vae,
            config,
            Cache(cache + "/warm"),
            accelerator,
        ),
        [0],
    )
    before, begun, cpu = resident(), time.monotonic(), time.process_time()
    images = instance_images(config, image_cache(config))
    found = time.monotonic() - begun
    series = plan_batches(images, [], pipeline.vae, config, image_cache(config), accelerator)
    encode = encode_captions(series.captions(), pipeline, series.cache, accelerator, 2)
    encode([record.caption for record in examples_at(series, range(8))])
    seconds = dict(check_s=found, start_s=time.monotonic() - begun, start_cpu_s=time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(dict(images=len(images)) | seconds | dict(grown_mb=resident() - before, peak_mb=peak)))


def resident() -> float:
    """The size of this process in memory, in MB."""
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000], help="how many")
    parser.add_argument("--folder", help="where images and cache are kept; by default a temporary folder")
    parser.add_argument("--start", nargs=2, metavar=("IMAGES", "CACHE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        start(*given.start)
        return
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in given.images:
            folder = Path(given.folder or temporary) / str(count)
            draw(folder / "images", count)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for cached in (False, True):
                command = [
                    sys.executable,
                    __file__,
                    "--start",
                    str(folder / "images"),
                    str(folder / "cache"),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                results.append(dict(cached=cached) | json.loads(done.stdout.splitlines()[-1]))
                print(
                    ", ".join(f"{name} {round(value, 1)}" for name, value in results[-1].items()), flush=True
                )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
