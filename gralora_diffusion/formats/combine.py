"""Several adapters as one, other strengths, and other kinds: what `gralora convert` does before it writes."""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from gralora_diffusion.adapters.best_factors import Best, best_of_energy, best_of_matrix, best_of_pair
from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.low_rank import joined
from gralora_diffusion.formats.adapter_state import Adapter, Factors, describe
from gralora_diffusion.formats.conv_factors import with_kernel
from gralora_diffusion.formats.layer_names import kernel_by_name
from gralora_diffusion.options import ConfigError

BaseWeight = Callable[[str, str], torch.Tensor]  # (component, parameter's name) -> the base's own


class Weighted(NamedTuple):
    """An adapter with its strength; by_layer: {regular expression: a further factor for layers it finds}."""

    adapter: Adapter
    strength: float = 1.0
    by_layer: dict[str, float] = {}  # noqa: RUF012 - never changed

    def strength_of(self, component: str, name: str) -> float:
        for pattern, factor in self.by_layer.items():
            if re.search(pattern, f"{component}.{name}"):
                return self.strength * factor
        return self.strength


class SumDelta(Delta):
    """The sum of several changes of one parameter, each times its strength."""

    def __init__(self, terms: list[tuple[Delta, float]]):
        super().__init__({})
        self.terms = terms
        self.NAME = " + ".join(dict.fromkeys(delta.NAME for delta, _ in terms))
        self.needs_base = any(delta.needs_base for delta, _ in terms)

    @property
    def rank(self) -> int | None:
        ranks = [delta.rank for delta, _ in self.terms]
        return None if None in ranks else sum(ranks)

    def to(self, device) -> "SumDelta":
        return SumDelta([(delta.to(device), strength) for delta, strength in self.terms])

    def pair(self):
        pairs = []
        for delta, strength in self.terms:
            pair = delta.pair()
            if pair is None:
                return None
            pairs.append((pair[0], pair[1] * strength))
        dtype = functools.reduce(torch.promote_types, [down.dtype for down, _ in pairs])
        return joined([(down.to(dtype), up.to(dtype)) for down, up in pairs])

    def delta(self, base=None):
        total = 0
        for delta, strength in self.terms:
            change = delta.delta(base) if base is None else delta.applied(base)
            total = total + strength * (change.flatten(1) if change.ndim > 1 else change)
        return total

    def check_fits(self, shape):
        for delta, _ in self.terms:
            delta.check_fits(shape)


def summed(inputs: list[Weighted]) -> Adapter:
    """One adapter whose changes are those of all inputs together, at their strengths.

    One input of our own kinds stays of its kind. Raises ConfigError for inputs of different objectives.
    """
    if len(inputs) == 1 and not inputs[0].adapter.deltas:
        return scaled(inputs[0])
    objectives = [w.adapter.facts["objective"] for w in inputs if w.adapter.facts.get("objective")]
    if any(objective != objectives[0] for objective in objectives):
        problem = "the adapters were trained for different predictions or noise schedules"
        raise ConfigError(f"{problem}, and cannot be combined: {objectives[0]} and {objectives[-1]}")
    terms: dict[tuple[str, str], list] = {}
    for weighted in inputs:
        for component, name, delta in weighted.adapter.changes():
            strength = weighted.strength_of(component, name)
            if strength:
                terms.setdefault((component, name), []).append((delta, strength))
    deltas: dict[str, dict[str, Delta]] = {}
    for (component, name), changes in terms.items():
        whole = changes[0][0] if len(changes) == 1 and changes[0][1] == 1 else SumDelta(changes)
        deltas.setdefault(component, {})[name] = whole
    if not deltas:
        raise ConfigError("all strengths are 0: nothing is left to write")
    return Adapter(describe({}), {}, common_facts(inputs), deltas)


def scaled(weighted: Weighted) -> Adapter:
    """An adapter of our own kinds at another strength: its up factors are multiplied."""
    adapter = weighted.adapter
    layers = {}
    for component, path, factors in adapter.items():
        strength = weighted.strength_of(component, f"{path}.weight")
        if strength == 0:
            continue
        new = {}
        for leaf, tensor in factors.items():
            new[leaf] = wide(tensor) * strength if leaf.endswith("_B") and strength != 1 else tensor
        layers.setdefault(component, {})[path] = new
    if not layers:
        raise ConfigError("all strengths are 0: nothing is left to write")
    return Adapter(adapter.config, layers, adapter.facts)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In fp32, or in fp64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def common_facts(inputs: list[Weighted]) -> dict:
    """The facts of several adapters, where those that have them agree."""
    facts = {}
    for name in ("base", "objective", "layers_per_block", "resolution"):
        values = [w.adapter.facts[name] for w in inputs if name in w.adapter.facts]
        if values and all(value == values[0] for value in values):
            facts[name] = values[0]
    if len(inputs) == 1:
        return inputs[0].adapter.facts
    return facts


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
            problem = f"{component}.{path} is a {delta.NAME}, which is not a low-rank LoRA"
            raise ConfigError(f"{problem}: give --rank N or --energy E for the best LoRA, with its error")
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
        raise ConfigError(f"nothing of it can be a LoRA: it changes norms and biases alone, such as {some}")


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
            problem = f"{where} is a {delta.NAME}, whose change depends on the base's weights"
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
    from gralora_diffusion.adapters.low_rank import truncate

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
