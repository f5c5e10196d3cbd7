"""Layers of PEFT's kinds that are no LoRA: OFT, BOFT, (IA)3 and VeRA.

What their tensors mean is in adapter_config.json; some tensors mean the same whatever it says.
"""

import re

import torch

from gralora_diffusion.adapters.peft_kinds import PeftBOFT, PeftDelta, PeftIA3, PeftOFT
from gralora_diffusion.adapters.vera import PeftVeRA, Projections, SeededVeRA
from gralora_diffusion.formats.adapter_state import Factors
from gralora_diffusion.formats.check import check_tensors
from gralora_diffusion.formats.layer_names import kernel_by_name
from gralora_diffusion.formats.layer_parts import LayerParts, misfit
from gralora_diffusion.options import ConfigError

PEFT_DELTAS: dict[str, type[PeftDelta]] = dict(OFT=PeftOFT, BOFT=PeftBOFT, IA3=PeftIA3, VERA=PeftVeRA)
BY_TENSORS = (PeftBOFT, PeftIA3, PeftVeRA)  # what they mean is the same in every config
PROJECTIONS = {"base_model.vera_A": "vera_A", "base_model.vera_B": "vera_B"}  # shared by all layers
WITHOUT_BIAS = re.compile(r"\.attn\d\.to_[qkv]$|^text_projection$")


def is_peft_delta(leaves: Factors, config: dict | None) -> bool:
    """Whether a layer is of these kinds: by PEFT's config, or without one by its tensors."""
    if config is None:
        return any(set(leaves) == kind.NEEDED for kind in BY_TENSORS)
    kind = config.get("peft_type")
    return isinstance(kind, str) and kind in PEFT_DELTAS


def peft_parts(leaves: Factors, config: dict | None, component: str, path: str, where: str) -> LayerParts:
    """The change of one layer.  Raises ConfigError where its tensors or the options do not fit."""
    projections = leaves.pop("projections", None)
    check_tensors(leaves, where)
    if config is None:
        kind = next(kind for kind in BY_TENSORS if set(leaves) == kind.NEEDED)
    else:
        kind = PEFT_DELTAS[config["peft_type"]]
    if projections is not None:
        kind = SeededVeRA
    if set(leaves) != set(kind.NEEDED):
        held = ", ".join(sorted(leaves))
        raise ConfigError(f"{where} holds {held}; {kind.NAME} needs {' and '.join(sorted(kind.NEEDED))}")
    is_conv = kernel_by_name(component, path) is not None
    options = config
    if kind is PeftIA3:
        options = dict(on_input=scales_inputs(leaves["ia3_l"], config, is_conv, path, where))
    if kind is SeededVeRA:
        options = dict(projections=projections)
    if issubclass(kind, PeftVeRA) and is_conv:
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


def seeded(found: dict[tuple[str, str], Factors], config: dict) -> Projections:
    """The projections of a VeRA that is stored without them.  Raises ValueError as Projections does."""
    rank = max(leaves["vera_lambda_d"].numel() for leaves in found.values())
    rows = max(leaves["vera_lambda_b"].numel() for leaves in found.values())
    return Projections(config.get("projection_prng_key"), rank, rows)


def scales_inputs(scale: torch.Tensor, config: dict | None, is_conv: bool, path: str, where: str) -> bool:
    """Whether (IA)3 scales what goes into a layer: by the shape, of a convolution by feedforward_modules."""
    if not is_conv:
        if scale.ndim != 2 or 1 not in scale.shape:
            raise ConfigError(
                f"{where}: its ia3_l has the shape {list(scale.shape)}; it must be [n, 1] or [1, n]"
            )
        return scale.shape[0] == 1
    if config is None:
        problem = "whether its ia3_l scales inputs or outputs is in PEFT's adapter_config.json"
        raise ConfigError(f"{where}: {problem}: give the folder with both files")
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
