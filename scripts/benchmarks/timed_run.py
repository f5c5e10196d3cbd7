"""Run a training script in a process of its own, and measure its steps, encoding of images and memory.

    python scripts/benchmarks/timed_run.py SCRIPT [arguments of the script]

The sections step and start of benchmark.py run it.
"""

import itertools
import json
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

TRAIN = Path(__file__).parent.parent / "train_sdxl.py"
MARK = "benchmark-measured "  # before the line of JSON that the parent process reads
CLOCKS = ("wall", "cpu")


def main(script: str, arguments: list[str]) -> None:
    """Run the script in this process; then print one line of JSON with its times and its peak of memory."""
    began = time.monotonic()
    import torch
    from diffusers import AutoencoderKL
    from torch.optim.optimizer import register_optimizer_step_post_hook

    marks = []  # (wall, cpu) after each step, and at the end
    encoding = []  # (wall, cpu, number of steps before)
    encode = AutoencoderKL.encode

    def now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic() - began, time.process_time()

    def mark(*_) -> None:
        marks.append(now())

    def timed_encode(*args, **kwargs):
        before = now()
        encoded = encode(*args, **kwargs)
        after = now()
        encoding.append((after[0] - before[0], after[1] - before[1], len(marks)))
        return encoded

    register_optimizer_step_post_hook(mark)
    sys.argv = [script, *arguments]
    with mock.patch.object(AutoencoderKL, "encode", timed_encode):
        runpy.run_path(script, run_name="__main__")
    mark()
    from gralora_diffusion.devices import best_device, peak_memory

    peak = peak_memory(best_device())
    print(MARK + json.dumps(dict(marks=marks, encoding=encoding, peak=peak)), flush=True)


def timed_run(script: Path, arguments: list[str]) -> dict[str, dict[str, float]]:
    """{clock: measurements} of a run of the script in a process of its own.

    first: seconds until the first step ended.  step: median seconds of one.  encode: mean seconds of a step
    for encoding images.  end: seconds after the last step.  peak: bytes of memory.
    """
    command = [sys.executable, __file__, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        errors = done.stderr.strip().splitlines() or ["no message"]
        raise SystemExit(f"benchmark: {script.name} failed: {errors[-1]}")
    measured = json.loads(lines[0].removeprefix(MARK))
    found = {}
    for i, clock in enumerate(CLOCKS):
        times = [mark[i] for mark in measured["marks"]]
        # the first step warms up, and the last mark is the end of the run
        steps = [after - before for before, after in itertools.pairwise(times[1:-1])]
        encoding = [entry[i] for entry in measured["encoding"] if 2 <= entry[2] < len(times) - 1]
        found[clock] = dict(
            first=times[0],
            step=statistics.median(steps),
            encode=sum(encoding) / len(steps),
            end=times[-1] - times[-2],
            peak=measured["peak"],
        )
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
