"""The speed of training steps beside that of an earlier commit, in turns.

    python scripts/benchmarks/against_commit.py 157a224 --rounds 4

Each round trains on the embedded base with GraLoRA and with LoRA, by the earlier commit and by this one.
Prints, for each adapter, the median ratio of a step's time to the earlier commit's, and its range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WARM_UP = 20  # steps that are not timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=4, help="default: 4")
    parser.add_argument("--steps", type=int, default=120, help="of each run (default: 120)")
    parser.add_argument("--rank", type=int, default=16, help="default: 16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(earlier), args.commit], check=True, capture_output=True)
        try:
            compare(args, earlier, Path(folder))
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)


def compare(args: argparse.Namespace, earlier: Path, folder: Path) -> None:
    print(f"steps of rank {args.rank} as a ratio to {args.commit}: median (lowest to highest of the rounds)")
    for adapter in ("gralora", "lora"):
        ratios = []
        for number in range(args.rounds):
            seconds = {}
            for checkout in (earlier, ROOT) if number % 2 else (ROOT, earlier):
                seconds[checkout] = step_seconds(checkout, adapter, args, folder)
            ratios.append(seconds[ROOT] / seconds[earlier])
        low, high = min(ratios), max(ratios)
        print(f"  {adapter}: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})", flush=True)


def step_seconds(checkout: Path, adapter: str, args: argparse.Namespace, folder: Path) -> float:
    """The median step of a run by the package in this checkout."""
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    options = dict(
        adapter=adapter,
        gralora_rank=args.rank,
        max_train_steps=args.steps,
        output_dir=run,
        latent_cache_dir=folder / f"cache-{checkout.name}",
    )
    command = [sys.executable, str(checkout / "scripts" / "train_sdxl.py"), "--skip_final_inference"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=env, cwd=folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["seconds"] for line in lines if line["step"] > WARM_UP)


if __name__ == "__main__":
    main()
