"""Do outlier channels cost LoRA its loss, and do GraLoRA's blocks confine the harm?

    python scripts/outliers.py --images build/sticker --state build/outliers    # several at once; resumes
    python scripts/outliers.py --report    # tables and plots, from docs/experiments/results/outliers

docs/experiments/README.md has the design and its rule, which were written before the test runs.
"""

import argparse
import dataclasses
import os
import shutil
import statistics
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from gralora_diffusion.cli.compare import arguments
from gralora_diffusion.evaluation.statistics import p_value, t_interval
from gralora_diffusion.experiments.markdown import markdown
from gralora_diffusion.experiments.plan import plan_sweep
from gralora_diffusion.experiments.plots import half_width, line_style, save_figure
from gralora_diffusion.experiments.rates import at_best_rate
from gralora_diffusion.experiments.results import RESULTS, line_of, read_results, shortened
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS, Setting, by_setting, per_run
from gralora_diffusion.experiments.sweep import do_sweep
from gralora_diffusion.files import write_text

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "outliers"
SCALES = (1, 10, 30, 100, 300, 1000, 3000)
TUNED_AT = (1, 1000)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
LORA, K2, K4, K8 = "our-lora", "gralora k2", "gralora k4", "gralora k8"
BESIDE = ("rslora", "dora", "pissa", "gora")
STRONG, SLICES = 1000, 4


class Stage(NamedTuple):
    """A part of the experiment: its options of `gralora compare`, and the scale whose best rates it takes."""

    options: str
    tuned_at: int | None = None


def scales(*values: int) -> str:
    return "--outliers " + " ".join(map(str, values))


VALIDATION, TEST = "--seeds 0 1", "--seeds 2 3 4 5 6 --part test"
OURS, EVERY_K = "--methods our-lora gralora", "--k 2 4 8"
STAGES = (
    Stage(f"{VALIDATION} {OURS} {EVERY_K} --ranks 64 {scales(*TUNED_AT)}"),
    Stage(f"{TEST} {OURS} {EVERY_K} --ranks 64 {scales(*TUNED_AT)}", 1000),
    Stage(f"{VALIDATION} {OURS} {EVERY_K} --ranks 64 {scales(STRONG)} --outlier_slices {SLICES}"),
    Stage(f"{TEST} {OURS} {EVERY_K} --ranks 64 {scales(STRONG)} --outlier_slices {SLICES}", 1000),
    Stage(f"{TEST} {OURS} {EVERY_K} --ranks 64 {scales(*TUNED_AT)}", 1),
    Stage(f"{TEST} {OURS} {EVERY_K} --ranks 64 {scales(100, 300, 3000, 30, 10)}", 1000),
    Stage(f"{TEST} {OURS} {EVERY_K} --ranks 64 {scales(100, 300, 3000, 30, 10)}", 1),
    Stage(f"{VALIDATION} {OURS} --k 2 4 --ranks 4 16 {scales(*TUNED_AT)}"),
    Stage(f"{TEST} {OURS} --k 2 4 --ranks 4 16 {scales(STRONG)}", 1000),
    Stage(f"{TEST} {OURS} --k 2 4 --ranks 4 16 {scales(1)}", 1),
    Stage(f"{VALIDATION} --methods {' '.join(BESIDE)} --ranks 64 {scales(*TUNED_AT)}"),
    Stage(f"{TEST} --methods {' '.join(BESIDE)} --ranks 64 {scales(STRONG)}", 1000),
    Stage(f"{TEST} --methods {' '.join(BESIDE)} --ranks 64 {scales(1)}", 1),
)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--images", type=Path, default=Path("build/sticker"), help="the style's images")
    parser.add_argument("--state", type=Path, default=Path("build/outliers"), help="folder of the sweep")
    parser.add_argument("--report", action="store_true", help="print the tables of the runs that are kept")
    args = parser.parse_args()
    if not args.report:
        begin(args.state)
        for stage in STAGES:
            do_stage(stage, args.images, args.state)
            keep(args.state)
    print(report())


def begin(state: Path) -> None:
    """Take up the runs that are kept, in a state folder without any."""
    state.mkdir(parents=True, exist_ok=True)
    with FileLock(state / ".begin.lock"):
        if (KEPT / RESULTS).is_file() and not (state / RESULTS).exists():
            shutil.copyfile(KEPT / RESULTS, state / f"{RESULTS}.part")
            os.replace(state / f"{RESULTS}.part", state / RESULTS)


def do_stage(stage: Stage, images: Path, state: Path) -> None:
    options = f"{stage.options} --loss_only --output {state} --instance_data_dir {images}"
    args = arguments([*options.split(), "--lrs", *map(str, RATES)])
    plan = plan_sweep(args)
    runs = plan.runs
    if stage.tuned_at:
        rates = best_rates(read_results(state), stage.tuned_at, args.outlier_slices)
        runs = [run for run in runs if run["lr"] == rates[arm_of(Setting.of(run))]]
    do_sweep(dataclasses.replace(plan, runs=runs), state)


class Arm(NamedTuple):
    """A method at a rank, in tables."""

    label: str
    rank: int


def arm_of(setting: Setting) -> Arm:
    return Arm(setting.label, setting.rank)


def best_rates(done: list[dict], scale: int, slices: int) -> dict[Arm, float]:
    """The rate of the lowest held-out loss on the validation runs with outliers of this scale."""
    found = {}
    for setting in at_best_rate([e for e in done if e["run"]["part"] == "validation"], HELD_OUT_LOSS):
        if planted(setting) == (scale, slices if scale > 1 else 0):
            found[arm_of(setting)] = setting.lr
    return found


def planted(setting: Setting) -> tuple[float, int]:
    return setting.outliers, setting.slices


def keep(state: Path) -> None:
    """The runs so far, in short, where the report reads them."""
    KEPT.mkdir(parents=True, exist_ok=True)
    lines = sorted(line_of(shortened(entry)) for entry in read_results(state))
    write_text(KEPT / RESULTS, "".join(lines))


def report() -> str:
    """The tables, written to table.md beside the plot."""
    done = read_results(KEPT)
    tests = by_setting([entry for entry in done if entry["run"]["part"] == "test"])
    parts = [
        ("Chosen rates, by the mean held-out loss of two validation seeds", rates_table(done)),
        ("Held-out loss x 1000, mean over the seeds", losses_table(done, tests)),
        ("Less LoRA's of the same seed, x 1000, 95 % t-intervals", differences_table(done, tests)),
        ("How much more outliers cost LoRA than the blocks, x 1000", interaction_table(done, tests)),
    ]
    text = "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts if table)
    write_text(KEPT / "table.md", text + "\n")
    plot(done, tests)
    return text


def rates_table(done: list[dict]) -> str:
    rows = []
    for scale, slices in ((1, 0), (STRONG, 1), (STRONG, SLICES)):
        rates = best_rates(done, scale, slices)
        validation = by_setting([e for e in done if e["run"]["part"] == "validation"])
        for arm in rates:
            cells = []
            for rate in RATES:
                values = []
                for setting, runs in validation.items():
                    if (arm_of(setting), planted(setting), setting.lr) == (arm, (scale, slices), rate):
                        values = list(per_run(runs, HELD_OUT_LOSS).values())
                cells.append(f"{1000 * statistics.mean(values):.2f}" if values else "failed")
            rows.append([scale, slices or "", arm.rank, arm.label, f"{rates[arm]:g}", *cells])
    heads = [f"loss at {rate:g}" for rate in RATES]
    return markdown(["outliers", "slices", "rank", "arm", "best rate", *heads], rows)


def losses_of(
    done: list[dict], tests: dict, arm: Arm, scale: float, slices: int, tuned_at: int
) -> dict[tuple, float]:
    """{(subject, seed): 1000 x held-out loss} of the arm's test runs at the rate that was chosen there."""
    rate = best_rates(done, tuned_at, max(slices, 1)).get(arm)
    for setting, runs in tests.items():
        if (arm_of(setting), planted(setting), setting.lr) == (
            arm,
            (scale, slices if scale > 1 else 0),
            rate,
        ):
            return {key: 1000 * value for key, value in per_run(runs, HELD_OUT_LOSS).items()}
    return {}


def cases(tests: dict) -> list[tuple]:
    """(rank, scale, slices, tuned at) of every comparison that has runs."""
    found = {(setting.rank, *planted(setting)) for setting in tests}
    return [(*case, tuned_at) for case in sorted(found) for tuned_at in TUNED_AT]


def arms_of(tests: dict, rank: int) -> list[Arm]:
    labels = {setting.label for setting in tests if setting.rank == rank}
    known = (LORA, K2, K4, K8, *BESIDE)
    return [Arm(label, rank) for label in known if label in labels]


def losses_table(done: list[dict], tests: dict) -> str:
    rows = []
    for rank, scale, slices, tuned_at in cases(tests):
        for arm in arms_of(tests, rank):
            values = list(losses_of(done, tests, arm, scale, slices, tuned_at).values())
            if values:
                mean = f"{statistics.mean(values):.2f}"
                spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
                rows.append(
                    [rank, f"{scale:g}", slices or "", tuned_at, arm.label, len(values), mean, spread]
                )
    return markdown(["rank", "outliers", "slices", "rate tuned at", "arm", "n", "mean", "sd"], rows)


def paired(first: dict, second: dict) -> list[float]:
    return [first[key] - second[key] for key in sorted(first, key=str) if key in second]


def interval_text(values: list[float]) -> str:
    low, high = t_interval(values)
    return f"{statistics.mean(values):+.2f} ({low:+.2f} to {high:+.2f})"


def differences_table(done: list[dict], tests: dict) -> str:
    rows = []
    for rank, scale, slices, tuned_at in cases(tests):
        base = losses_of(done, tests, Arm(LORA, rank), scale, slices, tuned_at)
        for arm in arms_of(tests, rank):
            values = paired(losses_of(done, tests, arm, scale, slices, tuned_at), base)
            if arm.label != LORA and len(values) > 1:
                cells = [len(values), interval_text(values), f"{p_value(values):.2g}"]
                rows.append([rank, f"{scale:g}", slices or "", tuned_at, arm.label, *cells])
    return markdown(["rank", "outliers", "slices", "rate tuned at", "arm", "n", "difference", "p"], rows)


def interaction_table(done: list[dict], tests: dict) -> str:
    """(arm - LoRA with outliers) - (arm - LoRA without), each at the rates tuned there."""
    rows = []
    for rank in sorted({setting.rank for setting in tests}):
        for arm in arms_of(tests, rank)[1:]:
            gaps = {}
            for scale, slices in ((1, 0), (STRONG, 1), (STRONG, SLICES)):
                own = losses_of(done, tests, arm, scale, slices, scale)
                base = losses_of(done, tests, Arm(LORA, rank), scale, slices, scale)
                gaps[scale, slices] = {key: own[key] - base[key] for key in own if key in base}
            for first, second, name in (
                ((STRONG, 1), (1, 0), f"{STRONG} minus none"),
                ((STRONG, SLICES), (STRONG, 1), f"{SLICES} slices minus one, at {STRONG}"),
            ):
                values = paired(gaps[first], gaps[second])
                if len(values) > 1:
                    rows.append([rank, arm.label, name, len(values), interval_text(values)])
    return markdown(["rank", "arm", "outliers", "n", "change of the difference from LoRA"], rows)


def plot(done: list[dict], tests: dict) -> None:
    """Held-out loss against the outliers' scale, at the rates tuned at 1000 and at 1."""

    def fill(*axes) -> None:
        for axis, tuned_at in zip(axes, reversed(TUNED_AT), strict=True):
            axis.set(xlabel=f"scale of the outliers; rates tuned at {tuned_at}", xscale="log")
            axis.set_ylabel("held-out loss x 1000")
            for number, label in enumerate((LORA, K2, K4, K8)):
                means = {}
                for scale in SCALES:
                    values = losses_of(done, tests, Arm(label, 64), scale, 1, tuned_at).values()
                    if values:
                        means[scale] = statistics.mean(values), half_width(list(values))
                shift = 1 + 0.04 * (number - 1.5)
                places = [scale * shift for scale in means]
                heights = [mean for mean, _ in means.values()]
                spreads = [spread for _, spread in means.values()]
                axis.errorbar(places, heights, spreads, capsize=3, label=label, **line_style(number))

    save_figure(KEPT / "loss-outliers.png", fill, columns=2)


if __name__ == "__main__":
    main()
