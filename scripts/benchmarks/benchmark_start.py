"""The benchmark's section of how soon commands answer."""

import resource
import statistics
import subprocess
import sys
import tempfile
import time

from timed_run import CLOCKS, TRAIN, timed_run


def start(rounds: int = 5) -> dict[str, list[float]]:
    """{what: medians of the wall-clock and processor seconds until a command answers}."""
    print("\nstart: seconds by the wall clock and of processor time, median of the rounds")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "--help (goal: 0.7)": [str(TRAIN), "--help"],
            "a wrong flag (goal: 0.7)": [str(TRAIN), "--gralora_rnk", "4"],
            "a folder that is not there": [str(TRAIN), "--instance_data_dir", f"{folder}/none"],
            "a base that is not there": [str(TRAIN), "--pretrained_model_name_or_path", f"{folder}/none"],
            "a rank that does not fit": [str(TRAIN), "--gralora_rank", "63", "--gralora_k", "4"],
            "import gralora_diffusion": ["-c", "import gralora_diffusion"],
        }
        for name, arguments in commands.items():
            times = [seconds_of(arguments) for _ in range(rounds)]
            found[name] = [statistics.median(column) for column in zip(*times, strict=True)]
        found["first training step, warm cache (goal: 8)"] = first_step(folder, rounds)
    for name, (wall, cpu) in found.items():
        print(f"  {name:<45}{wall:>7.2f}{cpu:>7.2f}", flush=True)
    return found


def seconds_of(arguments: list[str]) -> tuple[float, float]:
    """(wall-clock, processor) seconds of a Python command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run([sys.executable, *arguments], capture_output=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(folder: str, rounds: int) -> list[float]:
    """Medians of the wall-clock and processor seconds until the first step ends, with a warm cache."""
    options = ["--max_train_steps", "4", "--skip_final_inference", "--latent_cache_dir", f"{folder}/cache"]
    runs = []
    for number in range(rounds + 1):
        runs.append(timed_run(TRAIN, [*options, "--output_dir", f"{folder}/{number}"]))
    warm = runs[1:]  # the first one fills the cache
    medians = []
    for clock in CLOCKS:
        medians.append(statistics.median(run[clock]["first"] for run in warm))
    return medians
