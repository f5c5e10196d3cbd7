"""How fast adapters, training, loading and sampling are, beside PEFT and diffusers; what is compared runs in turns, within one run.

    python scripts/benchmark.py --quick
    python scripts/benchmark.py --diffusers_script train_dreambooth_lora_sdxl.py --clock cpu
    python scripts/benchmark.py --only layer sampling --device cuda

Prints a table for each section, ratios as median and spread, and one line of JSON last; all of it takes about 10 GiB of memory.
--diffusers_script is the path of examples/dreambooth/train_dreambooth_lora_sdxl.py of diffusers' repository, of a version that goes with
the one that is installed.
"""

import argparse
import importlib.util
import json
import os
import platform

SECTIONS = ("layer", "step", "start", "export", "load", "sampling", "scaling")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections alone"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, for a machine that others use too",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    parser.add_argument("--rounds", type=int, default=30, help="the most rounds of one comparison")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="the most seconds of one comparison, beyond five rounds"
    )
    parser.add_argument(
        "--diffusers_script", help="diffusers' train_dreambooth_lora_sdxl.py, for the section step"
    )
    parser.add_argument(
        "--base",
        choices=("tiny", "half", "sdxl"),
        default="half",
        help="size of the UNet in load; sdxl takes 16 GiB",
    )
    parser.add_argument(
        "--width",
        type=int,
        default=96,
        help="of the random base in step, a multiple of 32; SDXL's UNet has 320",
    )
    parser.add_argument(
        "--run_rounds", type=int, default=3, help="rounds of whole commands, in step and start"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="torch.profiler's tables too, of layers and a step that miss a goal",
    )
    parser.add_argument("--plot", help="where the plots of scaling go; by default benchmark.png")
    given = parser.parse_args(argv)
    if given.plot and "scaling" not in given.only:
        parser.error("--plot is of the section scaling, which --only leaves out")
    for section, package in (("step", "tensorboard"), ("scaling", "matplotlib")):
        if section in given.only and importlib.util.find_spec(package) is None:
            parser.error(
                f"the section {section} needs the package {package}: pip install {package}, or leave it out with --only"
            )
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of the commands that are started, too
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    if given.diffusers_script and not os.path.isfile(given.diffusers_script):
        parser.error(f"--diffusers_script {given.diffusers_script} is not there")
    torch.set_num_threads(given.threads)
    found = dict(machine=machine(torch, given))
    print(json.dumps(found["machine"]))
    for section in given.only:
        found[section] = measure(section, given)
    print(json.dumps(found))


def measure(section: str, given):
    from benchmark_turns import Bench

    quick = given.quick
    bench = Bench(
        given.device,
        given.clock,
        min(given.rounds, 5) if quick else given.rounds,
        2.0 if quick else given.seconds,
    )
    if section in ("layer", "scaling"):
        from benchmark_layers import SHAPES, SIZES, layers, profile, scaling

        if section == "layer":
            if given.profile:
                profile(bench)
            return layers(bench, *(([(256, 640, 640), SHAPES[2]], SIZES[:2]) if quick else (SHAPES, SIZES)))
        return scaling(bench, given.plot or "benchmark.png", *((128, 320) if quick else (1024, 1280)))
    if section in ("step", "start"):
        from benchmark_runs import start, steps

        if section == "start":
            return start(1 if quick else given.run_rounds)
        from benchmark_pipelines import unet_steps

        pairs = [("tiny", 4)] if quick else [("tiny", 4), ("half", 2)]
        alone = {
            size: unet_steps(bench, size, 16, 2, images, given.profile and size == "tiny")
            for size, images in pairs
        }
        sizes = {"the embedded base": dict(width=None, resolution=64, batch=4)}
        if not quick:
            sizes["a random base"] = dict(width=given.width, resolution=256, batch=1)
        return dict(
            alone=alone,
            commands=steps(
                bench, given.diffusers_script, sizes, 6 if quick else 12, 1 if quick else given.run_rounds
            ),
        )
    from benchmark_pipelines import SDXL_LAYERS, export, pipelines, sampling

    if section == "export":
        return export(bench, *((16, 2, {(640, 640): SDXL_LAYERS[640, 640]}) if quick else ()))
    if section == "load":
        return pipelines(
            bench, "tiny" if quick else given.base, *((16, 2) if quick else (64, 4)), rounds=2 if quick else 4
        )
    cases = [("tiny", 16, 2, 2, None), ("half", 64, 4, 1, 64)]  # size, rank, k, images, side of the latents
    return {case[0]: sampling(bench, *case) for case in (cases[:1] if quick else cases)}


def machine(torch, given) -> dict:
    import diffusers
    import peft

    versions = dict(torch=torch.__version__, peft=peft.__version__, diffusers=diffusers.__version__)
    name = (
        torch.cuda.get_device_name()
        if given.device == "cuda"
        else next((m for m in (cpu_name(), platform.processor()) if m), "unknown")
    )
    return dict(
        device=given.device,
        name=name,
        cpus=os.cpu_count(),
        threads=given.threads,
        clock=given.clock,
        **versions,
    )


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")), ""
            )
    except OSError:
        return ""


if __name__ == "__main__":
    main()
