"""The entanglement report as PNG plots and as one HTML page that needs no network."""

import base64
import html
import io
from pathlib import Path

from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.report import STYLE


def plots(rows: dict[str, dict], facts: dict) -> dict[str, bytes]:
    """{file name: PNG}; raises ConfigError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the plots need matplotlib: pip install 'gralora-diffusion[plots]'") from None
    means, drawn = facts["means"], {}

    def figure(name: str, title: str, x: str, y: str, width: float = 6):
        made = Figure(figsize=(width, 3.6), layout="constrained")
        axes = made.subplots()
        axes.set(title=title, xlabel=x, ylabel=y)
        drawn[name] = made
        return axes

    axes = figure(
        "alignment.png", "Cosine of fused update and gradient", "k (1 is LoRA)", "mean over input columns"
    )
    for r, by_k in means.items():
        (line,) = axes.plot(list(by_k), [row["mean"] for row in by_k.values()], marker="o", label=f"rank {r}")
        for name, style in (("inside", ":"), ("outside", "--")):
            points = [(k, row[name]) for k, row in by_k.items() if row[name] is not None]
            axes.plot(
                *zip(*points, strict=True), style, color=line.get_color(), label=f"rank {r}, {name} the strip"
            )
    axes.set_xticks(sorted({k for by_k in means.values() for k in by_k}))
    axes.legend(fontsize=7)
    axes = figure("timesteps.png", "By timestep", "bin of timesteps, low noise first", "cosine")
    for r, by_k in means.items():
        for k, row in by_k.items():
            axes.plot(range(1, len(row["by_bin"]) + 1), row["by_bin"], marker=".", label=f"rank {r}, k {k}")
    axes.set_xticks(range(1, facts["bins"] + 1))
    axes.legend(fontsize=7)
    axes = figure("outliers.png", "Largest input channel against the mean one", "layer", "times the mean", 9)
    colours = ["tab:red" if row["outlier"]["stable"] else "tab:gray" for row in rows.values()]
    axes.bar(range(len(rows)), [row["outlier"]["ratio"] for row in rows.values()], color=colours)
    axes = figure("effective_rank.png", "Effective rank", "layer", "effective rank", 9)
    axes.plot([row["effective_rank"] for row in rows.values()], ".", label="gradient")
    if any("delta_effective_rank" in row for row in rows.values()):
        axes.plot([row.get("delta_effective_rank") for row in rows.values()], "x", label="trained delta")
    axes.legend(fontsize=7)
    return {name: as_png(made) for name, made in drawn.items()}


def as_png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def page(rows: dict[str, dict], facts: dict, images: dict[str, bytes], text: str) -> str:
    """One HTML document: the set-up, the plots, the recommendation for each layer with its reason, the table."""
    told = "".join(
        f"<tr><th>{html.escape(name)}<td>{html.escape(str(value))}"
        for name, value in facts.items()
        if name != "means"
    )
    shown = "".join(
        f'<p><img alt="{Path(name).stem}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in images.items()
    )
    reasons = "".join(
        f"<tr><td>{html.escape(path)}<td>{row['recommended']['k']}<td>{html.escape(row['recommended']['reason'])}"
        for path, row in rows.items()
    )
    parts = [f"<h1>Gradient entanglement</h1><table>{told}</table>{shown}"]
    parts.append(
        f"<h2>k by layer</h2><table><tr><th>layer<th>k<th>why{reasons}</table><h2>Table</h2><pre>{html.escape(text)}</pre>"
    )
    head = f"<meta charset=utf-8><title>Gradient entanglement</title><style>{STYLE}img{{max-width:100%}}pre{{overflow-x:auto}}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"
