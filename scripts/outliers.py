"""Do outlier channels cost LoRA its loss, and do GraLoRA's blocks confine the harm?

    python scripts/outliers.py style --images build/sticker    # several at once; resumes
    python scripts/outliers.py robot
    python scripts/outliers.py style --report    # tables and plot of the runs in docs/experiments/results

docs/experiments/README.md has the designs and their rules, which were written before the test runs.
"""

import argparse
import dataclasses
import itertools
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from outliers_tables import BESIDE, SLICES, STRONG, Case, Tables, arm_of, best_rates

from gralora_diffusion.cli.compare import arguments
from gralora_diffusion.console import fail
from gralora_diffusion.evaluation.metric import Score
from gralora_diffusion.experiments.plan import plan_sweep
from gralora_diffusion.experiments.results import RESULTS, line_of, read_results, shortened
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS, TRAINING_LOSS, Setting
from gralora_diffusion.experiments.sweep import do_sweep
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.signals import Stopped

RESULTS_FOLDER = Path(__file__).parents[1] / "docs" / "experiments" / "results"


class Stage(NamedTuple):
    """A part of the experiment: its options of `gralora compare`, and the scale whose best rates it takes."""

    options: str
    tuned_at: int | None = None


class Task(NamedTuple):
    """What is trained on, the loss that scores, the rates that are tried, and the stages in their order."""

    options: str
    score: Score
    rates: tuple[float, ...]
    stages: tuple[Stage, ...]
    kept: Path


def scales(*values: int) -> str:
    return "--outliers " + " ".join(map(str, values))


VALIDATION, TEST = "--seeds 0 1", "--seeds 2 3 4 5 6 --part test"
OURS = "--methods our-lora gralora"
BLOCKS = f"{OURS} --k 2 4 8 --ranks 64"
IN_SLICES = f"{scales(STRONG)} --outlier_slices {SLICES}"
OTHERS = f"--methods {' '.join(BESIDE)} --ranks 64"
LOW_RANKS = f"{OURS} --k 2 4 --ranks 4 16"
STYLE = (
    Stage(f"{VALIDATION} {BLOCKS} {scales(1, STRONG)}"),
    Stage(f"{TEST} {BLOCKS} {scales(1, STRONG)}", STRONG),
    Stage(f"{VALIDATION} {BLOCKS} {IN_SLICES}"),
    Stage(f"{TEST} {BLOCKS} {IN_SLICES}", STRONG),
    Stage(f"{TEST} {BLOCKS} {scales(1, STRONG)}", 1),
    Stage(f"{TEST} {BLOCKS} {scales(100, 300, 3000, 30, 10)}", STRONG),
    Stage(f"{TEST} {BLOCKS} {scales(100, 300, 3000, 30, 10)}", 1),
    Stage(f"{VALIDATION} {LOW_RANKS} {scales(1, STRONG)}"),
    Stage(f"{TEST} {LOW_RANKS} {scales(STRONG)}", STRONG),
    Stage(f"{TEST} {LOW_RANKS} {scales(1)}", 1),
    Stage(f"{VALIDATION} {OTHERS} {scales(1, STRONG)}"),
    Stage(f"{TEST} {OTHERS} {scales(STRONG)}", STRONG),
    Stage(f"{TEST} {OTHERS} {scales(1)}", 1),
)
TWO_K = f"{OURS} --k 2 4 --ranks 64"
ROBOT = (
    Stage(f"{VALIDATION} {TWO_K} {scales(1, STRONG)}"),
    Stage(f"{TEST} {TWO_K} {scales(STRONG)}", STRONG),
    Stage(f"{TEST} {TWO_K} {scales(1)}", 1),
    Stage(f"{VALIDATION} {TWO_K} {IN_SLICES}"),
    Stage(f"{TEST} {TWO_K} {IN_SLICES}", STRONG),
    Stage(f"{TEST} {TWO_K} {scales(STRONG)}", 1),
    Stage(f"{TEST} {TWO_K} {scales(300, 100)}", STRONG),
)
TASKS = dict(
    style=Task("--loss_only", HELD_OUT_LOSS, (1e-4, 3e-4, 1e-3, 3e-3), STYLE, RESULTS_FOLDER / "outliers"),
    robot=Task(
        options="--training_loss",
        score=TRAINING_LOSS,
        rates=(1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        stages=ROBOT,
        kept=RESULTS_FOLDER / "outliers-robot",
    ),
)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--images", type=Path, default=Path("build/sticker"), help="the style's images")
    parser.add_argument("--state", type=Path, help="folder of the sweep (default: build/outliers-TASK)")
    parser.add_argument("--report", action="store_true", help="print the tables of the runs that are kept")
    args = parser.parse_args()
    task = TASKS[args.task]
    state = args.state or Path("build") / f"outliers-{args.task}"
    images = f"--instance_data_dir {args.images}" if args.task == "style" else ""
    try:
        if not args.report:
            begin(task, state)
            for stage in task.stages:
                do_stage(task, stage, f"{task.options} {images} --output {state}", state)
                keep(task, state)
        print(report(task))
    except Stopped as stop:
        fail(str(stop), 130)
    except ConfigError as error:
        fail(str(error))


def begin(task: Task, state: Path) -> None:
    """Take up the runs that are kept, in a state folder without any."""
    state.mkdir(parents=True, exist_ok=True)
    with FileLock(state / ".begin.lock"):
        if (task.kept / RESULTS).is_file() and not (state / RESULTS).exists():
            shutil.copyfile(task.kept / RESULTS, state / f"{RESULTS}.part")
            os.replace(state / f"{RESULTS}.part", state / RESULTS)


def do_stage(task: Task, stage: Stage, options: str, state: Path) -> None:
    args = arguments([*stage.options.split(), *options.split(), "--lrs", *map(str, task.rates)])
    plan = plan_sweep(args)
    runs, done = plan.runs, read_results(state)
    check_setting([*done, dict(run=runs[0])], task, state)
    if stage.tuned_at:
        rates = best_rates(done, task.score, stage.tuned_at, args.outlier_slices or 1)
        for arm in sorted({arm_of(Setting.of(run)) for run in runs} - rates.keys()):
            print(f"{arm.label} of rank {arm.rank} failed at every rate, and is left out")
        runs = [run for run in runs if run["lr"] == rates.get(arm_of(Setting.of(run)))]
    do_sweep(dataclasses.replace(plan, runs=runs), state)


def check_setting(done: list[dict], task: Task, folder: Path) -> None:
    """Raises ConfigError where the runs are of several images or bases."""
    if len({entry["run"]["setting"] for entry in done}) > 1:
        problem = f"{folder} holds runs on other images, or on another base"
        raise ConfigError(f"{problem}: give these images a --state of their own, and move {task.kept} away")


def keep(task: Task, state: Path) -> None:
    """The runs so far, in short, where the report reads them."""
    task.kept.mkdir(parents=True, exist_ok=True)
    lines = sorted(line_of(shortened(entry)) for entry in read_results(state))
    write_text(task.kept / RESULTS, "".join(lines))


def report(task: Task) -> str:
    """The tables, written to table.md beside the plot.  Raises ConfigError without runs."""
    done = read_results(task.kept)
    if not done:
        raise ConfigError(f"{task.kept} holds no runs to report")
    check_setting(done, task, task.kept)
    tables = Tables(done, task.score, cases_of(task))
    text = tables.text()
    write_text(task.kept / "table.md", text + "\n")
    tables.plot(task.kept / "loss-outliers.png")
    tables.plot_conditions(task.kept / "rates-outliers.png")
    return text


def cases_of(task: Task) -> list[Case]:
    """Every comparison of the task's test stages."""
    found = set()
    for stage in task.stages:
        if stage.tuned_at:
            args = arguments([*stage.options.split(), "--output", "x"])
            slices = args.outlier_slices or 1
            for rank, scale in itertools.product(args.ranks, args.outliers):
                found.add(Case(rank, scale, slices if scale > 1 else 0, stage.tuned_at))
    return sorted(found)


if __name__ == "__main__":
    main()
