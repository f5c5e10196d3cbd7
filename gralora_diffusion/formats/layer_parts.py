"""What the tensors of one layer mean: a plain LoRA, or another kind's change of weight and bias."""

import math
from typing import NamedTuple

import torch

from gralora_diffusion.adapters.deltas import Delta, EmbeddingDelta, FullDelta, LowRankDelta, Replacement
from gralora_diffusion.adapters.dora import DoRA
from gralora_diffusion.adapters.low_rank import scale_of
from gralora_diffusion.adapters.lycoris import IA3, GLoRA, LoHa, LoKr
from gralora_diffusion.adapters.lycoris_tlora import LycorisTLoRA
from gralora_diffusion.adapters.oft_v2 import OFTv2
from gralora_diffusion.adapters.orthogonal import BOFT, OFT
from gralora_diffusion.formats.adapter_state import Factors
from gralora_diffusion.formats.check import LARGEST_RANK, check_tensors
from gralora_diffusion.formats.conv_factors import with_kernel
from gralora_diffusion.formats.layer_names import kernel_by_name
from gralora_diffusion.formats.patterns import pattern_value
from gralora_diffusion.options import ConfigError

DELTAS: tuple[type[Delta], ...] = (
    LowRankDelta,
    LoHa,
    LoKr,
    GLoRA,
    OFT,
    BOFT,
    IA3,
    FullDelta,
    Replacement,
    EmbeddingDelta,
    LycorisTLoRA,
    OFTv2,
)
PEFT_OWN = {"oft_R", "boft_R", "boft_s", "ia3_l", "vera_lambda_b", "vera_lambda_d"}  # see peft_deltas.py
LARGEST_WEIGHT = 2**27  # numbers; the largest of SDXL has 2**25
LARGEST_ALPHA = 1e30
BIASES = {"lora_bias", "diff_b", "set_bias"}
BESIDE = {"alpha", "scalar", "dora_scale", "magnitude", *BIASES}  # the tensors of any kind


class LayerParts(NamedTuple):
    """factors: of a plain LoRA of scale 1; weight, bias: the changes of other kinds."""

    factors: Factors | None = None
    weight: Delta | None = None
    bias: Delta | None = None


def parts_of(leaves: Factors, config: dict | None, component: str, path: str, where: str) -> LayerParts:
    """leaves: {our name of the tensor: tensor}; config: PEFT's, where there is one.

    Raises ConfigError for tensors that are no whole layer of a known kind, that do not fit each other, or
    that are not finite.
    """
    check_tensors(leaves, where)
    if "scalar" in leaves:
        problem = f"{where} has a `scalar`, which only a trainer's own checkpoint holds"
        raise ConfigError(f"{problem}: export the adapter from that trainer")
    if config is not None and config.get("use_dora") and "magnitude" not in leaves:
        raise ConfigError(f"{where}: the header says use_dora, and the layer has no magnitude")
    own = {name: tensor for name, tensor in leaves.items() if name not in BESIDE}
    alpha = effective_alpha(leaves, own, config, path, where)
    bias = bias_of(leaves, own, alpha, where)
    if not own and set(leaves) <= {"diff_b", "set_bias", "alpha"}:
        return LayerParts(bias=bias)
    kernel = kernel_by_name(component, path)
    scale = None
    if config is not None and "lora_A" not in own:  # PEFT scales LoHa and LoKr by the config's rank
        scale = alpha / pattern_value(config.get("rank_pattern"), path, config["r"])
    weight = delta_of(own, alpha, scale, where)
    if isinstance(weight, EmbeddingDelta) and not path.endswith("_embedding"):
        raise ConfigError(f"{where} holds a LoRA of an embedding, but is another layer; the file is damaged")
    check_sizes(weight, kernel, "norm" in path.rpartition(".")[2], where)
    if "magnitude" in leaves or "dora_scale" in leaves:
        weight = decomposed(weight, leaves, where)
    elif isinstance(weight, LowRankDelta) and bias is None:
        return LayerParts(factors=plain_lora(weight, kernel))
    return LayerParts(weight=weight, bias=bias)


def delta_of(own: Factors, alpha: float | None, scale: float | None, where: str) -> Delta:
    """The change that these tensors are; scale: in the place of alpha/rank."""
    kind = next((kind for kind in DELTAS if kind.matches(own)), None)
    if kind is None:
        held = ", ".join(sorted(own)) or "no tensor of a weight"
        likely = [kind for kind in DELTAS if kind.NEEDED and set(own) & (kind.NEEDED | kind.OPTIONAL)]
        needs = [f"{kind.NAME} needs {' and '.join(sorted(kind.NEEDED))}" for kind in likely]
        if needs:
            needs.append("save or download the file again")
        problem = "; ".join(dict.fromkeys(needs)) or "they are not a complete layer of a known kind"
        if set(own) & PEFT_OWN:
            problem = "what they mean is in PEFT's adapter_config.json: give the folder with both files"
        raise ConfigError(f"{where} holds {held}; {problem}")
    try:
        return kind(own, alpha, scale)
    except (ValueError, IndexError, RuntimeError) as error:
        raise misfit(own, error, where) from None


def check_sizes(delta: Delta, kernel: tuple[int, int] | None, is_norm: bool, where: str) -> None:
    """Raises ConfigError for tensors that do not fit each other, or the layer; nothing is computed."""
    try:
        if delta.rank is not None and not 1 <= delta.rank <= LARGEST_RANK:
            raise ValueError(f"the rank is {delta.rank}")
        hollow = delta.to("meta")
        if isinstance(delta, LowRankDelta):
            numbers = sum(tensor.numel() for tensor in hollow.pair())
            if numbers > LARGEST_WEIGHT:
                raise ValueError("they are too large")
        if not delta.needs_base:
            check_shape(delta, hollow.delta(), kernel, is_norm)
    except (ValueError, IndexError, RuntimeError) as error:
        raise misfit(delta.tensors, error, where) from None


def check_shape(delta: Delta, change: torch.Tensor, kernel: tuple[int, int] | None, is_norm: bool) -> None:
    """Raises ValueError unless a change can be one of this layer's weight."""
    shape = list(change.shape)
    if change.numel() > LARGEST_WEIGHT or 0 in shape:
        raise ValueError(f"they are for a weight of {shape}")
    if is_norm != (change.ndim == 1) or change.ndim == 0:
        raise ValueError("a norm has one number per channel, and any other weight has rows and columns")
    down = delta.tensors.get("lora_A")
    given = None if down is None or "lora_mid" in delta.tensors else down.shape[2:]
    given = tuple(given if given is not None else shape[2:])
    columns = math.prod(shape[1:])
    if kernel is None and any(side != 1 for side in given):
        raise ValueError("they are for a convolution")
    if kernel is not None and (columns % math.prod(kernel) or given not in ((), kernel)):
        raise ValueError(f"the layer has a kernel of {kernel[0]} x {kernel[1]}")


def misfit(tensors: Factors, error: Exception, where: str) -> ConfigError:
    """That tensors do not fit each other; a ValueError says why."""
    shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items())
    reason = f" ({error})" if isinstance(error, ValueError) else ""
    return ConfigError(f"{where}: its tensors do not fit each other{reason}: {shapes}")


def effective_alpha(
    leaves: Factors, own: Factors, config: dict | None, path: str, where: str
) -> float | None:
    """alpha of the scale alpha/rank: by PEFT's config where there is one, else the file's, else None."""
    alpha = None
    if "alpha" in leaves:
        if leaves["alpha"].numel() != 1:
            raise ConfigError(f"{where}: its alpha is not one number")
        alpha = leaves["alpha"].item()
    if config is not None:
        name = "lora_alpha" if "lora_alpha" in config else "alpha"
        header_rank = pattern_value(config.get("rank_pattern"), path, config.get("r"))
        alpha = pattern_value(config.get("alpha_pattern"), path, config.get(name))
        if type(header_rank) is not int or header_rank < 1 or type(config.get("r")) is not int:
            raise ConfigError(f"{where}: the header says rank {header_rank!r}; it must be a positive number")
        if "lora_A" in own and header_rank != own["lora_A"].shape[0]:
            found = own["lora_A"].shape[0]
            raise ConfigError(f"{where}: the header says rank {header_rank}, and the tensors have {found}")
    known = isinstance(alpha, int | float) and -LARGEST_ALPHA < alpha < LARGEST_ALPHA
    if not known and (alpha is not None or config is not None):
        raise ConfigError(f"{where}: its alpha is {str(alpha)[:40]!r}; it must be a number")
    if config is not None and alpha is not None and config.get("use_rslora"):
        alpha = scale_of(header_rank, alpha, True) * header_rank
    return alpha


def bias_of(leaves: Factors, own: Factors, alpha: float | None, where: str) -> Delta | None:
    """diff_b as it is, set_bias in the bias's place; PEFT's bias of lora_B is scaled as the product is."""
    if "set_bias" in leaves:
        if len(BIASES.intersection(leaves)) > 1:
            raise ConfigError(f"{where} holds two changes of one bias; the file is damaged")
        return Replacement(dict(set_weight=leaves["set_bias"]))
    if "lora_bias" not in leaves:
        return FullDelta(dict(diff=leaves["diff_b"])) if "diff_b" in leaves else None
    if "diff_b" in leaves or "lora_A" not in own:
        problem = "holds a bias of lora_B, which only a LoRA without another bias can have"
        raise ConfigError(f"{where} {problem}")
    scale = 1.0 if alpha is None else alpha / own["lora_A"].shape[0]
    return FullDelta(dict(diff=leaves["lora_bias"].float() * scale))


def decomposed(inner: Delta, leaves: Factors, where: str) -> DoRA:
    """The DoRA of a delta; dora_scale is [M, 1, ...], or [1, N, ...] of the inputs, PEFT's magnitude of M."""
    if inner.needs_base or isinstance(inner, EmbeddingDelta):
        raise ConfigError(f"{where}: a DoRA of {inner.NAME} is not supported")
    if "magnitude" in leaves:
        return DoRA(inner, leaves["magnitude"].flatten())
    magnitude = leaves["dora_scale"]
    on_inputs = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] > 1
    return DoRA(inner, magnitude.flatten(), on_inputs)


def plain_lora(delta: LowRankDelta, kernel: tuple[int, int] | None) -> Factors:
    """lora_A [r, N] or [r, N, kh, kw], lora_B [M, r] of scale 1, without padding.

    What need not be changed stays in the file's dtype, and so in the file until it is used; the rest is fp32,
    or fp64. Padding: the rows of zeros that other tools need to make all ranks equal.
    """
    down, up = delta.tensors["lora_A"].flatten(1), delta.tensors["lora_B"].flatten(1)
    if "lora_mid" in delta.tensors or 1 in (down.itemsize, up.itemsize):
        down, up = delta.pair()
    elif delta.scaled(up.shape[1]) != 1:
        up = delta.pair()[1]
    used = ((down != 0).any(1) | (up != 0).any(0)).nonzero()
    rank = int(used.max()) + 1 if len(used) else 1
    down = down[:rank].contiguous()
    return with_kernel(dict(lora_A=down, lora_B=up[:, :rank].contiguous()), kernel)
