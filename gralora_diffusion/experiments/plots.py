"""The report of a sweep as PNGs: scores by rank and by parameters, losses by step, fronts of two scores."""

import importlib.util
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path

from gralora_diffusion.console import note
from gralora_diffusion.evaluation.metric import Score
from gralora_diffusion.evaluation.statistics import t_interval
from gralora_diffusion.experiments.fronts import Point, front_of
from gralora_diffusion.experiments.rates import at_best_rate
from gralora_diffusion.experiments.results import block_losses
from gralora_diffusion.experiments.settings import by_setting, per_run, per_unit
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError

PLOTS = ("score-rank", "score-parameters", "loss", "held-out", "front")
MARKERS = "osD^vP*X<>hdp"
APART = 0.012  # of x, between the points of two methods, so that no interval hides another

Lines = dict[str, list[tuple[int, list[dict]]]]  # {method: [(rank, its runs at the best rate)]}


def plot_sweep(
    done: list[dict], score: Score, folder: Path, unit: str = "seed", front: Score | None = None
) -> list[Path]:
    """Write the plots, of test runs where there are any; each line a method at its best rate.

    With Student's 95 % intervals.  Without matplotlib none, and a note.
    """
    has_tests = any(entry["run"]["part"] == "test" and "scores" in entry for entry in done)
    part = "test" if has_tests else "validation"
    lines = {}
    for setting, runs in at_best_rate(done, score).items():
        if setting.part == part:
            lines.setdefault(setting.label, []).append((setting.rank, runs))
    score_label = f"{wrapped(score)}\n({part} runs)"

    def by_rank(axis) -> None:
        axis.set(xlabel="rank of the LoRA with as many parameters", ylabel=score_label)
        plot_scores(axis, lines, score, unit, rank_of)

    def by_parameters(axis) -> None:
        axis.set(xlabel="trainable parameters", ylabel=score_label)
        plot_scores(axis, lines, score, unit, parameters_of)

    def losses(axis) -> None:
        axis.set(xlabel="step", ylabel="training loss, mean of 20 steps and of the runs")
        plot_losses(axis, lines)

    def held_out(by_step, by_time) -> None:
        by_step.set(xlabel="step", ylabel="loss on held-out noise, mean of the runs")
        by_time.set(xlabel="seconds, the gradient pass included")
        plot_curves(by_step, by_time, lines)

    def fronts(axis) -> None:
        axis.set(xlabel=score_label, ylabel=wrapped(front))
        plot_fronts(axis, done, part, score, front, unit)

    if importlib.util.find_spec("matplotlib") is None:
        note("no plots, since the package matplotlib is missing: pip install 'gralora-diffusion[plots]'")
        return []
    figures = {"score-rank": by_rank, "score-parameters": by_parameters, "loss": losses}
    has_curves = any("curve" in entry for line in lines.values() for _, runs in line for entry in runs)
    if has_curves:
        figures["held-out"] = held_out
    if front:
        figures["front"] = fronts
    written = []
    for name, fill in figures.items():
        path = folder / f"{name}.png"
        save_figure(path, fill, columns=2 if fill is held_out else 1)
        written.append(path)
    return written


def save_figure(path: Path, fill: Callable, columns: int) -> None:
    """A figure of so many plots side by side, which fill(*axes) fills, with one legend."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the plots need the extra plots: pip install 'gralora-diffusion[plots]'") from None
    figure = Figure(figsize=(7 * columns, 4.5), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    fill(*axes)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    with complete_or_absent(path) as part:
        figure.savefig(part, format="png", dpi=120)


def line_style(number: int) -> dict:
    """Ten colors, solid, then the same ones dashed."""
    return dict(
        color=f"C{number % 10}",
        marker=MARKERS[number % len(MARKERS)],
        linestyle="-" if number < 10 else "--",
    )


def wrapped(score: Score) -> str:
    """A score's name on as many lines as fit along an axis."""
    return textwrap.fill(str(score), 44)


def half_width(values: list[float]) -> float:
    """Of Student's interval; 0 for one value."""
    interval = t_interval(values)
    return (interval[1] - interval[0]) / 2 if interval else 0


def rank_of(rank: int, runs: list[dict]) -> int:
    return rank


def parameters_of(rank: int, runs: list[dict]) -> int:
    return runs[0]["parameters"]


def plot_scores(axis, lines: Lines, score: Score, unit: str, x_of: Callable) -> None:
    """Each method's mean score at x_of(rank, runs)."""
    ticks = set()
    for number, (name, line) in enumerate(lines.items()):
        places = [x_of(rank, runs) for rank, runs in line]
        ticks.update(places)
        shift = 1 + APART * (number - (len(lines) - 1) / 2)
        values = [per_unit(per_run(runs, score), unit) for _, runs in line]
        axis.errorbar(
            [x * shift for x in places],
            [statistics.mean(v) for v in values],
            [half_width(v) for v in values],
            capsize=3,
            label=name,
            **line_style(number),
        )
    axis.set_xscale("log")
    apart = []  # methods may miss a budget by a little
    before = 0
    for x in sorted(ticks):
        if x > 1.1 * before:
            apart.append(x)
        before = x
    axis.set_xticks(apart, [f"{x:,}" for x in apart])
    if len(apart) == 1:
        margin = 1 + APART * (len(lines) + 1)
        axis.set_xlim(apart[0] / margin, apart[0] * margin)
    axis.minorticks_off()


def plot_losses(axis, lines: Lines) -> None:
    """Every method at its highest rank."""
    for number, (name, line) in enumerate(lines.items()):
        rank, runs = line[-1]
        losses = means_of_columns([block_losses(entry) for entry in runs])
        steps = runs[0]["run"]["steps"]
        middles = [steps * (i + 0.5) / len(losses) for i in range(len(losses))]
        axis.plot(middles, losses, label=f"{name}, rank {rank}", markersize=4, **line_style(number))


def plot_curves(by_step, by_time, lines: Lines) -> None:
    """Held-out loss by step, and by the seconds that steps and gradient pass took."""
    for number, (name, line) in enumerate(lines.items()):
        rank, runs = line[-1]
        runs = [entry for entry in runs if "curve" in entry]
        if not runs:
            continue
        curves = [list(zip(*entry["curve"], strict=True)) for entry in runs]  # [(steps, losses)]
        losses = means_of_columns([losses for _, losses in curves])
        steps = curves[0][0]
        pace = statistics.median(entry["seconds_per_step"] for entry in runs)
        before = statistics.median(entry.get("gradients", {}).get("seconds", 0) for entry in runs)
        seconds = [before + pace * step for step in steps]
        style = dict(label=f"{name}, rank {rank}", markersize=4) | line_style(number)
        by_step.plot(steps, losses, **style)
        by_time.plot(seconds, losses, **style)


def means_of_columns(rows: list) -> list[float]:
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def plot_fronts(axis, done: list[dict], part: str, score: Score, front: Score, unit: str) -> None:
    """Each method's points over its learning rates, from the base on, with the intervals of both scores."""
    groups = {}
    for setting, runs in by_setting(done).items():
        if setting.part == part:
            groups.setdefault(f"{setting.label}, rank {setting.rank}", []).append(runs)
    for number, (name, rates) in enumerate(groups.items()):
        points, base = [], []  # [[a point for each unit] for each rate]; [the base's for each unit]
        for runs in rates:
            fronts = front_of(runs, score, front, unit)  # of one rate: the base's point, if any, and its own
            if fronts:
                points.append([curve[-1] for curve in fronts.values()])
            base = [curve[0] for curve in fronts.values() if len(curve) > 1]
        if not points:
            continue
        x, x_spread = coordinate(points, 0)
        y, y_spread = coordinate(points, 1)
        line = axis.errorbar(x, y, y_spread, x_spread, elinewidth=0.6, label=name, **line_style(number))
        if base:
            (start_x,), _ = coordinate([base], 0)
            (start_y,), _ = coordinate([base], 1)
            axis.plot([start_x, x[0]], [start_y, y[0]], ":", color=line[0].get_color())
            label = "the base" if number == 0 else None
            axis.plot(start_x, start_y, "k+", markersize=10, label=label)


def coordinate(groups: list[list[Point]], which: int) -> tuple[list[float], list[float]]:
    """(mean, half width of the interval) of x (0) or y (1) in each group of points."""
    means, spreads = [], []
    for group in groups:
        values = [point[which] for point in group]
        means.append(statistics.mean(values))
        spreads.append(half_width(values))
    return means, spreads
