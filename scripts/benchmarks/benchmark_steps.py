"""The benchmark's section of training steps: of the UNet alone, and of whole commands."""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark_inputs import base_of, random_base, unet_inputs, write_images
from benchmark_turns import Bench, milliseconds_of, print_profile, ratio, ratio_text
from timed_run import TRAIN, timed_run

from gralora_diffusion import AdapterConfig, inject
from gralora_diffusion.sdxl.base import blank_inputs, predict
from gralora_diffusion.sdxl.load import EMBEDDED, shapes, vae_shapes

STEPS_OF_A_RUN = 500
SDXL_FLOPS_RATIO = 14.2 / 4.9  # the UNet's forward + backward to the VAE's encoding, at 1024 pixels
DIFFUSERS_LORA = "diffusers LoRA"


def unet_steps(
    bench: Bench, size: str = "tiny", rank: int = 16, k: int = 2, images: int = 4, profile: bool = False
) -> dict:
    """A training step of the UNet alone, forward, backward and AdamW, with each adapter on a base of its own.

    profile: print torch.profiler's table of our two, too.
    """
    print(f"\nstep of a UNet of size {size} alone, {images} images, rank {rank}, k {k};", end=" ")
    print("as a ratio to our LoRA's: median (quartiles)")
    contestants = {}
    for name, adapt in adapters_of(rank, k).items():
        pipeline = base_of(size, bench.device)
        adapt(pipeline.unet.train())
        trained = [p for p in pipeline.unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        contestants[name] = training_step(pipeline, optimizer, images)
    times = bench.in_turns(contestants)
    if profile:
        for name in ("LoRA", "GraLoRA"):
            title = f"a step of the UNet of size {size} with {name}"
            print_profile(title, contestants[name], bench.device)
    found = {name: ratio(times, name, "LoRA") for name in contestants if name != "LoRA"}
    texts = [f"{name} {ratio_text(value)}" for name, value in found.items()]
    found["ms"] = milliseconds_of(times)
    print(f"  {', '.join(texts)}; LoRA {found['ms']['LoRA']:.0f} ms", flush=True)
    return found


def adapters_of(rank: int, k: int) -> dict[str, Callable]:
    """{name: a function that puts this adapter into a UNet}"""
    import peft

    targets = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
    lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    gralora = peft.GraloraConfig(r=rank, alpha=rank, gralora_k=k, hybrid_r=0, target_modules=targets)
    return {
        "LoRA": lambda unet: inject(unet, AdapterConfig(method="lora", rank=rank)),
        "GraLoRA": lambda unet: inject(unet, AdapterConfig(rank=rank, k=k)),
        "PEFT LoRA": lambda unet: peft.inject_adapter_in_model(lora, unet),
        "PEFT GraLoRA": lambda unet: peft.inject_adapter_in_model(gralora, unet),
    }


def training_step(pipeline, optimizer, images: int) -> Callable[[], None]:
    unet = pipeline.unet
    half = unet.dtype == torch.bfloat16
    inputs = unet_inputs(pipeline, images)

    def run() -> None:
        with torch.autocast(unet.device.type, torch.bfloat16, enabled=half):
            predict(unet, *inputs).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def command_steps(
    bench: Bench,
    script: str | None,
    sizes: dict[str, dict],
    length: int = 12,
    rounds: int = 3,
    rank: int = 16,
) -> list[dict]:
    """Whole training commands in turns.

    script: diffusers' train_dreambooth_lora_sdxl.py, if it is compared.  length: steps of a command.
    sizes: {name: dict(width=None for the embedded base, resolution, batch)}.
    """
    print(f"\nstep: whole training commands, rank {rank}; a run of {STEPS_OF_A_RUN} steps", end=" ")
    print("counts everything: libraries, loading, the cache, saving")
    rows = []
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            base = EMBEDDED if size["width"] is None else random_base(folder / "base", size["width"])
            print_flops(name, size, base)
            commands = commands_of(script, base, folder, size, length, rank)
            runs = {kind: [] for kind in commands}
            for number in range(rounds):
                for kind, (program, options) in commands.items():
                    options = options | dict(output_dir=folder / f"{kind}-{number}")
                    runs[kind].append(timed_run(program, words(options))[bench.clock])
        rows += [median_row(name, kind, times) for kind, times in runs.items()]
        rows += [ratio_row(name, runs, *labels) for labels in ratios_of(commands)]
    return rows


def commands_of(
    script: str | None, base: Path, folder: Path, size: dict, length: int, rank: int
) -> dict[str, tuple[Path, dict]]:
    """{name: (script, its options)}"""
    common = dict(
        pretrained_model_name_or_path=base,
        instance_data_dir=write_images(folder / "images", 2 * size["batch"], 2 * size["resolution"]),
        instance_prompt="a photo of sks robot",
        center_crop=True,
        resolution=size["resolution"],
        train_batch_size=size["batch"],
        max_train_steps=length,
        seed=0,
        learning_rate=1e-4,
        report_to="tensorboard",
    )
    ours = common | {"skip_final_inference": True, "no-cache_latents": True}  # each run makes its own cache
    commands = {
        "LoRA": (TRAIN, ours | dict(adapter="lora", rank=rank)),
        "GraLoRA": (TRAIN, ours | dict(gralora_rank=rank, gralora_k=2)),
    }
    if script:
        commands[DIFFUSERS_LORA] = (Path(script), common | dict(rank=rank))
    return commands


def words(options: dict) -> list[str]:
    """The command line of these options; True stands for a flag without a value."""
    line = []
    for name, value in options.items():
        line.append(f"--{name}")
        if value is not True:
            line.append(str(value))
    return line


def print_flops(name: str, size: dict, base: Path) -> None:
    unet, vae = flops(base, size["resolution"])
    print(f"{name}: {size}; UNet to VAE {unet:.1f} to {vae:.1f} GFLOP = {unet / vae:.1f}", end=" ")
    print(f"(SDXL {SDXL_FLOPS_RATIO:.1f})", flush=True)


def flops(base: Path, side: int) -> tuple[float, float]:
    """GFLOP of an image by torch's count: (forward and backward of the frozen UNet, encoding by the VAE)."""
    from torch.utils.flop_counter import FlopCounterMode

    unet = shapes(str(base))["unet"].requires_grad_(False)
    vae = vae_shapes(str(base))
    noisy, *others = blank_inputs(unet.config, 1, side // 8, device="meta")
    with FlopCounterMode(display=False) as training:
        predict(unet, noisy.requires_grad_(), *others).sum().backward()
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        vae.encode(torch.empty(1, 3, side, side, device="meta"))
    return training.get_total_flops() / 1e9, encoding.get_total_flops() / 1e9


def median_row(base: str, kind: str, times: list[dict]) -> dict:
    """The medians of a command's runs, which are printed too."""
    row = dict(base=base, kind=kind)
    for key in ("first", "step", "encode", "end", "peak"):
        row[key] = statistics.median(t[key] for t in times)
    row["run"] = seconds_of_run(row)
    print(f"  {kind:<15} {row['step'] * 1e3:8.1f} ms a step, of which", end=" ")
    print(f"{row['encode'] * 1e3:6.1f} encode images; first step after {row['first']:6.2f} s,", end=" ")
    print(f"end {row['end']:5.2f} s, {STEPS_OF_A_RUN} steps {row['run']:7.1f} s,", end=" ")
    print(f"peak {row['peak'] / 2**20:7.0f} MiB", flush=True)
    return row


def seconds_of_run(times: dict) -> float:
    return times["first"] + (STEPS_OF_A_RUN - 1) * times["step"] + times["end"]


def ratios_of(commands) -> list[tuple[str, str, str]]:
    """(label, one, other) of each ratio: the other's time by the one's, above 1 where the one is faster."""
    ratios = [("GraLoRA's to our LoRA's (goal: at most 1.03)", "LoRA", "GraLoRA")]
    if DIFFUSERS_LORA in commands:
        for kind in ("LoRA", "GraLoRA"):
            label = f"diffusers' LoRA to our {kind} (goal: at least 1.5)"
            ratios.append((label, kind, DIFFUSERS_LORA))
    return ratios


def ratio_row(base: str, runs: dict[str, list[dict]], label: str, one: str, other: str) -> dict:
    """Median and range of the rounds' ratios, which are printed too."""
    step, peak, run = [], [], []
    for a, b in zip(runs[one], runs[other], strict=True):
        step.append(b["step"] / a["step"])
        peak.append(b["peak"] / a["peak"])
        run.append(seconds_of_run(b) / seconds_of_run(a))
    row = dict(base=base, ratio=label, step=spread(step), peak=spread(peak), run=spread(run))
    print(f"  {label}: step {ratio_text(row['step'])}, run {ratio_text(row['run'])},", end=" ")
    print(f"peak memory {ratio_text(row['peak'])}", flush=True)
    return row


def spread(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), low=min(values), high=max(values))
