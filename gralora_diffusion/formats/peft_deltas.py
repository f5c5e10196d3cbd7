"""Layers of PEFT's kinds besides LoRA: OFT, BOFT, IA3 and VeRA, read with their adapter_config.json."""

import re

import torch

from gralora_diffusion.adapters.peft_kinds import PeftBOFT, PeftDelta, PeftIA3, PeftOFT, PeftVeRA
from gralora_diffusion.formats.adapter_state import Factors
from gralora_diffusion.formats.check import check_tensors
from gralora_diffusion.formats.layer_names import kernel_by_name
from gralora_diffusion.formats.layer_parts import LayerParts, misfit
from gralora_diffusion.options import ConfigError

PEFT_DELTAS: dict[str, type[PeftDelta]] = dict(OFT=PeftOFT, BOFT=PeftBOFT, IA3=PeftIA3, VERA=PeftVeRA)
PROJECTIONS = {"base_model.vera_A": "vera_A", "base_model.vera_B": "vera_B"}  # shared by all layers
WITHOUT_BIAS = re.compile(r"\.attn\d\.to_[qkv]$|^text_projection$")


def is_peft_delta(config: dict | None) -> bool:
    kind = None if config is None else config.get("peft_type")
    return isinstance(kind, str) and kind in PEFT_DELTAS


def peft_parts(leaves: Factors, config: dict, component: str, path: str, where: str) -> LayerParts:
    """The change of one layer.  Raises ConfigError if its tensors or the options do not fit."""
    check_tensors(leaves, where)
    kind = PEFT_DELTAS[config["peft_type"]]
    if set(leaves) != set(kind.NEEDED):
        held = ", ".join(sorted(leaves))
        raise ConfigError(f"{where} holds {held}; {kind.NAME} needs {' and '.join(sorted(kind.NEEDED))}")
    is_conv = kernel_by_name(component, path) is not None
    options = config
    if kind is PeftIA3:
        options = dict(on_input=scales_inputs(leaves["ia3_l"], config, is_conv, path, where))
    if kind is PeftVeRA and is_conv:
        raise ConfigError(f"{where} is a convolution, which VeRA cannot change")
    try:
        if kind is PeftVeRA:
            check_projections(leaves)
        weight = kind(leaves, options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, IndexError) as error:
        raise misfit(leaves, ValueError(str(error)), where) from None
    bias = None
    if kind is PeftIA3 and not options["on_input"] and not WITHOUT_BIAS.search(f".{path}"):
        bias = PeftIA3(leaves, options)
    return LayerParts(weight=weight, bias=bias)


def scales_inputs(scale: torch.Tensor, config: dict, is_conv: bool, path: str, where: str) -> bool:
    """Whether IA3 scales a layer's inputs: from the shape, or for a convolution from feedforward_modules."""
    if not is_conv:
        if scale.ndim != 2 or 1 not in scale.shape:
            raise ConfigError(
                f"{where}: its ia3_l has the shape {list(scale.shape)}; it must be [n, 1] or [1, n]"
            )
        return scale.shape[0] == 1
    names = config.get("feedforward_modules") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problem = "feedforward_modules must be a list of names if convolutions are adapted"
        raise ConfigError(f"{where}: {problem}; save the adapter with such a list")
    return any(path.endswith(name) for name in names)


def check_projections(leaves: Factors) -> None:
    """Raises ValueError if the shared matrices do not have the layer's rank."""
    rank = leaves["vera_lambda_d"].numel()
    A, B = leaves["vera_A"], leaves["vera_B"]
    if A.ndim != 2 or B.ndim != 2 or len(A) != rank or B.shape[1] != rank:
        raise ValueError("vera_A, vera_B and vera_lambda_d have different ranks")
    if leaves["vera_lambda_b"].numel() > len(B):
        raise ValueError("vera_B has fewer rows than the layer")
