"""Which layers of a model are adapted: put adapters in, walk over them, scale, switch off, merge, take out."""

import functools
import inspect
import re
from collections import Counter

import torch
from torch import nn

from gralora_diffusion.adapters.layers import GraLoRALinear, LoRALinear, active_ranks
from gralora_diffusion.adapters.quantization import QuantizedLinear
from gralora_diffusion.config import AdapterConfig

ATTENTION = r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$|\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$"  # diffusers | CLIP
FEED_FORWARD = r"\.ff\.net\.(0\.proj|2)$|\.mlp\.fc[12]$"
TARGETS = {"attention": ATTENTION, "attention+ff": f"{ATTENTION}|{FEED_FORWARD}", "all-linear": ""}


def inject(model: nn.Module, config: AdapterConfig) -> dict[str, LoRALinear]:
    """Freeze `model`, replace each linear layer that config.targets matches by an adapted one: {module path: layer}.

    targets is "attention", "attention+ff", "all-linear", or a regular expression searched in each module path, so that any
    torch model will do; rank_pattern and k_pattern give other sizes to the paths they match (the first that matches counts).
    Raises ValueError, before anything is changed, when the model is adapted already, nothing matches, or a size does not fit.
    """
    if adapters(model):
        raise ValueError("the model has adapters already: call remove() first")
    linears = {path: m for path, m in model.named_modules() if type(m) in (nn.Linear, QuantizedLinear)}
    pattern = compiled(TARGETS.get(config.targets, config.targets), "targets")
    chosen = {path: m for path, m in linears.items() if pattern.search(path)}
    if not chosen:
        known = ", ".join(TARGETS)
        useful = dict.fromkeys(
            found.group().strip(".")
            for path in linears
            if (found := re.search(f"{ATTENTION}|{FEED_FORWARD}", path))
        )
        some = ", ".join(list(useful) or list(linears)[:3]) or "none"
        raise ValueError(
            f"targets {config.targets!r} is not one of {known}, and as a regular expression it matches no linear layer, such as {some}"
        )
    layers, trainable = {}, [p for p in model.parameters() if p.requires_grad]
    for path, linear in chosen.items():
        try:
            layers[path] = adapted(
                linear,
                config,
                first_match(config.rank_pattern, path, config.rank),
                first_match(config.k_pattern, path, config.k),
            )
        except ValueError as error:
            for parameter in trainable:
                parameter.requires_grad_(True)
            raise ValueError(f"{path}: {error}") from None
    model.requires_grad_(False)
    for path, layer in layers.items():
        for parameter in layer.adapter_parameters.values():
            parameter.requires_grad_(True)
        replace(model, path, layer)
    model.adapter_configs = {"default": config}
    follow_timesteps(model, "default", config, list(layers.values()))
    return layers


def follow_timesteps(model: nn.Module, name: str, config: AdapterConfig, layers: list[LoRALinear]) -> None:
    """With T-LoRA, in training and in sampling: before each forward(sample, timestep, ...) of the model, set which ranks of its adapter act.

    A model that is given no timestep, such as a text encoder, keeps all ranks.
    """
    if config.tlora and "timestep" in inspect.signature(model.forward).parameters:
        handle = model.register_forward_pre_hook(
            functools.partial(set_active_ranks, config, layers), with_kwargs=True
        )
        model.timestep_hooks = getattr(model, "timestep_hooks", {}) | {name: handle}


def set_active_ranks(
    config: AdapterConfig, layers: list[LoRALinear], model: nn.Module, args: tuple, kwargs: dict
) -> None:
    """tlora_min_rank is of the whole rank: each part of a layer, a group of r/k or the plain LoRA, keeps its share of it, rounded up."""
    device = next(layers[0].parameters()).device
    timesteps = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1], device=device)
    masks = {}  # the same for all parts of one size
    for layer in layers:
        smallest = config.tlora_min_rank or (layer.rank + 1) // 2
        least = {ranks: min(ranks, -(-smallest * ranks // layer.rank)) for ranks in layer.part_ranks}
        for part in least.items():
            if part not in masks:
                masks[part] = active_ranks(timesteps, *part)
        layer.active = {ranks: masks[ranks, few] for ranks, few in least.items()}


def adapted(linear: nn.Linear, config: AdapterConfig, rank: int, k: int | None) -> LoRALinear:
    common = dict(rank=rank, alpha=config.alpha, dropout=config.dropout, rslora=config.rslora)
    if config.method == "gralora":
        return GraLoRALinear.from_linear(linear, k=k, hybrid_rank=config.hybrid_rank, **common)
    return LoRALinear.from_linear(linear, **common)


def replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def compiled(pattern: str, option: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{option} {pattern!r} is not a regular expression: {error}") from None


def unmatched_patterns(paths, config: AdapterConfig) -> list[str]:
    """The patterns of rank_pattern and k_pattern that match none of these paths: most likely typing mistakes."""
    patterns = [*config.rank_pattern, *config.k_pattern]
    return [
        p
        for p in patterns
        if not any(compiled(p, "rank_pattern or k_pattern").search(path) for path in paths)
    ]


def first_match(patterns: dict, path: str, default):
    return next(
        (value for p, value in patterns.items() if compiled(p, "rank_pattern or k_pattern").search(path)),
        default,
    )


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """{module path: adapted layer}, in the model's order; where there are several adapters, the one that holds the weight."""
    return {
        path: m for path, m in model.named_modules() if isinstance(m, LoRALinear) and m.weight is not None
    }


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{path.name: parameter} of all adapters."""
    return {
        f"{path}.{name}": p
        for path, layer in adapters(model).items()
        for name, p in layer.adapter_parameters.items()
    }


def attach(model: nn.Module, path: str, layer: LoRALinear) -> None:
    """Into the model: in place of the plain layer, or beside the adapter that is there already."""
    there = model.get_submodule(path)
    if isinstance(there, LoRALinear):
        layer.weight = layer.bias = None
        there.beside.append(layer)
    else:
        replace(model, path, layer)


def models_of(model) -> list[nn.Module]:
    """A model as it is, or the models of a pipeline."""
    return (
        [model]
        if isinstance(model, nn.Module)
        else [m for m in model.components.values() if isinstance(m, nn.Module)]
    )


def set_strength(model, strength: float, name: str | None = None) -> None:
    """0 is the base, 1 the adapter as trained; of all adapters or the one of this name, in a model or a pipeline; merged layers are merged anew."""
    change(model, name, strength=float(strength))


def enable(model, on: bool = True, name: str | None = None) -> None:
    """Switch all adapters, or the one of this name, on or off; off, the layers compute as the base does."""
    change(model, name, enabled=on)


def change(model, name: str | None, **settings) -> None:
    tops = [top for part in models_of(model) for top in adapters(part).values()]
    check_name(name, {layer.name for top in tops for layer in top.stack})
    for top in tops:
        merged = top.unmerged_weight is not None
        top.unmerge()
        for layer in top.stack:
            if name in (None, layer.name):
                vars(layer).update(settings)
        if merged:
            top.merge()


def check_name(name: str | None, there: set[str]) -> None:
    if name is not None and name not in there:
        raise ValueError(
            f"there is no adapter named {name!r}; there are: {', '.join(sorted(there)) or 'none'}"
        )


def merge(model: nn.Module) -> None:
    for layer in adapters(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    for layer in adapters(model).values():
        layer.unmerge()


def remove(model, name: str | None = None) -> None:
    """Take out the adapter of this name, or give the plain layers back, with their weights as they are: the base's, or merged ones."""
    check_name(
        name,
        {layer.name for part in models_of(model) for top in adapters(part).values() for layer in top.stack},
    )
    for part in models_of(model):
        for path, top in adapters(part).items():
            if name is None:
                replace(part, path, top.to_linear())
            elif name in [layer.name for layer in top.stack]:
                replace(part, path, without(top, name))
        configs = getattr(part, "adapter_configs", {})
        part.adapter_configs = {n: c for n, c in configs.items() if name not in (None, n)}
        for hooked in [n for n in getattr(part, "timestep_hooks", {}) if name in (None, n)]:
            part.timestep_hooks.pop(hooked).remove()


def without(top: LoRALinear, name: str) -> nn.Linear:
    """The layer that stands in the model when this adapter is gone: the next one takes the weight over."""
    merged = top.unmerged_weight is not None
    top.unmerge()
    first, *others = [layer for layer in top.stack if layer.name != name] or [top.to_linear()]
    if isinstance(first, LoRALinear):
        first.weight, first.bias, first.beside = top.weight, top.bias, nn.ModuleList(others)
        if merged:
            first.merge()
    return first


def table(layers: dict[str, LoRALinear]) -> str:
    """The adapted layers, one line each, with shapes, ranks and numbers of parameters; the last line is the sum."""
    width = max(len(path) for path in layers)
    rows = [
        f"{'layer':<{width}}  {'in -> out':>13}  {'rank':>4}  {'k':>2}  {'hybrid':>6}  {'parameters':>11}"
    ]
    total = 0
    for path, layer in layers.items():
        count = sum(p.numel() for p in layer.adapter_parameters.values())
        total += count
        sizes = f"{layer.in_features} -> {layer.out_features}"
        rows.append(
            f"{path:<{width}}  {sizes:>13}  {layer.rank:>4}  {layer.k:>2}  {layer.hybrid_rank:>6}  {count:>11,}"
        )
    return "\n".join([*rows, f"{len(layers)} layers, {total:,} parameters"])


def all_layers(models: dict) -> dict[str, LoRALinear]:
    return {
        f"{name}.{path}": layer for name, model in models.items() for path, layer in adapters(model).items()
    }


def common_and_others(values: list[tuple[str, int]]) -> tuple[int, dict[str, int]]:
    """The commonest value, and one regular expression for all paths of each other value."""
    (common, _), *others = Counter(value for _, value in values).most_common()
    return common, {
        f"^({'|'.join(re.escape(path) for path, v in values if v == value)})$": value for value, _ in others
    }
