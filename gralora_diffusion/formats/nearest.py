"""Other kinds of adapters: a plain LoRA that is equal, or the nearest LoRA or GraLoRA of a size."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from gralora_diffusion.adapters.best_factors import Best, best_of_energy, best_of_matrix, best_of_pair
from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.low_rank import truncate
from gralora_diffusion.formats.adapter_state import Adapter, Factors, describe, note_lost_mask
from gralora_diffusion.formats.conv_factors import with_kernel
from gralora_diffusion.formats.layer_names import kernel_by_name
from gralora_diffusion.options import ConfigError

BaseWeight = Callable[[str, str], torch.Tensor]  # (component, parameter's name) -> the base's own


class Row(NamedTuple):
    """What one layer kept: its new rank, and the relative error in the Frobenius norm."""

    rank: int
    error: float


class Converted(NamedTuple):
    """adapter: of a plain kind; rows: {layer: Row}; error: of the whole; left_out: names without a LoRA."""

    adapter: Adapter
    rows: dict[str, Row]
    error: float
    left_out: list[str]


def as_lora(adapter: Adapter) -> Converted:
    """A plain LoRA with the same delta, exactly; the ranks of a sum add up.

    Raises ConfigError where a change has no low-rank pair, and names it.
    """
    makers, rows, left_out = {}, {}, []
    for component, path, delta in weights(adapter, left_out):
        pair = delta.pair()
        if pair is None:
            problem = f"{component}.{path} is of the kind {delta.NAME}, which is not a low-rank LoRA"
            ways = "give --rank N or --energy E for the best LoRA, with its error"
            if delta.needs_base:
                ways += ", and the base with --pretrained_model_name_or_path"
            raise ConfigError(f"{problem}: {ways}")
        makers.setdefault(component, {})[path] = functools.partial(factors_of, delta, component, path)
        rows[f"{component}.{path}"] = Row(pair[0].shape[0], 0.0)
    check_any(makers, left_out)
    layers = {component: Computed(found) for component, found in makers.items()}
    return Converted(Adapter(describe(layers), layers, adapter.facts), rows, 0.0, left_out)


def nearest(
    adapter: Adapter,
    rank: int | None = None,
    energy: float = 1.0,
    k: int | None = None,
    base: BaseWeight | None = None,
) -> Converted:
    """The nearest plain LoRA of at most this rank or this energy, or with k the nearest GraLoRA of this rank.

    energy: the part of each layer's |delta|^2 that is kept. base: for kinds that need the base's weights.
    Errors are Frobenius norms.  Raises ConfigError for sizes that do not fit, or a base that is missing.
    """
    check_sizes(rank, energy, k)
    note_lost_mask([adapter])
    layers, rows, left_out = {}, {}, []
    lost = total = 0.0
    for component, path, delta in weights(adapter, left_out):
        where = f"{component}.{path}"
        best = best_for(delta, rank, energy, k or 1, base, component, path)
        if k is None:
            factors = lora_factors(*best.pair(), component, path)
        else:
            factors = gralora_factors(best, component, path)
        layers.setdefault(component, {})[path] = factors
        new_rank = best.A.shape[2] * (k or 1)
        rows[where] = Row(new_rank, best.error / best.norm if best.norm else 0.0)
        lost += best.error**2
        total += best.norm**2
    check_any(layers, left_out)
    whole = math.sqrt(lost / total) if total else 0.0
    return Converted(Adapter(describe(layers), layers, adapter.facts), rows, whole, left_out)


def check_any(layers: dict, left_out: list[str]) -> None:
    """Raises ConfigError where nothing of an adapter has a place in a LoRA."""
    if not layers:
        some = ", ".join(left_out[:3])
        raise ConfigError(
            f"it cannot be converted to a LoRA: it changes only norms and biases, such as {some}"
        )


def check_sizes(rank: int | None, energy: float, k: int | None) -> None:
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank is {rank}; it must be at least 1")
    if not 0 < energy <= 1:
        raise ConfigError(f"--energy is {energy}; it must be above 0 and at most 1, which keeps everything")
    if k is not None and (rank is None or k < 1 or rank % k):
        raise ConfigError(f"--k is {k}, and --rank {rank}; a GraLoRA needs a --rank that k divides")


def best_for(
    delta: Delta, rank: int | None, energy: float, k: int, base: BaseWeight | None, component: str, path: str
) -> Best:
    pair = delta.pair()
    where = f"{component}.{path}"
    if pair is not None:
        down, up = pair
        check_finite(where, down, up)
        check_blocks(where, up.shape[0], down.shape[1], component, path, k)
        limit = min(down.shape[0], *(down.shape[1], up.shape[0])) if k == 1 else None
        if rank is None:
            return energy_of_pair(down, up, energy)
        return best_of_pair(down, up, min(rank, limit) if limit else rank, k)
    weight = None
    if delta.needs_base:
        if base is None:
            problem = f"{where} is of the kind {delta.NAME}, whose change depends on the base's weights"
            raise ConfigError(f"{problem}: give the base with --pretrained_model_name_or_path")
        weight = base(component, f"{path}.weight").float()
        check_fits_weight(delta, weight, where)
    matrix = delta.delta(weight)
    matrix = (matrix if weight is None else matrix.reshape(weight.shape)).flatten(1)
    check_finite(where, matrix)
    check_blocks(where, *matrix.shape, component, path, k)
    if rank is None:
        return best_of_energy(matrix, energy)
    return best_of_matrix(matrix, min(rank, *matrix.shape) if k == 1 else rank, k)


def energy_of_pair(down: torch.Tensor, up: torch.Tensor, energy: float) -> Best:
    new_down, new_up, error, norm = truncate(down, up, None, energy)
    return Best(new_down[None, None], new_up[None, None], error, norm)


def check_finite(where: str, *matrices: torch.Tensor) -> None:
    """Raises ConfigError where finite factors have a product that is not."""
    if not all(bool(matrix.isfinite().all()) for matrix in matrices):
        raise ConfigError(f"{where}: its change holds numbers that are not finite; the file is damaged")


def check_fits_weight(delta: Delta, weight: torch.Tensor, where: str) -> None:
    try:
        delta.check_fits(tuple(weight.shape))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def check_blocks(where: str, m: int, n: int, component: str, path: str, k: int) -> None:
    """Raises ConfigError where k does not divide the channels."""
    kernel = kernel_by_name(component, path)
    channels = n // (kernel[0] * kernel[1]) if kernel else n
    if m % k or channels % k:
        raise ConfigError(f"{where}: --k {k} does not divide its sizes {channels} -> {m}")


def weights(adapter: Adapter, left_out: list[str]) -> Iterator[tuple[str, str, Delta]]:
    """(component, module path, change) of the weights of layers; other parameters' names go to left_out."""
    for component, name, delta in adapter.changes():
        path, _, parameter = name.rpartition(".")
        if parameter == "weight" and "norm" not in path.rpartition(".")[2]:
            yield component, path, delta
        else:
            left_out.append(f"{component}.{name}")


class Computed(Mapping):
    """{module path: factors}, made when they are asked for: those of a whole sum are never in memory."""

    def __init__(self, makers: dict[str, Callable[[], Factors]]):
        self.makers = makers
        self.last: tuple[str, Factors] | None = None  # one layer is asked for several times in a row

    def __getitem__(self, path: str) -> Factors:
        if self.last is None or self.last[0] != path:
            self.last = None
            self.last = path, self.makers[path]()
        return self.last[1]

    def __iter__(self):
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


def factors_of(delta: Delta, component: str, path: str) -> Factors:
    """lora_factors() of a change that has a pair."""
    return lora_factors(*delta.pair(), component, path)


def lora_factors(down: torch.Tensor, up: torch.Tensor, component: str, path: str) -> Factors:
    """lora_A [r, N] or [r, C, kh, kw], lora_B [M, r] in fp32."""
    factors = dict(lora_A=down.float().contiguous(), lora_B=up.float().contiguous())
    return with_kernel(factors, kernel_by_name(component, path))


def gralora_factors(best: Best, component: str, path: str) -> Factors:
    """gralora_A [k, N/k, r] or [k, C/k, kh, kw, r], gralora_B [k, r, M/k] in fp32."""
    A, B = best.gralora()
    factors = dict(gralora_A=A.float().contiguous(), gralora_B=B.float().contiguous())
    return with_kernel(factors, kernel_by_name(component, path))
