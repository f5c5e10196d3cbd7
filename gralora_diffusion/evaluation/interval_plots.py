"""Scores with their intervals as plots of an evaluation's page: one for each score of an encoder."""

from gralora_diffusion.evaluation.metric import METRICS
from gralora_diffusion.evaluation.score_rows import score_cell

MARGIN = 0.06  # of the width, on each side
COLORS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)", "var(--f)")


def interval_plots(entries: list[dict], short: dict[str, str], signed: bool = False) -> list[dict]:
    """A plot for each (score, encoder): its title, its ends, and a row for each set of images.

    entries: the scores or the differences of an evaluation; short: names of encoders. Places are in percent
    of the plot's width. signed: values are differences, and zero is marked where it is inside.
    """
    colors = {}
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for entry in entries:
        colors.setdefault(entry["run"], COLORS[len(colors) % len(COLORS)])
        groups.setdefault((entry["score"], entry["label"], entry["encoder"]), []).append(entry)
    plots = []
    for (score, label, encoder), own in groups.items():
        low, high = ends_of(own)
        rows = []
        for entry in own:
            row = dict(name=entry["run"], color=colors[entry["run"]])
            row["text"] = score_cell(entry["mean"], signed)
            row["mean"] = place(entry["mean"], low, high)
            has_interval = entry["low"] is not None
            row["low"] = place(entry["low"], low, high) if has_interval else row["mean"]
            row["high"] = place(entry["high"], low, high) if has_interval else row["mean"]
            rows.append(row)
        zero = place(0, low, high) if signed and low < 0 < high else None
        better = f"{METRICS[score].better} is better"
        ends = dict(low=score_cell(low, signed), high=score_cell(high, signed), zero=zero)
        if "against" in own[0]:
            label = f"{label}: difference from {own[0]['against']}"
        plots.append(dict(title=label, encoder=short[encoder], better=better, rows=rows) | ends)
    return plots


def ends_of(entries: list[dict]) -> tuple[float, float]:
    """The lowest and the highest value to be drawn."""
    values = []
    for entry in entries:
        values += [entry[name] for name in ("mean", "low", "high") if entry[name] is not None]
    low, high = min(values), max(values)
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def place(value: float, low: float, high: float) -> float:
    """In percent of the plot's width."""
    return round(100 * (MARGIN + (1 - 2 * MARGIN) * (value - low) / (high - low)), 2)
