"""`--allocate`: the rank and k of each layer, by a rule, from the gradients of the frozen weights."""

import math
from collections.abc import Callable

import torch

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.conv import AdaptedConv2d
from gralora_diffusion.adapters.gora import effective_rank, energies, importance, ralora_k, whitened
from gralora_diffusion.adapters.gradients import Gradients
from gralora_diffusion.adapters.gralora import choose_k
from gralora_diffusion.adapters.rank_budget import allocate_ranks, bounds, greedy_ranks
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

REPLICATES = 32  # of the bootstrap
Shapes = dict[str, tuple[int, int]]  # {component.path: (M, N)}


def check_range(layers: dict[str, AdaptedLayer], config: TrainConfig) -> None:
    """Raises ConfigError where no allocation to these layers can keep to the range and the grid of ranks."""
    shapes = [layer.matrix_shape for layer in layers.values()]
    try:
        bounds(shapes, config.adapter.rank, *rank_range(config), step_of(config.adapter))
    except ValueError as error:
        problem = "cannot meet --rank, --gora_min_rank and --gora_max_rank"
        raise ConfigError(f"--allocate {config.allocate} {problem}: {error}", option="allocate") from None


def allocate(gradients: Gradients, config: TrainConfig) -> tuple[dict[str, dict], list[float]]:
    """({component.path: row}, share of the parameters that moved in each bootstrap).

    row: shape, rank, k, importance, gradient_norm, ...
    """
    adapter = config.adapter
    rule = config.allocate
    shapes = {path: layer.matrix_shape for path, layer in gradients.layers.items()}
    limits = (adapter.rank, *rank_range(config), step_of(adapter))
    moved = []

    def ranks_by(importances: dict) -> dict:
        given = reordered(importances, rule, config.seed)
        return allocate_ranks(given, shapes, *limits, config.gora_rounding)

    def settled(samples) -> bool:
        moved.append(moved_share(samples, shapes, ranks_by, config.seed))
        return moved[-1] <= config.gora_tolerance

    try:
        if rule not in ("uniform", "energy") and config.gora_tolerance > 0:
            gradients.settle(settled)
        rows, curves = rows_and_curves(gradients, adapter, rule)
        if rule == "energy":
            ranks = ranks_by_energy(curves, shapes, limits)
        else:
            ranks = ranks_by({path: row["importance"] for path, row in rows.items()})
    except ValueError as error:
        raise ConfigError(str(error), option="allocate") from None
    for path, row in rows.items():
        row["rank"] = ranks[path]
        for kind, by_k in curves[path].items():
            held = {k: float(curve[ranks[path] - 1]) for k, curve in by_k.items()}
            row[f"energy_{kind}"] = {k: round(energy, 6) for k, energy in held.items()}
        row["k"] = k_of(row, rule, adapter)
    return rows, moved


def rows_and_curves(
    gradients: Gradients, adapter: AdapterConfig, rule: str
) -> tuple[dict[str, dict], dict[str, dict]]:
    """({path: row without a rank}, {path: {"whitened" | "raw": {k: energies}}})."""
    rows = {}
    curves = {}
    for path, G in gradients:
        layer = gradients.layers[path]
        row = dict(
            shape=list(layer.matrix_shape),
            importance=importance(layer.weight.flatten(1), G),
            gradient_norm=float(G.norm()),
        )
        if isinstance(layer, AdaptedConv2d):
            row["kernel"] = list(layer.kernel_size)
        rows[path] = row
        curves[path] = {}
        if adapter.method == "gralora" or rule == "energy":
            row["effective_rank"] = effective_rank(G)
            ks = ks_of(adapter, channels_of(row), step_of(adapter))
            for kind, g in (("whitened", whitened(G)), ("raw", G)):
                curves[path][kind] = {k: energies(g, k) for k in ks}
    return rows, curves


def ranks_by_energy(curves: dict[str, dict], shapes: Shapes, limits: tuple) -> dict[str, int]:
    """Ranks by the whitened energy that the best k of each layer captures."""
    step = limits[-1]
    gains = []
    for by_kind in curves.values():
        best = torch.stack(list(by_kind["whitened"].values())).amax(0)
        gains.append(best[step - 1 :: step].tolist())
    return dict(zip(shapes, greedy_ranks(gains, list(shapes.values()), *limits), strict=True))


def step_of(adapter: AdapterConfig) -> int:
    """Ranks come in steps that every k under consideration divides.

    These are up to twice the paper's k for the reference rank.
    """
    if adapter.method != "gralora":
        return 1
    return adapter.k or math.gcd(2 * choose_k(adapter.rank, 2**20, 2**20), adapter.rank)


def channels_of(row: dict) -> tuple[int, int]:
    """(M, N) without the kernel of a convolution: k divides these."""
    m, n = row["shape"]
    return m, n // math.prod(row.get("kernel", ()))


def ks_of(adapter: AdapterConfig, shape: tuple[int, int], step: int) -> list[int]:
    """The k that a layer may have: --gralora_k, or the powers of two that fit."""
    if adapter.method != "gralora" or adapter.k:
        return [adapter.k or 1]
    powers = [2**i for i in range(step.bit_length())]
    return [k for k in powers if step % k == 0 and shape[0] % k == 0 and shape[1] % k == 0]


def k_of(row: dict, rule: str, adapter: AdapterConfig) -> int:
    """k: the one that captures most of the whitened gradient's energy.

    With `uniform` by GraLoRA's rule, with `ralora` by RaLoRA-Pro's.
    """
    if adapter.method != "gralora" or adapter.k:
        return adapter.k or 1
    if rule == "uniform":
        return choose_k(row["rank"], *channels_of(row))
    held = row["energy_whitened"]
    if rule == "ralora":
        most = ralora_k(row["effective_rank"], row["rank"], max(held))
        return max(k for k in held if k <= most)
    return max(held, key=lambda k: (held[k], -k))


def rank_range(config: TrainConfig) -> tuple[int, int]:
    """(lowest, highest) rank.

    The published range, 4 to 32 for a reference rank of 8, is half to four times.
    """
    rank = config.adapter.rank
    if config.allocate == "uniform":
        return rank, rank
    return config.gora_min_rank or max(1, rank // 2), config.gora_max_rank or 4 * rank


def reordered(importances: dict[str, float], rule: str, seed: int) -> dict[str, float]:
    """The same importances, given to other layers: the controls.

    `random` shuffles them, `inverse` gives the highest to the layer with the lowest.
    """
    if rule not in ("inverse", "random"):
        return importances
    order = sorted(importances, key=importances.get)
    if rule == "inverse":
        places = range(len(order) - 1, -1, -1)
    else:
        places = torch.randperm(len(order), generator=generator(seed, 8)).tolist()
    given = {path: importances[order[place]] for path, place in zip(order, places, strict=True)}
    return {path: given[path] for path in importances}


def moved_share(samples: dict, shapes: Shapes, ranks_by: Callable, seed: int) -> float:
    """The share of the parameters that other batches would give to other layers: mean over bootstraps.

    samples: {path: (weights [entries], gradients [n, entries])}.
    """
    n = len(next(iter(samples.values()))[1])
    drawn = torch.randint(n, (REPLICATES, n), generator=generator(seed, 9, n))
    shares = torch.zeros(REPLICATES, n).scatter_add_(1, drawn, torch.full((REPLICATES, n), 1 / n))
    shares = torch.cat([torch.full((1, n), 1 / n), shares])  # [1 + REPLICATES, n], first all batches alike
    importances = {}
    for path, (weights, gradients) in samples.items():
        importances[path] = (weights * (shares @ gradients)).abs().mean(1).tolist()
    choices = []
    for i in range(REPLICATES + 1):
        choices.append(ranks_by({path: values[i] for path, values in importances.items()}))
    first, *others = choices
    cost = {path: m + n for path, (m, n) in shapes.items()}
    moved = 0
    for ranks in others:
        moved += sum(cost[path] * abs(ranks[path] - first[path]) for path in cost)
    return moved / len(others) / 2 / sum(cost[path] * first[path] for path in cost)
