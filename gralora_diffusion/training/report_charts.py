"""Charts of a run's evaluations for report.html, as points in an SVG's own units."""

from gralora_diffusion.training.best import best_of

WIDTH = 1000
HEIGHT = 280
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 5, 25  # margins of the plot inside it
SCORES = ("subject", "prompt", "copy", "score")
COLORS = {"validation loss": "#0d9488", "subject": "#3b82f6", "prompt": "#d97706", "copy": "#94a3b8"}
COLORS |= {"score": "#7c3aed"}


def best_evaluation(evaluations: list[dict], keep_best: str | None) -> dict | None:
    """The evaluation that --keep_best chooses; without it, that of the lowest loss."""
    return best_of(evaluations, keep_best or "loss")


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


def chart(lines: dict[str, list[tuple[int, float]]], mark: int | None) -> dict:
    """What the template draws of {name: points}: polylines, ticks, and a mark at a step."""
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    last = max(*steps, 1)

    def x_of(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y_of(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    drawn = []
    for name, points in lines.items():
        places = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in points)
        drawn.append(dict(name=name, points=places, color=COLORS[name]))
    ticks = [dict(y=round(y_of(value)), label=f"{value:.3g}") for value in (low, (low + high) / 2, high)]
    marked = None if mark is None else dict(x=round(x_of(mark), 1), step=mark)
    sizes = dict(width=WIDTH, height=HEIGHT, left=LEFT, top=TOP, bottom=HEIGHT - BOTTOM)
    return sizes | dict(lines=drawn, ticks=ticks, last_step=last, mark=marked)


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
