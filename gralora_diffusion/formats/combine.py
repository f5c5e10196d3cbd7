"""Several adapters as one, and other strengths."""

import functools
import re
from typing import NamedTuple

import torch

from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.low_rank import joined
from gralora_diffusion.formats.adapter_state import Adapter, describe, note_lost_mask, wide
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.objective import common_objective


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

    def learn(self, shape):
        for delta, _ in self.terms:
            delta.learn(shape)

    def check_fits(self, shape):
        for delta, _ in self.terms:
            delta.check_fits(shape)


def summed(inputs: list[Weighted]) -> Adapter:
    """One adapter whose changes are those of all inputs together, at their strengths.

    One input of our own kinds stays of its kind. Raises ConfigError for inputs of different objectives.
    """
    if len(inputs) == 1 and not inputs[0].adapter.deltas:
        return scaled(inputs[0])
    common_objective([weighted.adapter.facts.get("objective") for weighted in inputs])
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
    note_lost_mask([weighted.adapter for weighted in inputs])
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
