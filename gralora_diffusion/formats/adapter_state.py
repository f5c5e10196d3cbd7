"""An adapter without a model: the form in which all file formats meet, and the checks of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from gralora_diffusion import __version__
from gralora_diffusion.adapters.delta_adapter import DeltaAdapter
from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.inject import TARGETS, first_match
from gralora_diffusion.adapters.kinds import KINDS
from gralora_diffusion.adapters.low_rank import scale_of, without_cancellation
from gralora_diffusion.adapters.registry import common_and_others, handles
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.console import note
from gralora_diffusion.formats.conv_factors import Kernel, as_matrices, kernel_of, with_kernel
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint
from gralora_diffusion.sdxl.load import COMPONENTS

Factors = dict[str, torch.Tensor]  # of one layer, by the adapter's parameter names
Layers = dict[str, dict[str, Factors]]


@dataclass
class Adapter:
    """What an adapter file holds, whatever its format, without a model.

    layers: {component: {module path: factors}} with diffusers' paths; factors: gralora_A [k, N/k, r],
    gralora_B [k, r, M/k], lora_A [r, N], lora_B [M, r], or what another kind of adapter has for parameters;
    of a convolution lora_A [r, C, kh, kw], gralora_A [k, C/k, kh, kw, r], see conv_factors.py.
    facts: base, prompts, objective, layers_per_block and resolution, as far as they are known.
    deltas: {component: {parameter's name: Delta}}, what other tools' kinds change in weights and biases.
    """

    config: AdapterConfig
    layers: Layers
    facts: dict = field(default_factory=dict)
    deltas: dict[str, dict[str, Delta]] = field(default_factory=dict)

    @classmethod
    def from_models(
        cls, models: dict[str, nn.Module], base: str | None = None, prompts: dict | None = None
    ) -> "Adapter":
        """The adapters of {component: model}.

        Raises ValueError when there are none, or several in one model.
        """
        layers = {}
        configs = []
        for component, model in models.items():
            found = list(handles(model).values())
            if len(found) > 1:
                raise ValueError("several adapters are loaded: remove() all but the one to save")
            for handle in found:
                configs.append(handle.config)
                layers[component] = {}
                for path, adapter in handle.layers.items():
                    if isinstance(adapter, DeltaAdapter):
                        raise ValueError(
                            "an adapter of another tool's kind cannot be saved: convert its file"
                        )
                    factors = {leaf: p.detach() for leaf, p in adapter.named_parameters()}
                    layers[component][canonical(component, path)] = with_kernel(factors, adapter.kernel)
        if not layers:
            raise ValueError(f"nothing to save: none of {', '.join(models)} has adapters")
        facts = dict(version=__version__, prompts=prompts or {})
        if "unet" in models:
            unet = models["unet"]
            name = base or getattr(unet.config, "_name_or_path", "")
            facts["base"] = dict(name=name, fingerprint=fingerprint(unet))
            facts["layers_per_block"] = unet.config.layers_per_block
            facts["resolution"] = unet.config.sample_size * 8
        return cls(configs[0], layers, facts)

    @property
    def components(self) -> list[str]:
        """The models that it is for."""
        return [name for name in COMPONENTS if name in self.layers or name in self.deltas]

    def items(self) -> Iterator[tuple[str, str, Factors]]:
        """(component, module path, factors) of every layer."""
        for component, found in self.layers.items():
            for path, factors in found.items():
                yield component, path, factors

    def changes(self) -> Iterator[tuple[str, str, Delta]]:
        """(component, parameter's name, change) of everything that the adapter adds to a base."""
        for component, path, _ in self.items():
            yield component, f"{path}.weight", OwnDelta(self, component, path)
        for component, found in self.deltas.items():
            for name, delta in found.items():
                yield component, name, delta

    def foreign_kinds(self) -> list[str]:
        """The names of other tools' kinds that it holds."""
        names = [delta.NAME for found in self.deltas.values() for delta in found.values()]
        return list(dict.fromkeys(names))

    def rank(self, path: str, factors: Factors) -> int:
        """The rank of a layer: by its tensors, or by the config for a kind whose tensors have no rank."""
        rank = rank_of(factors)
        return first_match(self.config.rank_pattern, path, self.config.rank) if rank is None else rank

    def scale(self, path: str, factors: Factors) -> float:
        return scale_of(self.rank(path, factors), self.config.alpha, self.config.rslora)

    def kernel(self, component: str, path: str) -> Kernel | None:
        """(kh, kw) of a convolution, None of a linear layer."""
        return kernel_of(self.layers[component][path])

    def low_rank(self, component: str, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(down [R, N], up [M, R]) of one layer, the scale folded into `up`; fp32, or fp64 for fp64 factors.

        N = C*kh*kw of a convolution.  Raises ConfigError for a kind of adapter without such a pair.
        """
        factors = as_matrices(self.layers[component][path])
        factors = {leaf: wide(tensor) for leaf, tensor in factors.items()}
        pair = KINDS[self.config.method].low_rank_of(factors, self.scale(path, factors))
        if pair is None:
            raise self.no_low_rank()
        return pair

    def for_file(self, component: str, path: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """low_rank() for a file of this dtype, in which rounding does not lose a small delta."""
        pair = self.low_rank(component, path)
        return without_cancellation(*pair) if dtype.itemsize < 4 else pair

    def exported_rank(self, component: str) -> int:
        """The rank of the largest layer as a plain LoRA, for files with one rank per model.

        Raises ConfigError as low_rank() does.
        """
        kind = KINDS[self.config.method]
        ranks = [kind.pair_rank_of(as_matrices(factors)) for factors in self.layers[component].values()]
        if None in ranks:
            raise self.no_low_rank()
        return max(ranks)

    def check_low_rank(self) -> None:
        """Raises ConfigError where a layer has no low-rank form, from shapes alone."""
        for component in self.layers:
            self.exported_rank(component)

    def no_low_rank(self) -> ConfigError:
        method = self.config.method
        return ConfigError(
            f"an adapter of the kind {method} has no low-rank form: only the native file can hold it"
        )


class OwnDelta(Delta):
    """The change of one layer of an Adapter of our own kinds."""

    def __init__(self, adapter: Adapter, component: str, path: str):
        super().__init__(adapter.layers[component][path])
        self.adapter, self.component, self.path = adapter, component, path
        names = {"gralora_A": "GraLoRA", "ortho_A": "Ortho-LoRA"}
        self.NAME = next((name for leaf, name in names.items() if leaf in self.tensors), "LoRA")

    def to(self, device) -> "OwnDelta":
        moved = {leaf: tensor.to(device) for leaf, tensor in self.tensors.items()}
        one = Adapter(self.adapter.config, {self.component: {self.path: moved}})
        return OwnDelta(one, self.component, self.path)

    @property
    def rank(self) -> int:
        return self.adapter.rank(self.path, self.tensors)

    def pair(self):
        return self.adapter.low_rank(self.component, self.path)

    def delta(self, base=None):
        down, up = self.pair()
        return up @ down


class Sizes(NamedTuple):
    rank: int  # in total
    k: int
    hybrid_rank: int


def sizes_of(factors: Factors) -> Sizes | None:
    """The sizes of a LoRA or a GraLoRA by its tensors; None for any other kind."""
    plain = factors["lora_A"].shape[0] if "lora_A" in factors else 0
    if "gralora_A" in factors:
        k, *_, r = factors["gralora_A"].shape
        return Sizes(r + plain, k, plain)
    return Sizes(plain, 1, 0) if "lora_A" in factors else None


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In fp32, or in fp64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def rank_of(factors: Factors) -> int | None:
    """The rank of a layer by its tensors; None of a kind whose tensors have no rank."""
    if "ortho_S" in factors:
        return factors["ortho_S"].numel()
    sizes = sizes_of(factors)
    return None if sizes is None else sizes.rank


def note_lost_mask(adapters: list["Adapter"]) -> None:
    """Say that T-LoRA's mask is lost where adapters that have one become another kind or a sum."""
    if any(adapter.config.tlora for adapter in adapters):
        note("T-LoRA's mask is not part of the new adapter, so all ranks act at every timestep")


def describe(layers: Layers, alpha: float | None = None) -> AdapterConfig:
    """The AdapterConfig of layers whose file had none.

    Its kind, the commonest rank and k, and patterns for layers of other sizes.
    """
    named = []
    gralora = False
    convolutions = False
    for found in layers.values():
        named += [(path, sizes_of(factors)) for path, factors in found.items()]
        gralora |= any("gralora_A" in factors for factors in found.values())
        convolutions |= any(kernel_of(factors) for factors in found.values())
    if not named:
        return AdapterConfig(method="lora")
    options = dict(method="gralora" if gralora else "lora", alpha=alpha)
    for targets, pattern in reversed(TARGETS.items()):  # the narrowest that holds all layers counts
        if all(re.search(pattern, f".{path}") for path, _ in named):
            options["targets"] = targets
    if convolutions and options["targets"] == "all-linear":
        options["targets"] = ".|conv"  # all layers
    ranks = [(path, sizes.rank) for path, sizes in named]
    options["rank"], options["rank_pattern"] = common_and_others(ranks)
    if gralora:
        ks = [(path, sizes.k) for path, sizes in named]
        options["k"], options["k_pattern"] = common_and_others(ks)
        options["hybrid_rank"] = named[0][1].hybrid_rank
    return AdapterConfig(**options)
