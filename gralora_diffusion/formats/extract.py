"""An adapter from two checkpoints: the nearest LoRA or GraLoRA of what fine-tuning changed in its base.

The checkpoints are read tensor by tensor; only the adapter is in memory.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from gralora_diffusion.adapters.best_factors import best_of_matrix
from gralora_diffusion.formats.adapter_state import Adapter, describe
from gralora_diffusion.formats.base_files import Tensors
from gralora_diffusion.formats.base_weights import base_tensors
from gralora_diffusion.formats.nearest import (
    Converted,
    Row,
    check_blocks,
    check_sizes,
    gralora_factors,
    lora_factors,
)
from gralora_diffusion.formats.safetensors_files import opened
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import COMPONENTS, shapes
from gralora_diffusion.sdxl.objective import objective_of_checkpoint, objective_of_folder

FIRST = 4096  # numbers of a weight that are compared before all of them are


class Change(NamedTuple):
    """What one weight changed by: delta in its shape, fp32."""

    component: str
    path: str
    delta: torch.Tensor


def extract(
    tuned: str, base: str, rank: int, k: int | None = None, components: tuple[str, ...] = COMPONENTS
) -> Converted:
    """The nearest adapter of tuned - base: a LoRA of this rank, or with k a GraLoRA.

    Layers that did not change are left out; norms, biases and embeddings that did are named in left_out.
    Raises ConfigError where the two are not SDXL bases of one size, or nothing changed.
    """
    check_sizes(rank, 1.0, k)
    tuned_path, tuned_tensors = base_tensors(tuned)
    base_path, tensors_of_base = base_tensors(base)
    layers, rows, left_out = {}, {}, []
    lost = total = 0.0
    for component, path, delta in changes(tuned_tensors, tensors_of_base, components, left_out):
        where = f"{component}.{path}"
        matrix = delta.flatten(1)
        check_blocks(where, *matrix.shape, component, path, k or 1)
        best = best_of_matrix(matrix, min(rank, *matrix.shape) if k is None else rank, k or 1)
        make = lora_factors if k is None else gralora_factors
        factors = make(*best.pair(), component, path) if k is None else make(best, component, path)
        layers.setdefault(component, {})[path] = factors
        rows[where] = Row(best.A.shape[2] * (k or 1), best.error / best.norm)
        lost += best.error**2
        total += best.norm**2
    if not layers:
        raise ConfigError(f"{tuned_path} and {base_path} have the same weights: there is nothing to extract")
    facts = dict(layers_per_block=layers_per_block(tuned_path))
    if objective := objective_in(tuned_path):
        facts["objective"] = objective
    adapter = Adapter(describe(layers), layers, facts)
    return Converted(adapter, rows, math.sqrt(lost / total), left_out)


def layers_per_block(path: Path) -> int:
    return shapes(str(path))["unet"].config.layers_per_block


def objective_in(path: Path) -> dict:
    """What a model predicts, as its checkpoint or its scheduler says."""
    if path.is_dir():
        return objective_of_folder(path)
    with opened(path) as file:
        return objective_of_checkpoint(set(file.keys()), file.metadata() or {})


def changes(
    tuned: Tensors, base: Tensors, components: tuple[str, ...], left_out: list[str]
) -> Iterator[Change]:
    """The weights of layers that differ; the names of other parameters that do go to left_out."""
    for component in components:
        for name, tensor in base[component].items():
            other = tuned[component].get(name)
            if other is None or other.shape != tensor.shape:
                found = "is missing" if other is None else f"has the shape {other.shape}"
                problem = f"{component}.{name} {found} in the tuned model"
                raise ConfigError(f"{problem}; in the base it has the shape {tensor.shape}")
            before, after = tensor.read(), other.read()
            if same_numbers(before, after):
                continue
            delta = after.float() - before.float()
            # the norm is the quicker test: it is finite only where all numbers are
            if not delta.norm().isfinite() and not delta.isfinite().all():
                raise ConfigError(f"{component}.{name} holds numbers that are not finite")
            path, _, parameter = name.rpartition(".")
            if parameter != "weight" or delta.ndim < 2 or ".embeddings." in name:
                left_out.append(f"{component}.{name}")
            else:
                yield Change(component, path, delta)


def same_numbers(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a weight did not change, but for the dtype that it is stored in."""
    if before.numel() > FIRST and not same_numbers(before.flatten()[:FIRST], after.flatten()[:FIRST]):
        return False
    if before.dtype == after.dtype:
        return torch.equal(before, after)
    return torch.equal(before.to(after.dtype), after) or torch.equal(before, after.to(before.dtype))
