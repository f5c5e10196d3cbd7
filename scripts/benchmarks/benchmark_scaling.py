"""The benchmark's section of how a layer's cost grows with rank, k, tokens, images and adapters."""

from collections.abc import Callable

import torch
from benchmark_layers import training_step
from benchmark_operations import operations
from benchmark_turns import Bench, milliseconds
from torch import nn

from gralora_diffusion import GraLoRALinear, LoRALinear

LABELS = {"lora": "LoRA", "gralora": "GraLoRA"}


def scaling(bench: Bench, plot: str, tokens: int = 1024, width: int = 1280) -> dict:
    """Forward + backward of one layer beyond the frozen layer's, with one size growing at a time."""
    axes = {
        "rank": [rank for rank in (8, 16, 32, 64, 128, 256) if rank <= width // 2],
        "k": [1, 2, 4, 8],
        "tokens": [tokens // 8, tokens // 4, tokens // 2, tokens],
        "images": [1, 2, 3, 4],
        "adapters": [1, 2, 3, 4],
    }
    found = {}
    print("\nscaling: ms beyond the frozen layer's")
    for axis, values in axes.items():
        found[axis] = along(bench, axis, values, tokens, width)
        lines = []
        for kind, points in found[axis].items():
            lines.append(f"{kind}: " + ", ".join(f"{value}: {ms:.2f}" for value, ms in points))
        print(f"{axis:<9}" + "; ".join(lines), flush=True)
    save_plots(found, plot)
    found["operations"] = operations()
    print_operations(found["operations"])
    return found


def along(bench: Bench, axis: str, values: list[int], tokens: int, width: int) -> dict[str, list]:
    """{lora or gralora: [(value, ms beyond the frozen layer's)]}"""
    made = {}
    for value in values:
        sizes = dict(tokens=tokens, width=width) | {axis: value}
        for kind in LABELS:
            made[value, kind, "frozen"] = step_of_size(bench.device, None, **sizes)
            made[value, kind, "adapted"] = step_of_size(bench.device, kind, **sizes)
    times = bench.in_turns(made)
    found = {}
    for kind in LABELS:
        points = []
        for value in values:
            adapted = times[value, kind, "adapted"]
            frozen = times[value, kind, "frozen"]
            extra = [a - b for a, b in zip(adapted, frozen, strict=True)]
            points.append((value, milliseconds(extra)))
        found[kind] = points
    return found


def step_of_size(
    device: str,
    kind: str | None,
    tokens: int,
    width: int,
    rank: int = 32,
    k: int = 2,
    images: int = 1,
    adapters: int = 1,
) -> Callable[[], None]:
    """A training step of a layer of this size; kind: lora, gralora, or None for the frozen layer."""

    def new_layer() -> nn.Module:
        linear = nn.Linear(width, width, device=device).requires_grad_(False)
        if kind is None:
            return linear
        if kind == "gralora":
            return GraLoRALinear.from_linear(linear, rank, k)
        return LoRALinear.from_linear(linear, rank)

    layer = new_layer()
    if kind is not None:
        for _ in range(adapters - 1):
            layer.add(f"other {len(layer.adapters)}", new_layer().adapter)
    x = torch.randn(images, tokens, width, device=device, requires_grad=True)
    return training_step(layer, x, torch.randn_like(x))


def print_operations(rows: list[dict]) -> None:
    for row in rows:
        forward = row["forward"]
        both = row["both"]
        print(f"operations, k {row['k']}: {forward['exact']:+,} to LoRA's forward", end=" ")
        print(f"(theory {forward['theory']:+,}), {both['exact']:+,} to forward + backward", end=" ")
        print(f"(theory {both['theory']:+,}); by torch's count {both['torch']:+,}")


def save_plots(found: dict[str, dict], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3.4), layout="constrained")
    for plot, (axis, lines) in zip(plots, found.items(), strict=True):
        for kind, points in lines.items():
            plot.plot(*zip(*points, strict=True), marker="o", label=LABELS[kind])
        plot.set(xlabel=axis, ylabel="ms beyond the frozen layer", ylim=(0, None), xlim=(0, None))
        plot.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"plots: {path}")
