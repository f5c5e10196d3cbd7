"""The entanglement report: a table, PNG plots, JSON, and one HTML page that needs no network."""

import base64
import io
import json
import math
import shlex
from collections import Counter
from pathlib import Path

from gralora_diffusion.adapters.registry import common_and_others
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.console import counted
from gralora_diffusion.experiments.entanglement import OUTLIER
from gralora_diffusion.files import render, write_text
from gralora_diffusion.options import ConfigError

Rows = dict[str, dict]  # {layer: what entanglement.measure_layers() found}
BY_RANK = ("mean", "inside", "outside", "whitened", "raw")  # columns of the second table
WIDTHS = (6, 6, 7, 15, 5)
OPTIONS = "train-options.txt"


def write_entanglement(folder: Path, rows: Rows, facts: dict, options: list[str]) -> str:
    """Write report.json, report.html, the plots and train-options.txt; returns the tables.

    facts: the set-up, and "means" of mean_over_layers().  options: of options_of().  Raises ConfigError where
    matplotlib is not installed.
    """
    text = tables(rows, facts["means"])
    plots = {name: as_png(figure) for name, figure in figures(rows, facts).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in plots.items():
        (folder / name).write_bytes(data)
    write_text(folder / OPTIONS, shlex.join(options) + "\n")
    write_text(folder / "report.json", json.dumps(facts | dict(layers=rows), indent=1) + "\n")
    page = render(
        "experiments/templates/entanglement.html",
        title="Gradient entanglement",
        facts={name: value for name, value in facts.items() if name != "means" and value is not None},
        plots={Path(name).stem: base64.b64encode(data).decode() for name, data in plots.items()},
        layers={path: row["recommended"] for path, row in rows.items()},
        table=text,
    )
    write_text(folder / "report.html", page)
    return text


def options_of(rows: Rows, config: TrainConfig) -> list[str]:
    """Options of `gralora train` for the recommended values of k and their ranks, in the layers of config.

    A layer that both text encoders have gets values that suit both.
    """
    ranks, ks = {}, {}  # {path in its model: value}
    for name, row in rows.items():
        path = name.partition(".")[2]
        ranks[path] = min(row["recommended"]["rank"], ranks.get(path, math.inf))
        ks[path] = math.gcd(row["recommended"]["k"], ks.get(path, 0), ranks[path])
    found = []
    if config.adapter.targets != AdapterConfig.targets:
        found += ["--targets", config.adapter.targets]
    if config.train_text_encoder:
        found.append("--train_text_encoder")
    for values, option, pattern in ((ranks, "--gralora_rank", "rank"), (ks, "--gralora_k", "k")):
        common, others = common_and_others(list(values.items()))
        found += [option, str(common)]
        found += [f"--{pattern}_pattern", json.dumps(others)] if others else []
    return found


def tables(rows: Rows, means: dict) -> str:
    """One line per layer, then the means, then the recommendation in numbers."""
    stable = sum(row["outlier"]["stable"] for row in rows.values())
    counts = Counter(row["recommended"]["k"] for row in rows.values())
    recommended = ", ".join(f"k {k}: {n}" for k, n in sorted(counts.items()))
    found = f"stable outliers in {stable} of {counted(len(rows), 'layer')}"
    outliers = f"{found} (>= {OUTLIER:g} x the mean channel)"
    return "\n".join(
        [*layer_lines(rows), "", *mean_lines(means), "", f"{outliers}; recommended {recommended}"]
    )


def layer_lines(rows: Rows) -> list[str]:
    width = max(map(len, rows))
    head = f"{'in -> out':>13}  {'outlier':>16}  {'erank G':>7}  {'delta':>6}  {'k':>2}"
    lines = [f"{'layer':<{width}}  {head}"]
    for path, row in rows.items():
        found = row["outlier"]
        outlier = f"{found['channel']}: {found['ratio']:.1f}x {found['share']:.0%}"
        delta = f"{row['delta_effective_rank']:.1f}" if "delta_effective_rank" in row else "-"
        sizes = f"{row['shape'][1]} -> {row['shape'][0]}"
        k = row["recommended"]["k"]
        cells = f"{sizes:>13}  {outlier:>16}  {row['effective_rank']:>7.1f}  {delta:>6}  {k:>2}"
        lines.append(f"{path:<{width}}  {cells}")
    return lines


def mean_lines(means: dict) -> list[str]:
    head = f"{'rank':>4}  {'k':>2}  {'cosine':>6}  {'inside':>6}  {'outside':>7}  {'energy whitened':>15}  "
    lines = [f"{head}{'raw':>5}  by timestep bin, low noise first"]
    for rank, by_k in means.items():
        for k, row in by_k.items():
            cells = []
            for name, width in zip(BY_RANK, WIDTHS, strict=True):
                cell = "-" if row[name] is None else f"{row[name]:.3f}"
                cells.append(f"{cell:>{width}}")
            bins = " ".join(f"{value:.3f}" for value in row["by_bin"])
            lines.append(f"{rank:>4}  {k:>2}  {'  '.join(cells)}  {bins}")
    return lines


def figures(rows: Rows, facts: dict) -> dict:
    """{file name: figure}; raises ConfigError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the plots need matplotlib: pip install 'gralora-diffusion[plots]'") from None
    found = {}

    def axes_of(name: str, width: float = 6, **labels):
        found[name] = Figure(figsize=(width, 3.6), layout="constrained")
        axes = found[name].subplots()
        axes.set(**labels)
        return axes

    title = "Cosine of fused update and gradient"
    axes = axes_of("alignment.png", title=title, xlabel="k (1 is LoRA)", ylabel="mean over input columns")
    plot_alignment(axes, facts["means"])
    labels = dict(title="By timestep", xlabel="bin of timesteps, low noise first", ylabel="cosine")
    plot_timesteps(axes_of("timesteps.png", **labels), facts["means"], facts["bins"])
    title = "Largest input channel against the mean one"
    axes = axes_of("outliers.png", 9, title=title, xlabel="layer", ylabel="times the mean")
    plot_outliers(axes, rows)
    labels = dict(title="Effective rank", xlabel="layer", ylabel="effective rank")
    plot_effective_ranks(axes_of("effective_rank.png", 9, **labels), rows)
    return found


def plot_alignment(axes, means: dict) -> None:
    ks = set()
    for rank, by_k in means.items():
        ks.update(by_k)
        cosines = [row["mean"] for row in by_k.values()]
        (line,) = axes.plot(list(by_k), cosines, marker="o", label=f"rank {rank}")
        for name, style in (("inside", ":"), ("outside", "--")):
            known = {k: row[name] for k, row in by_k.items() if row[name] is not None}
            label = f"rank {rank}, {name} the strip"
            axes.plot(list(known), list(known.values()), style, color=line.get_color(), label=label)
    axes.set_xticks(sorted(ks))
    axes.legend(fontsize=7)


def plot_timesteps(axes, means: dict, bins: int) -> None:
    for rank, by_k in means.items():
        for k, row in by_k.items():
            places = range(1, len(row["by_bin"]) + 1)
            axes.plot(places, row["by_bin"], marker=".", label=f"rank {rank}, k {k}")
    axes.set_xticks(range(1, bins + 1))
    axes.legend(fontsize=7)


def plot_outliers(axes, rows: Rows) -> None:
    colors = ["tab:red" if row["outlier"]["stable"] else "tab:gray" for row in rows.values()]
    axes.bar(range(len(rows)), [row["outlier"]["ratio"] for row in rows.values()], color=colors)


def plot_effective_ranks(axes, rows: Rows) -> None:
    axes.plot([row["effective_rank"] for row in rows.values()], ".", label="gradient")
    if any("delta_effective_rank" in row for row in rows.values()):
        deltas = [row.get("delta_effective_rank") for row in rows.values()]
        axes.plot(deltas, "x", label="trained delta")
    axes.legend(fontsize=7)


def as_png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
