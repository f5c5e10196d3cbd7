"""Ranks and k by layer, and adapters that start from the gradient: `--adapter gora`, `--allocate`, `--allocation FILE`."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast, broadcast_object_list

from gralora_diffusion.adapters.gora import (
    allocate_ranks,
    bounds,
    effective_rank,
    energies,
    greedy_ranks,
    importance,
    ralora_k,
    whitened,
)
from gralora_diffusion.adapters.gradient_init import line_search, point_down
from gralora_diffusion.adapters.gradients import Gradients
from gralora_diffusion.adapters.inject import all_layers, common_and_others, enable, inject, remove
from gralora_diffusion.adapters.layers import LoRALinear, choose_k
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

FILE = "allocation.json"
REPLICATES = 32  # of the bootstrap
Sizes = dict[str, tuple[int, int]]  # {component.path: (rank, k)}


def inject_sized(models: dict, config: AdapterConfig, sizes: Sizes, seed: int) -> None:
    """Put in adapters with these ranks and k, in place of those that are there.

    Each model's patterns name every path of it; file headers get one config, with the patterns of all models.
    """
    torch.manual_seed(seed)
    for name, model in models.items():
        remove(model)
        mine = {
            path.removeprefix(f"{name}."): size for path, size in sizes.items() if path.startswith(f"{name}.")
        }
        inject(model, with_sizes(config, list(mine.items())))
    everywhere = with_sizes(config, [(path.partition(".")[2], size) for path, size in sizes.items()])
    for model in models.values():
        model.adapter_configs = {"default": everywhere}


def with_sizes(config: AdapterConfig, sizes: list[tuple[str, tuple[int, int]]]) -> AdapterConfig:
    if not sizes:
        return config
    rank, ranks = common_and_others([(path, rank) for path, (rank, _) in sizes])
    k, ks = common_and_others([(path, k) for path, (_, k) in sizes])
    if config.method != "gralora":
        return dataclasses.replace(config, method="lora", rank=rank, rank_pattern=ranks)
    return dataclasses.replace(config, rank=rank, rank_pattern=ranks, k=k, k_pattern=ks)


def inject_from(path: str | Path, models: dict, config: TrainConfig) -> None:
    """inject_sized() with the ranks and k of an allocation.json; raises ConfigError unless it names exactly the adapted layers."""
    try:
        layers = json.loads(Path(path).read_text())["layers"]
        sizes = {name: (row["rank"], row["k"]) for name, row in layers.items()}
        good = sizes and all(type(number) is int and number > 0 for size in sizes.values() for number in size)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; --allocation takes the {FILE} of another run"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ConfigError(
            f"{path} is not an allocation: it must be the {FILE} of another run, with a rank and a k for each layer"
        )
    if config.adapter.method != "gralora" and any(k != 1 for _, k in sizes.values()):
        raise ConfigError(f"{path} has layers with k above 1, which only --adapter gralora can have")
    if strange := [name for name in sizes if name.partition(".")[0] not in models]:
        raise ConfigError(f"{path} has a layer {strange[0]!r}, and this run adapts only {', '.join(models)}")
    try:
        inject_sized(models, config.adapter, sizes, config.seed)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if other := sorted(set(sizes) ^ set(all_layers(models))):
        where = "in the file and not among" if other[0] in sizes else "missing from the file, and among"
        raise ConfigError(
            f"{path} does not fit: {other[0]} is {where} the layers that --targets {config.adapter.targets} adapts"
        )


def apply(models: dict, loss_of: Callable, config: TrainConfig, accelerator, run: Path) -> None:
    """Give the adapters their ranks and their start: gradient pass, allocation, injection, factors, line search; writes allocation.json.

    loss_of(index) is the training loss of batch `index`, best with gradients.stratified() draws.  The adapters in `models` are
    replaced, unless --allocation gave them their sizes already.  Every process ends with the same ranks and factors.
    """
    for model in models.values():
        enable(model, False)
    memory = math.inf if config.gora_memory is None else config.gora_memory * 2**30
    gradients = Gradients(all_layers(models), loss_of, accelerator, config.gora_batches, memory)
    facts = dict(
        rule=config.allocate or f"as in {config.allocation}",
        init=config.gora_init,
        reference_rank=config.adapter.rank,
    )
    if config.allocate:
        rows, facts["bootstrap_moved"] = allocate(gradients, config)
        (rows,) = broadcast_object_list([rows]) if accelerator.num_processes > 1 else [rows]
        inject_sized(
            models, config.adapter, {path: (row["rank"], row["k"]) for path, row in rows.items()}, config.seed
        )
        for model in models.values():
            enable(model, False)
    else:
        rows = {
            path: dict(shape=list(layer.weight.shape), rank=layer.rank, k=layer.k)
            for path, layer in gradients.layers.items()
        }
    layers = all_layers(models)
    if config.gora_init != "zero":
        point_down(
            layers,
            gradients,
            config.gora_init,
            {path: row.get("gradient_norm") for path, row in rows.items()},
        )
    for model in models.values():
        enable(model)
    if config.gora_init != "zero":
        facts["gamma"], facts["held_out_loss"] = line_search(layers, loss_of, config.gora_gamma, accelerator)
    parameters = [p.data for layer in layers.values() for p in layer.adapter_parameters.values()]
    if accelerator.num_processes > 1:
        broadcast(parameters)
    facts |= dict(
        batches=gradients.batches,
        batches_run=gradients.ran,
        passes=gradients.passes,
        gradient_bytes=gradients.peak,
    )
    facts |= dict(
        storing_bytes=forecast(rows)["storing"], parameters=sum(p.numel() for p in parameters), layers=rows
    )
    if accelerator.is_main_process:
        write_text(run / FILE, json.dumps(facts, indent=1) + "\n")
        print(table(facts), flush=True)


def check_range(layers: dict[str, LoRALinear], config: TrainConfig) -> None:
    """Raises ConfigError where no allocation to these layers can keep to --gora_min_rank, --gora_max_rank and the grid of ranks."""
    try:
        bounds(
            [tuple(layer.weight.shape) for layer in layers.values()],
            config.adapter.rank,
            *rank_range(config),
            step_of(config.adapter),
        )
    except ValueError as error:
        raise ConfigError(
            f"--allocate {config.allocate} cannot meet --rank, --gora_min_rank and --gora_max_rank: {error}"
        ) from None


def allocate(gradients: Gradients, config: TrainConfig) -> tuple[dict[str, dict], list[float]]:
    """({component.path: {shape, rank, k, importance, gradient_norm, ...}} by config.allocate, what moved in the bootstraps)."""
    adapter, rule, layers, moved = config.adapter, config.allocate, gradients.layers, []
    shapes = {path: tuple(layer.weight.shape) for path, layer in layers.items()}
    step = step_of(adapter)
    limits = adapter.rank, *rank_range(config), step

    def ranks_by(importances: dict) -> dict:
        return allocate_ranks(
            reordered(importances, rule, config.seed), shapes, *limits, config.gora_rounding
        )

    def settled(samples) -> bool:
        moved.append(moved_share(samples, shapes, ranks_by, config.seed))
        return moved[-1] <= config.gora_tolerance

    try:
        if rule not in ("uniform", "energy") and config.gora_tolerance > 0:
            gradients.settle(settled)
        rows, curves = {}, {}
        for path, G in gradients:
            rows[path] = dict(
                shape=list(shapes[path]),
                importance=importance(layers[path].weight, G),
                gradient_norm=float(G.norm()),
            )
            curves[path] = {}
            if adapter.method == "gralora" or rule == "energy":
                rows[path]["effective_rank"] = effective_rank(G)
                curves[path] = {
                    kind: {k: energies(g, k) for k in ks_of(adapter, shapes[path], step)}
                    for kind, g in kinds(G).items()
                }
        if rule == "energy":
            gains = [
                torch.stack(list(c["whitened"].values())).amax(0)[step - 1 :: step].tolist()
                for c in curves.values()
            ]
            ranks = dict(zip(shapes, greedy_ranks(gains, list(shapes.values()), *limits), strict=True))
        else:
            ranks = ranks_by({path: row["importance"] for path, row in rows.items()})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for path, row in rows.items():
        row["rank"] = ranks[path]
        for kind, by_k in curves[path].items():
            row[f"energy_{kind}"] = {k: round(float(curve[ranks[path] - 1]), 6) for k, curve in by_k.items()}
        row["k"] = choose(row, rule, adapter)
    return rows, moved


def kinds(G: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(whitened=whitened(G), raw=G)


def step_of(adapter: AdapterConfig) -> int:
    """Ranks come in steps that every k under consideration divides: up to twice the paper's k for the reference rank."""
    if adapter.method != "gralora":
        return 1
    return adapter.k or math.gcd(2 * choose_k(adapter.rank, 2**20, 2**20), adapter.rank)


def ks_of(adapter: AdapterConfig, shape: tuple[int, int], step: int) -> list[int]:
    """The k that a layer may have: --gralora_k, or the powers of two that fit."""
    if adapter.method != "gralora" or adapter.k:
        return [adapter.k or 1]
    return [
        k
        for k in (2**i for i in range(step.bit_length()))
        if step % k == 0 and shape[0] % k == 0 and shape[1] % k == 0
    ]


def choose(row: dict, rule: str, adapter: AdapterConfig) -> int:
    """k: the most captured energy of the whitened gradient; by the paper's rule with `uniform`, by RaLoRA-Pro's with `ralora`."""
    if adapter.method != "gralora" or adapter.k:
        return adapter.k or 1
    if rule == "uniform":
        return choose_k(row["rank"], *row["shape"])
    held = row["energy_whitened"]
    if rule == "ralora":
        return max(k for k in held if k <= ralora_k(row["effective_rank"], row["rank"], max(held)))
    return max(held, key=lambda k: (held[k], -k))


def rank_range(config: TrainConfig) -> tuple[int, int]:
    """(lowest, highest) rank; the published range, 4 to 32 for a reference rank of 8, is half to four times."""
    rank = config.adapter.rank
    if config.allocate == "uniform":
        return rank, rank
    return config.gora_min_rank or max(1, rank // 2), config.gora_max_rank or 4 * rank


def reordered(importances: dict[str, float], rule: str, seed: int) -> dict[str, float]:
    """The same importances, given to other layers for the controls: shuffled, or the highest to the layer with the lowest."""
    if rule not in ("inverse", "random"):
        return importances
    order = sorted(importances, key=importances.get)
    places = (
        range(len(order) - 1, -1, -1)
        if rule == "inverse"
        else torch.randperm(len(order), generator=generator(seed, 8)).tolist()
    )
    given = {path: importances[order[place]] for path, place in zip(order, places, strict=True)}
    return {path: given[path] for path in importances}


def moved_share(samples: dict, shapes: dict, ranks_by: Callable, seed: int) -> float:
    """Part of the parameters that another draw of the same number of batches would give to other layers: bootstrap mean.

    samples: {path: (weights [entries], gradients [n, entries])}.
    """
    n = len(next(iter(samples.values()))[1])
    drawn = torch.randint(n, (REPLICATES, n), generator=generator(seed, 9, n))
    shares = torch.zeros(REPLICATES, n).scatter_add_(1, drawn, torch.full((REPLICATES, n), 1 / n))
    shares = torch.cat([torch.full((1, n), 1 / n), shares])
    importances = {
        path: (weights * (shares @ gradients)).abs().mean(1).tolist()
        for path, (weights, gradients) in samples.items()
    }
    first, *others = [
        ranks_by({path: values[i] for path, values in importances.items()}) for i in range(REPLICATES + 1)
    ]
    cost = {path: m + n for path, (m, n) in shapes.items()}
    moved = [sum(cost[path] * abs(ranks[path] - first[path]) for path in cost) for ranks in others]
    return sum(moved) / len(moved) / 2 / sum(cost[path] * first[path] for path in cost)


def forecast(rows: dict[str, dict], itemsize: int = 4) -> dict[str, int]:
    """Bytes that the gradient pass needs beside a training step, for {path: {shape, rank}}: fp32 sums of all gradients ("storing"), or of
    what a random A leaves of them ("streaming"), and the one gradient that is alive, in the weights' `itemsize` and in fp32.
    """
    one = max(m * n for m, n in (row["shape"] for row in rows.values())) * (
        4 if itemsize == 4 else itemsize + 4
    )
    storing = sum(4 * row["shape"][0] * row["shape"][1] for row in rows.values())
    return dict(
        storing=storing + one, streaming=sum(4 * row["shape"][0] * row["rank"] for row in rows.values()) + one
    )


def table(facts: dict) -> str:
    """The allocation for people: one line per layer, then what it cost and how the start was found."""
    rows, width = facts["layers"], max(map(len, facts["layers"]))
    total = sum(row.get("importance", 0) for row in rows.values()) or 1
    lines = [f"{'layer':<{width}}  {'in -> out':>13}  {'importance':>10}  {'rank':>4}  {'k':>2}"]
    for path, row in rows.items():
        sizes = f"{row['shape'][1]} -> {row['shape'][0]}"
        share = f"{row['importance'] / total:.2%}" if "importance" in row else "-"
        lines.append(f"{path:<{width}}  {sizes:>13}  {share:>10}  {row['rank']:>4}  {row['k']:>2}")
    memory = f"{facts['gradient_bytes'] / 2**20:.1f} MiB of gradients at once ({facts['storing_bytes'] / 2**20:.1f} to store all)"
    lines.append(
        f"{facts['rule']}: {facts['parameters']:,} parameters, {facts['batches']} batches in {facts['passes']} runs, {memory}"
    )
    if facts.get("bootstrap_moved"):
        lines[-1] += f", {facts['bootstrap_moved'][-1]:.1%} of the parameters still moving"
    if "gamma" in facts:
        losses = {float(gamma): loss for gamma, loss in facts["held_out_loss"].items()}
        lines.append(
            f"start {facts['init']}, gamma {facts['gamma']:g}: held-out loss {losses[0.0]:.5f} -> {losses[facts['gamma']]:.5f}"
        )
    return "\n".join(lines)
