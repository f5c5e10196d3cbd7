"""Adapters whose layers have ranks and k of their own, as an allocation.json holds them: `--allocation FILE`."""

import dataclasses
import json
from pathlib import Path

import torch

from gralora_diffusion.adapters.control import remove
from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.adapters.registry import all_layers, common_and_others, handles
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.options import ConfigError

FILE = "allocation.json"
Sizes = dict[str, tuple[int, int]]  # {component.path: (rank, k)}


def inject_sized(models: dict, config: AdapterConfig, sizes: Sizes, seed: int) -> None:
    """Put in adapters with these ranks and k, in place of those that are there.

    Each model's patterns name every path of it; file headers get one config, with the patterns of all models.
    """
    torch.manual_seed(seed)
    for name, model in models.items():
        remove(model)
        prefix = f"{name}."
        own = [(path.removeprefix(prefix), size) for path, size in sizes.items() if path.startswith(prefix)]
        inject(model, with_sizes(config, own))
    everywhere = with_sizes(config, [(path.partition(".")[2], size) for path, size in sizes.items()])
    for model in models.values():
        for handle in handles(model).values():
            handle.config = everywhere


def with_sizes(config: AdapterConfig, sizes: list[tuple[str, tuple[int, int]]]) -> AdapterConfig:
    """The config with the commonest rank and k of (path, (rank, k)), and patterns for the layers of other sizes."""
    if not sizes:
        return config
    rank, ranks = common_and_others([(path, rank) for path, (rank, _) in sizes])
    k, ks = common_and_others([(path, k) for path, (_, k) in sizes])
    if config.method != "gralora":
        return dataclasses.replace(config, rank=rank, rank_pattern=ranks)
    return dataclasses.replace(config, rank=rank, rank_pattern=ranks, k=k, k_pattern=ks)


def inject_from(path: str | Path, models: dict, config: TrainConfig) -> None:
    """inject_sized() with the ranks and k of an allocation.json.

    Raises ConfigError unless the file names exactly the adapted layers, with sizes that fit them.
    """
    sizes = read_sizes(path)
    if config.adapter.method != "gralora" and any(k != 1 for _, k in sizes.values()):
        raise ConfigError(f"{path} has layers with k above 1, which only --adapter gralora can have")
    strange = [name for name in sizes if name.partition(".")[0] not in models]
    if strange:
        raise ConfigError(f"{path} has a layer {strange[0]!r}, and this run adapts only {', '.join(models)}")
    try:
        inject_sized(models, config.adapter, sizes, config.seed)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    other = sorted(set(sizes) ^ set(all_layers(models)))
    if other:
        where = "in the file and not among" if other[0] in sizes else "missing from the file, and among"
        problem = f"{other[0]} is {where} the layers that --targets {config.adapter.targets} adapts"
        raise ConfigError(f"{path} does not fit: {problem}")


def read_sizes(path: str | Path) -> Sizes:
    """The ranks and k in an allocation.json.  Raises ConfigError for any other file."""
    try:
        layers = json.loads(Path(path).read_text())["layers"]
        sizes = {name: (row["rank"], row["k"]) for name, row in layers.items()}
    except OSError as error:
        way = f"--allocation takes the {FILE} of another run"
        raise ConfigError(f"{path} cannot be read: {error.strerror}; {way}", option="allocation") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sizes = {}
    numbers = [number for size in sizes.values() for number in size]
    if not numbers or not all(type(number) is int and number > 0 for number in numbers):
        need = f"it must be the {FILE} of another run, with a rank and a k for each layer"
        raise ConfigError(f"{path} is not an allocation: {need}", option="allocation")
    return sizes
