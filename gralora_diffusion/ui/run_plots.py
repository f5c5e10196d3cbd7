"""The plots of Watch, drawn as those of report.html: the loss, and the scores of the sample images.

They are SVG in HTML: Gradio's own plot keeps the points that it had when new ones come while it is laid out.
"""

from pathlib import Path

import gradio as gr

from gralora_diffusion.files import render
from gralora_diffusion.training.report_charts import SCORES, chart, highest_drawn, loss_lines, points_of
from gralora_diffusion.ui import run_view

HELD_OUT = "validation loss"


def loss_plot(run: Path, smoothing: float) -> dict | None:
    """A chart of each step's loss, its average, the loss on held-out images, and a mark at the best step.

    smoothing: the weight of the past in the average.  None before the first step.
    """
    metrics = run_view.metrics(run)
    if not metrics:
        return None
    losses = [line["loss"] for line in metrics]
    smoothed = run_view.smoothed(losses, smoothing)
    lines = loss_lines(metrics, smoothed)
    highest = highest_drawn(losses, smoothed)
    held_out = points_of(run_view.measured(run), "validation_loss")
    if held_out:
        lines[HELD_OUT] = held_out
        highest = max(highest, *(loss for _, loss in held_out))
    first = min(step for points in lines.values() for step, _ in points)
    return dict(title="Loss") | chart(lines, run_view.best_step(run), first, bounds=(0, highest))


def score_plot(run: Path) -> dict | None:
    """A chart of the scores of the sample images, with a mark at the best step; None where there are none."""
    evaluations = run_view.measured(run)
    lines = {name: points for name in SCORES if (points := points_of(evaluations, name))}
    if not lines:
        return None
    return dict(title="Scores of the sample images") | chart(lines, run_view.best_step(run))


def plot_update(plot: dict | None) -> dict:
    """The update of a gr.HTML with a chart; without one it is hidden."""
    html = render("ui/templates/plot.html", chart=plot) if plot else ""
    return gr.update(value=html, visible=bool(plot))
