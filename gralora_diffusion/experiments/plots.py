"""The report of a sweep as PNGs: score against rank and against parameters, losses against steps, one score against another."""

import statistics
import textwrap
from pathlib import Path

from gralora_diffusion.evaluation.statistics import t_interval
from gralora_diffusion.experiments.analysis import (
    at_best_rate,
    by_setting,
    check_score,
    front_of,
    label,
    per_run,
    per_unit,
    shown_losses,
)
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError

PLOTS = ("score-rank", "score-parameters", "loss", "held-out", "front")
MARKERS = "osD^vP*X<>hdp"


def style(number: int, line: str = "-") -> dict:
    """Ten colours, solid, then the same ones dashed."""
    return dict(
        color=f"C{number % 10}",
        marker=MARKERS[number % len(MARKERS)],
        linestyle=line if number < 10 else "--",
    )


def wrapped(score: str) -> str:
    """A score's name on as many lines as let an axis have room for it."""
    return textwrap.fill(score, 44)


def plot(
    done: list[dict], score: str, folder: Path, unit: str = "seed", front: str | None = None
) -> list[Path]:
    """Write the plots, of the test runs where there are any; each line a method at its best rate, with Student's 95 % interval.

    Raises ConfigError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the plots need the extra plots: pip install 'gralora-diffusion[plots]'") from None
    check_score(done, front)
    part = "test" if any(d["run"]["part"] == "test" and "scores" in d for d in done) else "validation"
    lines = {}
    for (its_part, rank, method, k, _), runs in at_best_rate(done, score).items():
        if its_part == part:
            lines.setdefault(label(method, k), []).append((rank, runs))
    what, written = f"{wrapped(score)}\n({part} runs)", []

    def save(name: str, draw, columns: int = 1, **labels) -> None:
        figure = Figure(figsize=(7 * columns, 4.5), layout="constrained")
        axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
        draw(*axes)
        for axis in axes:
            axis.grid(alpha=0.3)
        figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        axes[0].set(**labels)
        with complete_or_absent(folder / f"{name}.png") as path:
            figure.savefig(path, format="png", dpi=120)
        written.append(folder / f"{name}.png")

    save(
        "score-rank",
        lambda axis: draw_scores(axis, lines, score, unit, "rank"),
        xlabel="rank of the LoRA with as many parameters",
        ylabel=what,
    )
    save(
        "score-parameters",
        lambda axis: draw_scores(axis, lines, score, unit, "parameters"),
        xlabel="trainable parameters",
        ylabel=what,
    )
    save(
        "loss",
        lambda axis: draw_losses(axis, lines),
        xlabel="step",
        ylabel="training loss, mean of 20 steps and of the runs",
    )
    if any("curve" in r for points in lines.values() for _, runs in points for r in runs):
        save(
            "held-out",
            lambda *axes: draw_curves(axes, lines),
            2,
            xlabel="step",
            ylabel="loss on held-out noise, mean of the runs",
        )
    if front:
        save(
            "front",
            lambda axis: draw_front(axis, done, part, score, front, unit),
            xlabel=what,
            ylabel=wrapped(front),
        )
    return written


def draw_scores(axis, lines: dict, score: str, unit: str, by: str) -> None:
    ticks = set()
    for number, (name, points) in enumerate(lines.items()):
        values = [per_unit(per_run(runs, score), unit) for _, runs in points]
        at = [rank if by == "rank" else runs[0]["parameters"] for rank, runs in points]
        ticks.update(at)
        at = [
            x * (1 + 0.012 * (number - (len(lines) - 1) / 2)) for x in at
        ]  # side by side, so that no interval hides another
        spread = [(i[1] - i[0]) / 2 if (i := t_interval(v)) else 0 for v in values]
        axis.errorbar(
            at, [statistics.mean(v) for v in values], spread, capsize=3, label=name, **style(number)
        )
    axis.set_xscale("log")
    apart = [
        x for x, before in zip(sorted(ticks), [0, *sorted(ticks)], strict=False) if x > 1.1 * before
    ]  # methods may miss a budget by a little
    axis.set_xticks(apart, [f"{x:,}" for x in apart])
    if len(apart) == 1:
        beside = 1 + 0.012 * (len(lines) + 1)
        axis.set_xlim(apart[0] / beside, apart[0] * beside)
    axis.minorticks_off()


def draw_losses(axis, lines: dict) -> None:
    """Every line at its highest rank."""
    for number, (name, points) in enumerate(lines.items()):
        rank, runs = points[-1]
        losses = [statistics.mean(step) for step in zip(*(shown_losses(r) for r in runs), strict=True)]
        steps = runs[0]["run"]["steps"]
        axis.plot(
            [steps * (i + 0.5) / len(losses) for i in range(len(losses))],
            losses,
            label=f"{name}, rank {rank}",
            markersize=4,
            **style(number),
        )


def draw_curves(axes, lines: dict) -> None:
    """Against steps, and against the seconds that steps and gradient pass took."""
    for number, (name, points) in enumerate(lines.items()):
        rank, runs = points[-1]
        runs = [r for r in runs if "curve" in r]
        if not runs:
            continue
        losses = [
            statistics.mean(look)
            for look in zip(*([loss for _, loss in r["curve"]] for r in runs), strict=True)
        ]
        steps = [step for step, _ in runs[0]["curve"]]
        pace = statistics.median(r["seconds_per_step"] for r in runs)
        before = statistics.median(r.get("gradients", {}).get("seconds", 0) for r in runs)
        axes[0].plot(steps, losses, label=f"{name}, rank {rank}", markersize=4, **style(number))
        axes[1].plot(
            [before + pace * step for step in steps],
            losses,
            label=f"{name}, rank {rank}",
            markersize=4,
            **style(number),
        )
    axes[1].set(xlabel="seconds, the gradient pass included")


def draw_front(axis, done: list[dict], part: str, score: str, front: str, unit: str) -> None:
    """Each method's points over its learning rates, from the base on: means over seeds or subjects, with the intervals of both scores."""
    groups = {}
    for (its_part, rank, method, k, _, _), runs in by_setting(done).items():
        if its_part == part:
            groups.setdefault(f"{label(method, k)}, rank {rank}", []).append(runs)
    for number, (name, settings) in enumerate(groups.items()):
        points = []
        for runs in settings:
            fronts = front_of(
                runs, score, front, unit
            )  # one learning rate: the point of the base, where there is one, and its own
            points += [[point[-1] for point in fronts.values()]] if fronts else []
            base = [point[0] for point in fronts.values() if len(point) > 1]
        if not points:
            continue
        spread = [
            [(i[1] - i[0]) / 2 if (i := t_interval([p[axis_] for p in group])) else 0 for group in points]
            for axis_ in (0, 1)
        ]
        middle = [[statistics.mean(p[axis_] for p in group) for group in points] for axis_ in (0, 1)]
        drawn = axis.errorbar(*middle, spread[1], spread[0], elinewidth=0.6, label=name, **style(number))
        if base:
            start = [statistics.mean(p[axis_] for p in base) for axis_ in (0, 1)]
            axis.plot([start[0], middle[0][0]], [start[1], middle[1][0]], ":", color=drawn[0].get_color())
            axis.plot(*start, "k+", markersize=10, label="the base" if number == 0 else None)
