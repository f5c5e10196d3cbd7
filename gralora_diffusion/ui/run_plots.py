"""The plots of Watch: the loss, and the scores of the sample images, each with a legend."""

from pathlib import Path

import gradio as gr
import pandas

from gralora_diffusion.training.report_charts import SCORES
from gralora_diffusion.ui import run_view

HELD_OUT = "validation loss"
BEST = "best step"
COLORS = {
    "each step": "#94a3b855",
    "smoothed": "#0d9488",
    HELD_OUT: "#d97706",
    BEST: "#7c3aed",
    "subject": "#3b82f6",
    "prompt": "#d97706",
    "copy": "#94a3b8",
    "score": "#0d9488",
}
LOSS_LINES = ("each step", "smoothed", HELD_OUT, BEST)
SCORE_LINES = (*SCORES, BEST)
STEPS = ",~f"  # the format of the axis; that of few steps has marks between two, which are not rounded
MAX_POINTS = 900  # of one line


def line_plot(lines: tuple[str, ...], y: str, title: str, height: int, name: str) -> gr.LinePlot:
    """A hidden plot of the columns "step" and `y`, with a line for each name in the column "line".

    Gradio's plot neither draws nor names a line that its first points did not have. So complete() gives
    each of `lines` a row, and legend_update() stands for the plot's legend, which would name them all.
    """
    return gr.LinePlot(
        visible=False,  # without points it would take steps for names, and keep to that
        x="step",
        x_axis_format=STEPS,
        y=y,
        color="line",
        color_map={line: COLORS[line] for line in lines},
        colors_in_legend=[],
        title=title,
        height=height,
        elem_id=name,
    )


def plot_update(points: pandas.DataFrame | None, lines: tuple[str, ...]) -> dict:
    """Of a line_plot() with these lines; it is hidden without points."""
    return gr.update(value=None if points is None else complete(points, lines), visible=points is not None)


def complete(points: pandas.DataFrame, lines: tuple[str, ...]) -> pandas.DataFrame:
    """Points with a row without a value for each of the lines that has none."""
    missing = [line for line in lines if line not in set(points["line"])]
    rows = [(points["step"].iloc[0], float("nan"), line) for line in missing]
    return pandas.DataFrame([*points.values.tolist(), *rows], columns=points.columns)


def legend_update(points: pandas.DataFrame | None) -> dict:
    """Of the HTML below a plot: its lines in their colors; it is hidden without points."""
    names = [] if points is None else points["line"].unique()
    items = [f'<span><i style="background: {COLORS[name]}"></i>{name}</span>' for name in names]
    return gr.update(value=f'<div class="legend">{"".join(items)}</div>', visible=bool(items))


def loss_points(run: Path, smoothing: float) -> pandas.DataFrame | None:
    """step, loss, line: each step's loss, its moving average (at most MAX_POINTS of each), the loss on
    held-out images, and a vertical line at the best step; None before the first step.
    """
    lines = [line for line in run_view.metrics(run) if line["loss"] == line["loss"]]  # without NaN
    if not lines:
        return None
    steps = [line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    every = max(1, -(-len(lines) // MAX_POINTS))
    rows = []
    for name, values in (("each step", losses), ("smoothed", run_view.smoothed(losses, smoothing))):
        points = list(zip(steps, values, strict=True))[::every]
        rows += [(step, value, name) for step, value in points]
    for line in run_view.measured(run):
        if "validation_loss" in line:
            rows.append((line["step"], line["validation_loss"], HELD_OUT))
    step = run_view.best_step(run)
    if step is not None:
        rows += [(step, 0.0, BEST), (step, max(loss for _, loss, _ in rows), BEST)]
    return pandas.DataFrame(rows, columns=["step", "loss", "line"])


def score_points(run: Path) -> pandas.DataFrame | None:
    """step, value, line: the scores of the sample images and the best step; None where there are none."""
    rows = []
    for line in run_view.measured(run):
        rows += [(line["step"], line[name], name) for name in SCORES if name in line]
    if not rows:
        return None
    step = run_view.best_step(run)
    if step is not None:
        values = [value for _, value, _ in rows]
        rows += [(step, min(values), BEST), (step, max(values), BEST)]
    return pandas.DataFrame(rows, columns=["step", "value", "line"])
