"""Speed and memory of adapters, training, loading and sampling, compared with PEFT and diffusers.

    python scripts/benchmarks/benchmark.py --quick
    python scripts/benchmarks/benchmark.py --diffusers_script train_dreambooth_lora_sdxl.py --clock cpu
    python scripts/benchmarks/benchmark.py --only layer sampling --device cuda

What is compared runs in turns, in one process.  Prints a table for each section, with ratios as median and
spread, and one line of JSON last.  All sections together take about 10 GiB of memory.
"""

import argparse
import importlib.util
import json
import os
import platform

NEEDS = {"step": "tensorboard", "scaling": "matplotlib"}  # packages of a section


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the commands that are started, too
    import torch

    torch.set_num_threads(args.threads)
    from benchmark_turns import Bench

    rounds = min(args.rounds, 5) if args.quick else args.rounds
    bench = Bench(args.device, args.clock, rounds, 2.0 if args.quick else args.seconds)
    found = dict(machine=machine(args))
    print(json.dumps(found["machine"]))
    for section in args.only:
        found[section] = SECTIONS[section](bench, args)
    print(json.dumps(found))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections alone")
    add("--quick", action="store_true", help="small sizes and few rounds")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add("--threads", type=int, default=1, help="threads of the CPU (default: 1)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a busy machine")
    add("--rounds", type=int, default=30, help="the most rounds of a comparison (default: 30)")
    add(
        "--seconds",
        type=float,
        default=20.0,
        help="no new round after these, from the fifth on (default: 20)",
    )
    add("--run_rounds", type=int, default=3, help="rounds of whole commands, in step and start (default: 3)")
    add(
        "--base", choices=("tiny", "half", "sdxl"), default="half", help="the UNet in load; sdxl takes 16 GiB"
    )
    about = "of the random base in step, a multiple of 32; SDXL's UNet has 320 (default: 96)"
    add("--width", type=int, default=96, help=about)
    about = (
        "examples/dreambooth/train_dreambooth_lora_sdxl.py of the installed version of diffusers, for step"
    )
    add("--diffusers_script", metavar="FILE", help=about)
    about = "also print torch.profiler's tables of layers and steps that miss a goal"
    add("--profile", action="store_true", help=about)
    add("--plot", metavar="FILE", help="where the plots of scaling go (default: benchmark.png)")
    args = parser.parse_args(argv)
    if args.plot and "scaling" not in args.only:
        parser.error("--plot has no effect: --only leaves the section scaling out")
    for section, package in NEEDS.items():
        if section in args.only and importlib.util.find_spec(package) is None:
            way = f"pip install {package}, or leave it out with --only"
            parser.error(f"the section {section} needs the package {package}: {way}")
    if args.diffusers_script and not os.path.isfile(args.diffusers_script):
        parser.error(f"--diffusers_script {args.diffusers_script} does not exist")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no CUDA device")
    return args


def run_layer(bench, args) -> list[dict]:
    from benchmark_layers import SHAPES, SIZES, layers, profile

    if args.profile:
        profile(bench)
    if args.quick:
        return layers(bench, [(256, 640, 640), SHAPES[2]], SIZES[:2])
    return layers(bench)


def run_step(bench, args) -> dict:
    from benchmark_steps import command_steps, unet_steps

    alone = {"tiny": unet_steps(bench, "tiny", images=4, profile=args.profile)}
    sizes = {"the embedded base": dict(width=None, resolution=64, batch=4)}
    length = 6
    rounds = 1
    if not args.quick:
        alone["half"] = unet_steps(bench, "half", images=2)
        sizes["a random base"] = dict(width=args.width, resolution=256, batch=1)
        length = 12
        rounds = args.run_rounds
    commands = command_steps(bench, args.diffusers_script, sizes, length, rounds)
    return dict(alone=alone, commands=commands)


def run_start(bench, args) -> dict:
    from benchmark_start import start

    return start(1 if args.quick else args.run_rounds)


def run_export(bench, args) -> dict:
    from benchmark_pipelines import SDXL_LAYERS, export

    if args.quick:
        return export(bench, 16, 2, {(640, 640): SDXL_LAYERS[640, 640]})
    return export(bench)


def run_load(bench, args) -> dict:
    from benchmark_pipelines import loading

    if args.quick:
        return loading(bench, "tiny", 16, 2, rounds=2)
    return loading(bench, args.base, 64, 4, rounds=4)


def run_sampling(bench, args) -> dict:
    from benchmark_pipelines import sampling

    found = {"tiny": sampling(bench, "tiny", 16, 2, images=2)}
    if not args.quick:
        found["half"] = sampling(bench, "half", 64, 4, images=1, side=64)
    return found


def run_compile(bench, args) -> dict:
    from benchmark_compile import compiling

    return compiling(bench, ("aot_eager",) if args.quick else ("aot_eager", "inductor"))


def run_scaling(bench, args) -> dict:
    from benchmark_scaling import scaling

    plot = args.plot or "benchmark.png"
    return scaling(bench, plot, 128, 320) if args.quick else scaling(bench, plot)


SECTIONS = {
    "layer": run_layer,
    "step": run_step,
    "start": run_start,
    "export": run_export,
    "load": run_load,
    "sampling": run_sampling,
    "scaling": run_scaling,
    "compile": run_compile,
}


def machine(args) -> dict:
    import diffusers
    import peft
    import torch

    if args.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = cpu_name() or platform.processor() or "unknown"
    return dict(
        device=args.device,
        name=name,
        cpus=os.cpu_count(),
        threads=args.threads,
        clock=args.clock,
        torch=torch.__version__,
        peft=peft.__version__,
        diffusers=diffusers.__version__,
    )


def cpu_name() -> str:
    """The name of the processor, or an empty string where the system does not give it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


if __name__ == "__main__":
    main()
