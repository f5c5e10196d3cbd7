"""Measure training, memory forecasts, precisions, resuming and images on a GPU, and write them down.

    bash scripts/benchmarks/gpu.sh

Weights are random and of SDXL's shape; nothing is fetched.  The sections run one after the other, each with a
part of the minutes, in a process that is started again where one of them breaks the device or hangs.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_results import TITLES, Results

SECTIONS = {  # in order, with shares of the time
    "facts": 1,
    "steps": 36,
    "presets": 30,
    "precisions": 12,
    "images": 13,
    "resume": 12,
}
FRESH = ("resume",)  # a process of its own: cuBLAS reads the setting for deterministic kernels when it starts
GRACE = 30.0  # seconds after the end of a section's time until its process is killed
SHORTEST = 15.0  # seconds in which a process can begin something
MARGIN = 8.0  # seconds before the end in which sections end by themselves
CLOSING = 3.0  # seconds that are kept for the end
POLL = 0.2
NO_DEVICE = 4  # exit code of gpu_sections.py
LOG = "log.txt"
HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    until = time.time() + 60 * args.minutes - CLOSING
    results = Results(args.output)
    (args.output / LOG).unlink(missing_ok=True)
    options = dict(command=" ".join(["gpu.sh", *(argv or sys.argv[1:])]), quick=args.quick)
    results.start(options | dict(started=time.strftime("%Y-%m-%d %H:%M:%S")))
    left = [section for section in SECTIONS if section in args.only]
    try:
        while left:
            if until - time.time() < SHORTEST:
                skip(args.output, left)
                break
            if run_process(args, group_of(left), until) == NO_DEVICE:
                print("gpu.sh: torch finds no CUDA device", file=sys.stderr)
                return NO_DEVICE
            left = unfinished(args.output, left)
    except KeyboardInterrupt:
        close(args.output, left, "stopped by a signal")
        print("gpu.sh: stopped", flush=True)
        return 130
    print(f"results: {args.output / 'results.md'} and {args.output / 'results.json'}", flush=True)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("gpu-benchmark"), help="folder (default: gpu-benchmark)")
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections alone")
    about = "the embedded base's shape at 64 pixels and few steps: to see whether everything runs"
    add("--quick", action="store_true", help=about)
    add("--minutes", type=float, default=9.0, help="the most that all sections may take (default: 9)")
    return parser.parse_args(argv)


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def group_of(sections: list[str]) -> list[str]:
    """The first of these sections, and those after it that may run in its process."""
    group = sections[:1]
    if group[0] in FRESH:
        return group
    for section in sections[1:]:
        if section in FRESH:
            break
        group.append(section)
    return group


def run_process(args: argparse.Namespace, sections: list[str], until: float) -> int:
    """Run these sections in a process until it ends or is killed; its exit code."""
    after = list(SECTIONS)[list(SECTIONS).index(sections[-1]) + 1 :]
    later = sum(SECTIONS[section] for section in after if section in args.only)
    shares = [f"{section}={SECTIONS[section]}" for section in sections]
    command = [
        sys.executable,
        str(HERE / "gpu_sections.py"),
        str(args.output),
        str(until - MARGIN),
        str(later),
    ]
    with open(args.output / LOG, "a") as log:  # progress bars, warnings and tracebacks
        process = subprocess.Popen(
            [*command, str(int(args.quick)), *shares], env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=log
        )
    why = ""
    try:
        while process.poll() is None:
            time.sleep(POLL)
            if late(args.output, until):
                why = "its process was killed, since it did not end in its time"
                process.kill()
                process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode == NO_DEVICE:
        return NO_DEVICE
    why = why or ended(process.returncode)
    close(args.output, sections, why)
    if not any(Results(args.output).state(section) for section in sections):
        skip_one(args.output, sections[0], why)
    return process.returncode


def late(folder: Path, until: float) -> bool:
    """Whether the section that runs now has overrun its time, or all time is over."""
    now = time.time()
    if now > until:
        return True
    for section in Results(folder).found["sections"].values():
        if section["state"] == "running" and now > section["until"] + GRACE:
            return True
    return False


def ended(code: int) -> str:
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"its process ended {how}: see {LOG}"


def close(folder: Path, sections: list[str], why: str) -> None:
    """Note of a section that is still marked as running why its process is gone."""
    results = Results(folder)
    for section in sections:
        if results.state(section) == "running":
            results.end(section, "stopped", why)
            print(f"{TITLES[section]}: stopped: {why}", flush=True)


def unfinished(folder: Path, sections: list[str]) -> list[str]:
    results = Results(folder)
    return [section for section in sections if results.state(section) is None]


def skip(folder: Path, sections: list[str]) -> None:
    for section in sections:
        skip_one(folder, section, "no time was left")


def skip_one(folder: Path, section: str, why: str) -> None:
    Results(folder).end(section, "skipped", why)
    print(f"{TITLES[section]}: skipped: {why}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main())
