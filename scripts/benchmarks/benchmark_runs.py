"""scripts/benchmark.py's sections of whole commands: a training step beside that of diffusers' own script, and how soon commands answer."""

import itertools
import json
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark_turns import Bench, shown

HERE = Path(__file__).parent
TRAIN = HERE.parent / "train_sdxl.py"
MARK = "benchmark-measured "
STEPS_OF_A_RUN = 500
FLOPS_OF_SDXL = 14.2 / 4.9  # UNet forward + backward to the VAE's encoding, at 1024 pixels


def measured(script: str, arguments: list[str]) -> None:
    """Run a training script in this process; last of all, print when each of its steps ended, how long it encoded images, its end, and its
    peak of memory."""
    born = time.monotonic()
    import torch
    from diffusers import AutoencoderKL
    from torch.optim.optimizer import register_optimizer_step_post_hook

    marks, encoding, encode = [], [], AutoencoderKL.encode

    def mark(*_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append((time.monotonic() - born, time.process_time()))

    def clocked(*arguments, **options):
        before = time.monotonic(), time.process_time()
        encoded = encode(*arguments, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        encoding.append((time.monotonic() - before[0], time.process_time() - before[1], len(marks)))
        return encoded

    AutoencoderKL.encode = clocked
    register_optimizer_step_post_hook(mark)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    mark()
    from gralora_diffusion.training.memory import peak_memory

    peak = peak_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(MARK + json.dumps(dict(marks=marks, encoding=encoding, peak=peak)), flush=True)


def command(script: Path, arguments: list[str]) -> dict[str, dict]:
    """{clock: seconds, and the peak of memory}: what measured() found in a process of its own."""
    whole = [sys.executable, str(HERE / "benchmark_runs.py"), str(script), *arguments]
    done = subprocess.run(whole, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise SystemExit(
            f"benchmark: {script.name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    found, answer = json.loads(lines[0].removeprefix(MARK)), {}
    for i, (clock, times) in enumerate(zip(("wall", "cpu"), zip(*found["marks"], strict=True), strict=True)):
        steps = [
            b - a for a, b in itertools.pairwise(times[1:-1])
        ]  # from the second step on: the first one warms up
        encode = sum(entry[i] for entry in found["encoding"] if 2 <= entry[2] < len(times) - 1) / len(steps)
        answer[clock] = dict(
            first=times[0],
            step=statistics.median(steps),
            encode=encode,
            end=times[-1] - times[-2],
            peak=found["peak"],
        )
    return answer


def images(folder: Path, count: int, side: int) -> Path:
    from PIL import Image

    folder.mkdir(parents=True)
    for i in range(count):
        noise = Image.effect_noise((side, side), 60)
        Image.merge(
            "RGB",
            (
                noise,
                Image.linear_gradient("L").resize((side, side)).rotate(30 * i),
                Image.new("L", (side, side), 40 * i),
            ),
        ).save(folder / f"{i}.png")
    return folder


def random_base(folder: Path, width: int) -> Path:
    """An SDXL-like base with random weights: its UNet has `width` channels, a multiple of 32, where SDXL's has 320, and its VAE in proportion."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from gralora_diffusion import load_sdxl
    from gralora_diffusion.sdxl.single_file import SDXL_UNET, SDXL_VAE

    pipeline = load_sdxl()
    torch.manual_seed(0)
    pooled = pipeline.text_encoder_2.config.projection_dim
    changes = dict(
        block_out_channels=(width, 2 * width, 4 * width),
        cross_attention_dim=pipeline.unet.config.cross_attention_dim,
        sample_size=32,
    )
    changes |= dict(
        attention_head_dim=(width // 32, width // 16, width // 8), transformer_layers_per_block=(1, 2, 10)
    )
    changes |= dict(projection_class_embeddings_input_dim=6 * 256 + pooled)
    channels = [width * 2 // 5 // 8 * 8 * n for n in (1, 2, 4, 4)]
    pipeline.register_modules(
        unet=UNet2DConditionModel.from_config(SDXL_UNET | changes),
        vae=AutoencoderKL.from_config(
            SDXL_VAE | dict(block_out_channels=channels, norm_num_groups=8, sample_size=256)
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def flops(base: Path, side: int) -> tuple[float, float]:
    """(forward and backward of the frozen UNet, the VAE's encoding) of one image, in GFLOP by torch's count, on shapes alone."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from gralora_diffusion.sdxl.base import blank_inputs, predict
    from gralora_diffusion.sdxl.load import shapes, vae_shapes

    unet, vae = shapes(str(base))["unet"], vae_shapes(str(base))
    config = unet.requires_grad_(False).config
    noisy, *others = blank_inputs(config, 1, side // 8, device="meta")
    with FlopCounterMode(display=False) as learning:
        predict(unet, noisy.requires_grad_(), *others).sum().backward()
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        vae.encode(torch.empty(1, 3, side, side, device="meta"))
    return learning.get_total_flops() / 1e9, encoding.get_total_flops() / 1e9


def steps(
    bench: Bench,
    script: str | None,
    sizes: dict[str, dict],
    length: int = 12,
    rounds: int = 3,
    rank: int = 16,
) -> list[dict]:
    """Whole training commands in turns.  sizes: {name: dict(width=None for the embedded base, resolution, batch)}."""
    print(
        f"\nstep: whole training commands, rank {rank}; a run of {STEPS_OF_A_RUN} steps counts everything: libraries, loading, the cache, saving"
    )
    found = []
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory() as temporary:
            found += compare(bench, script, Path(temporary), name, size, length, rounds, rank)
    return found


def compare(
    bench: Bench, script: str | None, folder: Path, name: str, size: dict, length: int, rounds: int, rank: int
) -> list[dict]:
    base = (
        HERE.parent / "gralora_diffusion" / "tiny"
        if size["width"] is None
        else random_base(folder / "base", size["width"])
    )
    data = images(folder / "images", 2 * size["batch"], 2 * size["resolution"])
    common = [
        "--pretrained_model_name_or_path",
        base,
        "--instance_data_dir",
        data,
        "--instance_prompt",
        "a photo of sks robot",
        "--center_crop",
    ]
    common += [
        "--resolution",
        size["resolution"],
        "--train_batch_size",
        size["batch"],
        "--max_train_steps",
        length,
        "--seed",
        0,
    ]
    common += ["--learning_rate", 1e-4, "--report_to", "tensorboard"]
    ours = [*common, "--skip_final_inference", "--no-cache_latents"]  # so that each run makes its cache anew
    kinds = {
        "LoRA": (TRAIN, [*ours, "--adapter", "lora", "--rank", rank]),
        "GraLoRA": (TRAIN, [*ours, "--gralora_rank", rank, "--gralora_k", 2]),
    }
    if script:
        kinds["diffusers LoRA"] = (Path(script), [*common, "--rank", rank])
    unet, vae = flops(base, size["resolution"])
    print(
        f"{name}: {size}; UNet to VAE {unet:.1f} to {vae:.1f} GFLOP = {unet / vae:.1f} (SDXL {FLOPS_OF_SDXL:.1f})",
        flush=True,
    )
    runs = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind, (program, arguments) in kinds.items():
            arguments = [*map(str, arguments), "--output_dir", str(folder / f"{kind}-{number}")]
            runs[kind].append(command(program, arguments)[bench.clock])
    rows = []
    for kind, times in runs.items():
        row = {
            key: statistics.median(t[key] for t in times)
            for key in ("first", "step", "encode", "end", "peak")
        }
        row["run"] = row["first"] + (STEPS_OF_A_RUN - 1) * row["step"] + row["end"]
        rows.append(dict(base=name, kind=kind, **row))
        print(
            f"  {kind:<15} {row['step'] * 1e3:8.1f} ms a step, of which {row['encode'] * 1e3:6.1f} encode images; first step after ",
            end="",
        )
        print(
            f"{row['first']:6.2f} s, end {row['end']:5.2f} s, {STEPS_OF_A_RUN} steps {row['run']:7.1f} s, peak {row['peak'] / 2**20:7.0f} MiB",
            flush=True,
        )
    for label, one, other in ratios_of(kinds):
        per_round = {
            key: [b[key] / a[key] for a, b in zip(runs[one], runs[other], strict=True)]
            for key in ("step", "peak")
        }
        whole = [total(b) / total(a) for a, b in zip(runs[one], runs[other], strict=True)]
        spread = {key: spread_of(values) for key, values in (per_round | dict(run=whole)).items()}
        rows.append(dict(base=name, ratio=label, **spread))
        print(
            f"  {label}: step {shown(spread['step'])}, run {shown(spread['run'])}, peak memory {shown(spread['peak'])}",
            flush=True,
        )
    return rows


def ratios_of(kinds) -> list[tuple[str, str, str]]:
    """(label, the one, the other): each ratio is the other's time by the one's, so that more than 1 means that the one is faster."""
    mine = [("GraLoRA's to our LoRA's (goal: at most 1.03)", "LoRA", "GraLoRA")]
    beside = [
        (f"diffusers' LoRA to our {kind} (goal: at least 1.5)", kind, "diffusers LoRA")
        for kind in ("LoRA", "GraLoRA")
    ]
    return mine + (beside if "diffusers LoRA" in kinds else [])


def total(times: dict) -> float:
    return times["first"] + (STEPS_OF_A_RUN - 1) * times["step"] + times["end"]


def spread_of(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), low=min(values), high=max(values))


def start(rounds: int = 5) -> dict:
    """Seconds until a command answers: the median of the rounds, by wall clock and of processor time."""
    print("\nstart: seconds by the wall clock and of processor time, median of the rounds")
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        first = [
            "--max_train_steps",
            "4",
            "--skip_final_inference",
            "--latent_cache_dir",
            f"{temporary}/cache",
        ]
        questions = {
            "--help (goal: 0.7)": [str(TRAIN), "--help"],
            "a wrong flag (goal: 0.7)": [str(TRAIN), "--gralora_rnk", "4"],
            "a folder that is not there": [str(TRAIN), "--instance_data_dir", f"{temporary}/none"],
            "a base that is not there": [str(TRAIN), "--pretrained_model_name_or_path", f"{temporary}/none"],
            "a rank that does not fit": [str(TRAIN), "--gralora_rank", "63", "--gralora_k", "4"],
            "import gralora_diffusion": ["-c", "import gralora_diffusion"],
        }
        for name, words in questions.items():
            found[name] = [
                statistics.median(column)
                for column in zip(*(answer(words) for _ in range(rounds)), strict=True)
            ]
        runs = [
            command(TRAIN, [*first, "--output_dir", f"{temporary}/{number}"]) for number in range(rounds + 1)
        ][1:]  # the first fills the cache
        found["first training step, warm cache (goal: 8)"] = [
            statistics.median(run[clock]["first"] for run in runs) for clock in ("wall", "cpu")
        ]
    for name, (wall, cpu) in found.items():
        print(f"  {name:<45}{wall:>7.2f}{cpu:>7.2f}", flush=True)
    return found


def answer(words: list[str]) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *words], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    measured(sys.argv[1], sys.argv[2:])
