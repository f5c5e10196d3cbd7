"""What must be true of an adapter that was read from a file, before anything is done with it."""

import re

import torch

from gralora_diffusion.adapters.kinds import KINDS
from gralora_diffusion.config import PREDICTIONS
from gralora_diffusion.formats.adapter_state import Adapter, Factors, rank_of, sizes_of
from gralora_diffusion.formats.conv_factors import as_matrices
from gralora_diffusion.formats.layer_names import known
from gralora_diffusion.formats.safetensors_files import all_finite
from gralora_diffusion.formats.training_facts import MAX_TEXT, training_problem
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import FLOW, MOST_SHIFT, flow_objective

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE = ("alpha", "on_input", "scaled_oft")  # may be whole numbers too
LARGEST_RANK = 65536
NOT_IN_SDXL = (
    r"(down_blocks\.(0\.attentions|3)|up_blocks\.3)\."  # layers of Stable Diffusion 1 and 2, and the refiner
)


def checked(adapter: Adapter, path) -> Adapter:
    """Raises ConfigError unless every layer is whole, of SDXL, and of the sizes that the config names."""
    check_facts(adapter.facts, path)
    config = adapter.config
    ranks = {config.rank, *config.rank_pattern.values()}
    ks = {config.k, *config.k_pattern.values()}
    for component, changes in adapter.deltas.items():
        for name in changes:
            check_layer(component, name.rpartition(".")[0], f"{path}: {component}.{name}")
    for component, module_path, factors in adapter.items():
        where = f"{path}: {component}.{module_path}"
        check_layer(component, module_path, where)
        check_factors(factors, config.method, where)
        sizes = sizes_of(factors)
        if sizes is None:
            rank = rank_of(factors)
            if rank is not None and rank not in ranks:
                raise ConfigError(f"{where}: the header says rank {config.rank}, and the tensors have {rank}")
            continue
        rank, k, hybrid = sizes
        other_k = config.method == "gralora" and None not in ks and k not in ks
        if rank not in ranks or other_k or hybrid != config.hybrid_rank:
            header = f"rank {config.rank}, k {config.k}, hybrid_rank {config.hybrid_rank}"
            raise ConfigError(
                f"{where}: the header says {header}, and the tensors have {rank}, {k}, {hybrid}"
            )
    return adapter


def check_layer(component: str, module_path: str, where: str) -> None:
    """Raises ConfigError for a layer that SDXL does not have."""
    if component == "unet" and re.match(NOT_IN_SDXL, module_path):
        origin = "the adapter was made for Stable Diffusion 1 or 2, or for the refiner"
        raise ConfigError(f"{where}: SDXL's UNet has no such layer; {origin}")
    if not known(component, module_path):
        raise ConfigError(
            f"{where}: SDXL has no such layer; the adapter was made for a different kind of model"
        )


def check_facts(facts: dict, path) -> None:
    """Raises ConfigError for a header whose facts are none that we write."""
    objectives = [{}]
    for prediction in (kind for kind in PREDICTIONS if kind != FLOW):
        for zero_snr in (False, True):
            objectives.append(dict(prediction_type=prediction, rescale_betas_zero_snr=zero_snr))
    prompts = facts.get("prompts") or {}
    fit = isinstance(facts.get("base", {}), dict) and isinstance(prompts, dict)
    fit = fit and all(isinstance(prompt, str | None) for prompt in prompts.values())
    number = facts.get("layers_per_block", 2)
    fit &= type(number) is int and 1 <= number <= 4
    fit &= type(facts.get("resolution", 1024)) is int
    fit &= facts.get("objective", {}) in objectives or is_flow_objective(facts["objective"])
    if not fit:
        problem = "base, prompts, layers_per_block, resolution or objective is wrong; the file is damaged"
        raise ConfigError(f"{path}: its header cannot be read: {problem}")
    wrong = training_problem(facts.get("training", {})) or wrong_parents(facts)
    if wrong:
        raise ConfigError(f"{path}: its header cannot be read: {wrong} is wrong; the file is damaged")


def is_flow_objective(objective) -> bool:
    """Whether it is one that flow_objective() gives."""
    shift = objective.get("flow_shift") if isinstance(objective, dict) else None
    is_shift = shift is None or (type(shift) is float and 0 < shift <= MOST_SHIFT)
    return is_shift and objective == flow_objective(shift)


def wrong_parents(facts: dict) -> str | None:
    """Which record of the adapters that this one was made from is none that we write, or None."""
    if "parent" in facts and not (isinstance(facts["parent"], dict) and is_name(facts["parent"].get("name"))):
        return "parent"
    merged = facts.get("merged_from", [])
    return None if isinstance(merged, list) and all(map(is_name, merged)) else "merged_from"


def is_name(value) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def check_factors(factors: Factors, method: str, where: str) -> None:
    """Raises ConfigError unless these are the tensors of one layer, fit each other, and are finite."""
    kind = KINDS[method]
    if set(factors) not in kind.LEAVES:
        needed = " or ".join(", ".join(sorted(names)) for names in kind.LEAVES)
        raise ConfigError(f"{where} holds {', '.join(sorted(factors))}; {method} layers need {needed}")
    check_shapes(factors, where)
    check_tensors(factors, where)


def check_tensors(tensors: Factors, where: str) -> None:
    """Raises ConfigError for a tensor that is no floating-point one, is empty, or is not finite."""
    for name, tensor in tensors.items():
        whole = not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
        if name in WHOLE and whole and tensor.numel() == 1:
            continue
        if tensor.dtype not in FLOATS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(f"{where}.{name} is {dtype}; adapters are fp8, fp16, bf16, fp32 or fp64")
        if 0 in tensor.shape:
            raise ConfigError(f"{where}.{name} is empty, {list(tensor.shape)}; the file is damaged")
        if not all_finite(tensor):
            raise ConfigError(f"{where}.{name} holds numbers that are not finite; the file is damaged")


def check_shapes(factors: Factors, where: str) -> None:
    """Raises ConfigError for a LoRA or a GraLoRA whose tensors do not fit each other.

    The shapes of other kinds are compared with the base's layer when they are loaded.
    """
    if any(0 in tensor.shape for tensor in factors.values()):
        raise ConfigError(f"{where}: a tensor has the wrong number of dimensions")
    kernels = {tuple(t.shape[2:4]) for t in factors.values() if t.ndim > 3}
    given, factors = factors, as_matrices(factors)
    dimensions = dict(lora_A=2, lora_B=2, gralora_A=3, gralora_B=3, ortho_A=2, ortho_B=2)
    if any(tensor.ndim != dimensions.get(name, tensor.ndim) for name, tensor in factors.items()):
        raise ConfigError(f"{where}: a tensor has the wrong number of dimensions")
    fit = len(kernels) < 2
    if "lora_A" in factors:
        fit &= factors["lora_A"].shape[0] == factors["lora_B"].shape[1]
    if "ortho_A" in factors:
        for side in ("A", "S", "B"):
            fit &= factors[f"ortho_{side}"].shape == factors[f"start_{side}"].shape
        fit &= factors["ortho_S"].shape == factors["ortho_A"].shape[:1] == factors["ortho_B"].shape[1:]
    if "gralora_A" in factors:
        k, n, r = factors["gralora_A"].shape
        k_of_B, r_of_B, m = factors["gralora_B"].shape
        fit &= k == k_of_B and r == r_of_B and r % k == 0
        if "lora_A" in factors:
            fit &= factors["lora_A"].shape[1] == k * n and factors["lora_B"].shape[0] == k * m
    if not fit or (rank_of(factors) or 0) > LARGEST_RANK:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in given.items())
        raise ConfigError(f"{where}: its tensors do not fit each other: {shapes}")
