"""report.html: one page for a run, without network: losses, evaluations, sample images, files and config."""

import json
from pathlib import Path

from gralora_diffusion.files import render, write_text
from gralora_diffusion.formats.preview import jpeg_of
from gralora_diffusion.training.memory import disk_used
from gralora_diffusion.training.report_charts import best_evaluation, evaluation_charts, evaluation_rows
from gralora_diffusion.training.run_folder import (
    public_options,
    read_evaluations,
    read_metrics,
    read_status,
)

WIDTH = 1000  # of the loss curve, in the SVG's own units
HEIGHT = 280
THUMBNAIL = 320  # pixels of the longer side of a sample image
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 5, 25  # margins of the plot inside it
POINTS = 1000  # a curve has at most about so many
COSTS = {  # of a RunCost
    "seconds": "seconds",
    "memory_mb": "memory in MB",
    "reserved_mb": "memory reserved on the GPU in MB",
    "disk_mb": "disk in MB",
}


def write_report(run: Path) -> None:
    """Write run/report.html from what the folder holds."""
    config = json.loads((run / "config.json").read_text())
    metrics, evaluations = read_metrics(run), read_evaluations(run)
    best = best_evaluation(evaluations, config.get("keep_best"))
    options = public_options(config.pop("adapter") | config)
    page = render(
        "training/templates/report.html",
        title=run.resolve().name,
        summary=summary(options, metrics),
        curve=loss_curve(metrics),
        charts=evaluation_charts(evaluations, best),
        evaluations=evaluation_rows(evaluations, best) if evaluations else None,
        samples=sample_images(run),
        files=file_sizes(run),
        forecast=forecast_and_actual(read_status(run)),
        options={name: json.dumps(value) for name, value in options.items()},
    )
    write_text(run / "report.html", page)


def summary(options: dict, metrics: list[dict]) -> str:
    base = options["pretrained_model_name_or_path"] or "the embedded base"
    seconds = sum(line["seconds"] for line in metrics)
    speed = len(metrics) / max(seconds, 1e-9)
    adapter = f"{options['method']} of rank {options['rank']} on {base}"
    return f"{adapter}: {len(metrics)} steps in {seconds / 60:.1f} minutes ({speed:.2f} steps/s)."


def loss_curve(metrics: list[dict]) -> dict | None:
    """What the template draws: each step's loss and its running mean as points, and the ticks of the axes."""
    if not metrics:
        return None
    steps = [line["step"] for line in metrics]
    losses = [line["loss"] for line in metrics]
    smoothed = losses[:1]
    for loss in losses[1:]:
        smoothed.append(0.95 * smoothed[-1] + 0.05 * loss)
    highest = sorted(losses)[int(0.98 * (len(losses) - 1))] * 1.1 or 1  # the largest 2 % are cut off
    last_step = max(steps[-1], 2)
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def height_of(loss: float) -> float:
        return TOP + plot_height * (1 - min(loss, highest) / highest)

    def points(values: list[float]) -> str:
        pairs = list(zip(steps, values, strict=True))[:: max(1, len(values) // POINTS)]
        places = []
        for step, value in pairs:
            x = LEFT + plot_width * (step - 1) / (last_step - 1)
            places.append(f"{x:.1f},{height_of(value):.1f}")
        return " ".join(places)

    ticks = [dict(y=round(height_of(value)), label=f"{value:.3g}") for value in (0, highest / 2, highest)]
    curve = dict(width=WIDTH, height=HEIGHT, ticks=ticks, last_step=last_step)
    return curve | dict(losses=points(losses), smoothed=points(smoothed))


def sample_images(run: Path) -> dict[int, dict[str, str]]:
    """{step: {path in the run folder: thumbnail}}."""
    found = {}
    for folder in sorted((run / "samples").glob("step-*")):
        if folder.is_dir():
            paths = sorted(folder.glob("*.png"))
            found[int(folder.name.removeprefix("step-"))] = {
                f"samples/{folder.name}/{path.name}": jpeg_of(path, THUMBNAIL) for path in paths
            }
    return found


def file_sizes(run: Path) -> dict[str, str]:
    """{file or folder: its size in words}."""
    sizes = {}
    for path in sorted(run.iterdir()):
        if not path.name.startswith("."):
            size = path.stat().st_size if path.is_file() else disk_used(path)
            sizes[path.name] = f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    return sizes


def forecast_and_actual(status: dict) -> list[tuple[str, str, str]]:
    """(quantity, forecast, actual), once both are known."""
    expected, actual = status.get("forecast"), status.get("actual")
    if not expected or not actual:
        return []
    rows = []
    for name, label in COSTS.items():
        if name in actual:
            rows.append((label, f"{expected[name]:,.1f}" if name in expected else "", f"{actual[name]:,.1f}"))
    return rows
