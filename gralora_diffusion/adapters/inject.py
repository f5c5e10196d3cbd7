"""Which linear layers and convolutions of a model are adapted, and how adapters are put into them."""

import re

from torch import nn

from gralora_diffusion.adapters.adapted_layer import DEFAULT, AdaptedLayer
from gralora_diffusion.adapters.conv import AdaptedConv2d
from gralora_diffusion.adapters.delta_adapter import AdaptedWhole
from gralora_diffusion.adapters.kinds import new_adapter
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.adapters.quantization import QuantizedLinear
from gralora_diffusion.adapters.registry import AdapterHandle, adapted_layers, check_free, register
from gralora_diffusion.adapters.tlora import follow_timesteps
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.options import ConfigError

ATTENTION = (
    r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$"  # diffusers
    r"|\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$"  # CLIP
)
FEED_FORWARD = r"\.ff\.net\.(0\.proj|2)$|\.mlp\.fc[12]$"
CONVOLUTIONS = r"\.resnets\.\d+\.conv(1|2|_shortcut)$|\.(down|up)samplers\.\d+\.conv$"  # as LoCon's
ADAPTABLE = (nn.Linear, nn.Conv2d, *AdaptedWhole.KINDS, AdaptedLayer)
TARGETS = {
    "attention": ATTENTION,
    "attention+ff": f"{ATTENTION}|{FEED_FORWARD}",
    "attention+ff+conv": f"{ATTENTION}|{FEED_FORWARD}|{CONVOLUTIONS}",
    "all-linear": "",
}


def inject(model: nn.Module, config: AdapterConfig) -> dict[str, AdaptedLayer]:
    """Freeze `model`, and put an adapter into each layer that config.targets matches; returns {path: layer}.

    targets is a name in TARGETS, or a regular expression searched in each module path, so that any torch
    model can be adapted: see targeted(); rank_pattern and k_pattern give other sizes to the paths they match
    (the first match applies).  Raises ValueError, before anything is changed, when the model already has
    adapters, nothing matches, or a size does not fit.
    """
    check_free(model)
    if adapted_layers(model):
        raise ValueError("the model already has adapters: call remove() first")
    adapters = {}
    for path, layer in targeted(model, config.targets).items():
        rank = first_match(config.rank_pattern, path, config.rank)
        k = first_match(config.k_pattern, path, config.k)
        try:
            adapters[path] = new_adapter(layer, config, rank, k)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}", option=getattr(error, "option", None)) from None
    hook = follow_timesteps(model, config, list(adapters.values()))
    model.requires_grad_(False)
    attach(model, DEFAULT, AdapterHandle(config, adapters, hook))
    return adapted_layers(model)


def attach(model: nn.Module, name: str, handle: AdapterHandle) -> None:
    """Put a handle's adapters into the model's layers, beside the others, and register it under this name."""
    for path, adapter in handle.layers.items():
        layer = model.get_submodule(path)
        if not isinstance(layer, AdaptedLayer):
            layer = adapted(layer)
            replace(model, path, layer)
        layer.add(name, adapter)
    register(model, name, handle)


def adapted(layer: nn.Module) -> AdaptedLayer:
    """The layer in the form that takes adapters, without any yet.  Raises ValueError where there is none."""
    if isinstance(layer, nn.Conv2d):
        return AdaptedConv2d(layer)
    return AdaptedWhole(layer) if isinstance(layer, AdaptedWhole.KINDS) else AdaptedLinear(layer)


def with_convolutions(targets: str) -> bool:
    """Whether targets means convolutions too: a regular expression that does names them, as "conv"."""
    return "conv" in TARGETS.get(targets, targets)


def targeted(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """{module path: plain layer} that targets matches: linear layers, and nn.Conv2d by with_convolutions().

    Raises ValueError where there is none.
    """
    kinds = [nn.Linear, QuantizedLinear]
    if with_convolutions(targets):
        kinds.append(nn.Conv2d)
    layers = {path: m for path, m in model.named_modules() if type(m) in kinds}
    pattern = compiled(TARGETS.get(targets, targets), "targets")
    chosen = {path: m for path, m in layers.items() if pattern.search(path)}
    if not chosen:
        linears = [path for path, layer in layers.items() if isinstance(layer, nn.Linear)]
        found = [re.search(TARGETS["attention+ff"], path) for path in linears]
        useful = dict.fromkeys(match.group().strip(".") for match in found if match)
        some = ", ".join(list(useful) or linears[:3]) or "none"
        known = ", ".join(TARGETS)
        problem = f"as a regular expression it matches no linear layer; layers have names such as {some}"
        raise ConfigError(f"targets {targets!r} is not one of {known}, and {problem}", option="targets")
    return chosen


def replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def compiled(pattern: str, option: str) -> re.Pattern:
    """Raises ValueError for what is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{option} {pattern!r} is not a regular expression: {error}", option=option
        ) from None


def unmatched_patterns(paths, config: AdapterConfig) -> list[str]:
    """The patterns of rank_pattern and k_pattern that match none of these paths, perhaps by a typo."""
    unmatched = []
    for text in (*config.rank_pattern, *config.k_pattern):
        pattern = compiled(text, "rank_pattern or k_pattern")
        if not any(pattern.search(path) for path in paths):
            unmatched.append(text)
    return unmatched


def first_match(patterns: dict, path: str, default):
    """The value of the first pattern that is found in this path."""
    for pattern, value in patterns.items():
        if compiled(pattern, "rank_pattern or k_pattern").search(path):
            return value
    return default
