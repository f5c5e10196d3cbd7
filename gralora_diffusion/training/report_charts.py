"""Charts of a run for report.html and the page, as points in an SVG's own units."""

import itertools
import math
from collections.abc import Callable

from gralora_diffusion.training.best import best_of

WIDTH = 640
HEIGHT = 240
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 8, 26  # margins of the plot inside it
POINTS = 1000  # a curve has at most so many
READINGS = 60  # of each line, at most so many values are displayed under the pointer
SCORES = ("subject", "prompt", "copy", "score")
COLORS = {"each step": "var(--f)", "smoothed": "var(--a)", "validation loss": "var(--c)"}
COLORS |= {"subject": "var(--b)", "prompt": "var(--c)", "copy": "var(--f)", "score": "var(--d)"}
FAINT = ("each step",)


def best_evaluation(evaluations: list[dict], keep_best: str | None) -> dict | None:
    """The evaluation that --keep_best chooses; without it that of the lowest loss, else the highest score."""
    if keep_best:
        return best_of(evaluations, keep_best)
    return best_of(evaluations, "loss") or best_of(evaluations, "score")


def loss_chart(metrics: list[dict]) -> dict | None:
    """A chart of each step's loss and its running mean; None without steps. The largest 2 % are cut off."""
    if not metrics:
        return None
    losses = [line["loss"] for line in metrics]
    smoothed = list(itertools.accumulate(losses, smooth))
    bounds = (0, highest_drawn(losses, smoothed))
    return dict(title="Loss") | chart(loss_lines(metrics, smoothed), None, first=1, bounds=bounds)


def smooth(mean: float, loss: float) -> float:
    """The running mean of the losses after one more; the first is that of the first step."""
    return 0.95 * mean + 0.05 * loss


def loss_lines(metrics: list[dict], smoothed: list[float]) -> dict[str, list[tuple[int, float]]]:
    """{"each step", "smoothed": (step, loss) of at most POINTS steps, the last one among them}."""
    steps = [line["step"] for line in metrics]
    each = list(zip(steps, [line["loss"] for line in metrics], strict=True))
    return {
        "each step": thinned(each, POINTS),
        "smoothed": thinned(list(zip(steps, smoothed, strict=True)), POINTS),
    }


def thinned(points: list, most: int) -> list:
    """At most so many points, evenly and with the last one."""
    return points[::-1][:: -(-len(points) // most)][::-1]


def highest_drawn(losses: list[float], smoothed: list[float]) -> float:
    """The upper end of a chart of the loss, above which single losses, 2 % of them, may be."""
    return max(1.1 * sorted(losses)[math.ceil(0.98 * (len(losses) - 1))], *smoothed) or 1


def evaluation_charts(evaluations: list[dict], best: dict | None) -> list[dict]:
    """A chart of the loss on held-out images, and one of the scores, as far as there are any.

    best: the evaluation whose step is marked.
    """
    losses = {"validation loss": points_of(evaluations, "validation_loss")}
    scores = {name: points_of(evaluations, name) for name in SCORES}
    found = []
    for title, lines in (("Loss on held-out images", losses), ("Scores of the sample images", scores)):
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            found.append(dict(title=title) | chart(lines, best["step"] if best else None))
    return found


def points_of(evaluations: list[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) where it was measured."""
    return [(line["step"], line[name]) for line in evaluations if is_number(line.get(name))]


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def chart(
    lines: dict[str, list[tuple[int, float]]],
    mark: int | None,
    first: int = 0,
    bounds: tuple[float, float] | None = None,
) -> dict:
    """What the template draws of {name: points}: polylines, ticks, readings, and a mark at a step.

    first: the step at the left end; bounds: (lowest, highest) value, by default those of the points, beyond
    which values are drawn at the edge.  A mark that lies outside is left out.
    """
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    low, high = map(float, bounds or (min(values), max(values)))
    if high == low:
        margin = max(0.5, abs(high) / 2)
        low, high = low - margin, high + margin
    last = max(*steps, first + 1)

    def x_of(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)

    def y_of(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(value, low), high)) / (high - low)

    drawn = []
    for name, points in lines.items():
        places = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in points)
        opacity = 0.35 if name in FAINT else 1
        drawn.append(dict(name=name, points=places, color=COLORS[name], opacity=opacity))
    ticks = [dict(y=round(y_of(value)), label=f"{value:.3g}") for value in (low, (low + high) / 2, high)]
    marked = None
    if mark is not None and first <= mark <= last:
        marked = dict(x=round(x_of(mark), 1), step=mark, side="end" if 2 * mark > first + last else "start")
    sizes = dict(width=WIDTH, height=HEIGHT, left=LEFT, right=WIDTH - RIGHT, top=TOP, bottom=HEIGHT - BOTTOM)
    sizes |= dict(lines=drawn, ticks=ticks, readings=readings(lines, mark, x_of))
    return sizes | dict(first_step=first, last_step=last, mark=marked)


def readings(lines: dict, mark: int | None, x_of: Callable[[int], float]) -> list[dict]:
    """Strips of a chart around some steps, also the marked one, with the values of the step as a text."""
    values = {}
    chosen = {mark}
    for name, points in lines.items():
        chosen |= {step for step, _ in thinned(points, READINGS)}
        for step, value in points:
            values.setdefault(step, {})[name] = value
    steps = sorted(chosen & values.keys())
    between = [(x_of(one) + x_of(other)) / 2 for one, other in itertools.pairwise(steps)]
    edges = [LEFT, *between, WIDTH - RIGHT]
    found = []
    for step, (left, right) in zip(steps, itertools.pairwise(edges), strict=True):
        text = ", ".join(f"{name} {value:.4g}" for name, value in values[step].items())
        found.append(dict(x=round(left, 1), width=round(right - left, 1), text=f"step {step}: {text}"))
    return found


def evaluation_rows(evaluations: list[dict], best: dict | None) -> tuple[list[str], list]:
    """(columns, [(whether it is the best, cells)]) of a table of all evaluations."""
    names = ("validation_loss", "subject", "prompt", "copy", "copies", "score")
    columns = [name for name in names if any(is_number(line.get(name)) for line in evaluations)]
    rows = []
    for line in evaluations:
        cells = [str(line["step"])]
        for name in columns:
            value = line.get(name)
            cells.append(f"{value:.4g}" if is_number(value) else "")
        rows.append((line is best, cells))
    return ["step", *(name.replace("_", " ") for name in columns)], rows
