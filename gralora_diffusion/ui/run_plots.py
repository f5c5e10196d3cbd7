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
STEPS = ",~f"  # format of the step axis: with few steps, ticks fall between whole steps and are not rounded
MAX_POINTS = 900  # of the line of each step, and of the smoothed one
Point = tuple[int, float, str]  # step, value, line


def line_plot(lines: tuple[str, ...], y: str, title: str, height: int, elem_id: str) -> gr.LinePlot:
    """A hidden plot of the columns "step" and `y`, with a line for each name in the column "line".

    Gradio's plot neither draws nor names a line that its first points did not have.  So plot_update() gives
    each of `lines` a row, and legend_update() replaces the plot's own legend, which would name all of them.
    """
    return gr.LinePlot(
        visible=False,  # an empty plot would take steps for names, and go on doing so
        x="step",
        x_axis_format=STEPS,
        y=y,
        color="line",
        color_map={line: COLORS[line] for line in lines},
        colors_in_legend=[],
        title=title,
        height=height,
        elem_id=elem_id,
    )


def plot_update(points: list[Point], lines: tuple[str, ...], y: str) -> dict:
    """The update of a line_plot() of `lines` and `y`; without points it is hidden."""
    if not points:
        return gr.update(value=None, visible=False)
    drawn = {line for *_, line in points}
    first_step = points[0][0]
    empty = [(first_step, float("nan"), line) for line in lines if line not in drawn]
    return gr.update(value=pandas.DataFrame(points + empty, columns=["step", y, "line"]), visible=True)


def legend_update(points: list[Point]) -> dict:
    """The update of the legend below a plot: its lines in their colors; without points it is hidden."""
    names = dict.fromkeys(line for *_, line in points)
    items = [f'<span><i style="background: {COLORS[name]}"></i>{name}</span>' for name in names]
    return gr.update(value=f'<div class="legend">{"".join(items)}</div>', visible=bool(items))


def loss_points(run: Path, smoothing: float) -> list[Point]:
    """Each step's loss, its average, the loss on held-out images, and a vertical line at the best step.

    smoothing: the weight of the past in the average.  [] before the first step.
    """
    lines = run_view.metrics(run)
    if not lines:
        return []
    steps = [line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    every = max(1, -(-len(lines) // MAX_POINTS))
    points = []
    for name, values in (("each step", losses), ("smoothed", run_view.smoothed(losses, smoothing))):
        found = list(zip(steps, values, strict=True))[::every]
        points += [(step, float(value), name) for step, value in found]
    for line in run_view.measured(run):
        if "validation_loss" in line:
            points.append((line["step"], float(line["validation_loss"]), HELD_OUT))
    step = run_view.best_step(run)
    if step is not None:
        points += [(step, 0.0, BEST), (step, max(loss for _, loss, _ in points), BEST)]
    return points


def score_points(run: Path) -> list[Point]:
    """The scores of the sample images, and a vertical line at the best step; [] where there are none."""
    points = []
    for line in run_view.measured(run):
        points += [(line["step"], float(line[name]), name) for name in SCORES if name in line]
    step = run_view.best_step(run)
    if points and step is not None:
        values = [value for _, value, _ in points]
        points += [(step, min(values), BEST), (step, max(values), BEST)]
    return points
