"""An adapter without a model: the one form in which all file formats meet, and what must be true of it."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from gralora_diffusion import __version__
from gralora_diffusion.adapters.inject import TARGETS, adapters, common_and_others
from gralora_diffusion.adapters.layers import low_rank, scale_of, truncate
from gralora_diffusion.config import PREDICTIONS, AdapterConfig
from gralora_diffusion.formats.layer_names import canonical, known
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint

LEAVES = {
    "gralora": ({"gralora_A", "gralora_B"}, {"gralora_A", "gralora_B", "lora_A", "lora_B"}),
    "lora": ({"lora_A", "lora_B"},),
}
Layers = dict[str, dict[str, dict[str, torch.Tensor]]]


@dataclass
class Adapter:
    """What an adapter file holds, whatever its format, without a model.

    layers: {component: {module path: factors}} with diffusers' paths; factors: gralora_A [k, N/k, r], gralora_B [k, r, M/k],
    lora_A [r, N], lora_B [M, r]; facts: base, prompts, objective, layers_per_block and resolution, as far as the file tells them.
    """

    config: AdapterConfig
    layers: Layers
    facts: dict = field(default_factory=dict)

    @classmethod
    def from_models(
        cls, models: dict[str, nn.Module], base: str | None = None, prompts: dict | None = None
    ) -> "Adapter":
        """The adapters of {component: model}; raises ValueError when there are none, or several in one layer."""
        if any(layer.beside for model in models.values() for layer in adapters(model).values()):
            raise ValueError("several adapters are loaded: remove() all but the one to save")
        layers = {
            name: {
                canonical(name, path): {leaf: p.detach() for leaf, p in layer.adapter_parameters.items()}
                for path, layer in found.items()
            }
            for name, model in models.items()
            if (found := adapters(model))
        }
        if not layers:
            raise ValueError(f"nothing to save: none of {', '.join(models)} has adapters")
        facts = dict(version=__version__, prompts=prompts or {})
        if "unet" in models:
            unet = models["unet"]
            facts["base"] = dict(
                name=base or getattr(unet.config, "_name_or_path", ""), fingerprint=fingerprint(unet)
            )
            facts |= dict(
                layers_per_block=unet.config.layers_per_block, resolution=unet.config.sample_size * 8
            )
        (config,) = models[next(iter(layers))].adapter_configs.values()
        return cls(config, layers, facts)

    def items(self) -> Iterator[tuple[str, str, dict[str, torch.Tensor]]]:
        """(component, module path, factors) of every layer."""
        for component, found in self.layers.items():
            for path, factors in found.items():
                yield component, path, factors

    def scale(self, factors: dict[str, torch.Tensor]) -> float:
        return scale_of(sizes(factors)[0], self.config.alpha, self.config.rslora)

    def low_rank(self, component: str, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(down [R, N], up [M, R]) of one layer, in fp32, with the scale folded into `up`."""
        factors = {leaf: tensor.float() for leaf, tensor in self.layers[component][path].items()}
        return low_rank(factors, self.scale(factors))

    def exported_rank(self, component: str) -> int:
        """The rank of the largest layer as a plain LoRA: the one that a file with one rank per model must have."""
        return max(
            k * (rank - hybrid) + hybrid for rank, k, hybrid in map(sizes, self.layers[component].values())
        )


def sizes(factors: dict[str, torch.Tensor]) -> tuple[int, int, int]:
    """(rank in total, k, hybrid_rank)"""
    plain = factors["lora_A"].shape[0] if "lora_A" in factors else 0
    return (
        (factors["gralora_A"].shape[2] + plain, factors["gralora_A"].shape[0], plain)
        if "gralora_A" in factors
        else (plain, 1, 0)
    )


def describe(layers: Layers, alpha: float | None = None) -> AdapterConfig:
    """The AdapterConfig of layers whose file had none: kind, the commonest rank and k, and patterns for the layers of other sizes."""
    named = [(path, sizes(factors)) for found in layers.values() for path, factors in found.items()]
    gralora = any("gralora_A" in factors for found in layers.values() for factors in found.values())
    ranks, ks = [(path, rank) for path, (rank, _, _) in named], [(path, k) for path, (_, k, _) in named]
    targets = next(
        name for name, pattern in TARGETS.items() if all(re.search(pattern, f".{path}") for path, _ in named)
    )
    options = dict(method="gralora" if gralora else "lora", alpha=alpha, targets=targets)
    options["rank"], options["rank_pattern"] = common_and_others(ranks)
    if gralora:
        options["k"], options["k_pattern"] = common_and_others(ks)
        options["hybrid_rank"] = named[0][1][2]
    return AdapterConfig(**options)


def to_lora(
    adapter: Adapter, rank: int | None = None, energy: float = 1.0
) -> tuple[Adapter, dict[str, tuple[int, float]], float]:
    """The adapter as a plain LoRA of at most this rank, or of the ranks that keep this part of each layer's |delta|^2.

    Returns (adapter, {layer: (rank, relative error)}, relative error of the whole); errors are Frobenius norms, exact to 1e-7.
    Raises ConfigError for a rank or an energy that cannot be.
    """
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank is {rank}; it must be at least 1")
    if not 0 < energy <= 1:
        raise ConfigError(f"--energy is {energy}; it must be above 0 and at most 1, which keeps everything")
    layers, errors, lost, total = {}, {}, 0.0, 0.0
    for component, path, _ in adapter.items():
        down, up, error, norm = truncate(*adapter.low_rank(component, path), rank, energy)
        layers.setdefault(component, {})[path] = dict(lora_A=down.float(), lora_B=up.float())
        errors[f"{component}.{path}"] = down.shape[0], error / norm if norm else 0.0
        lost, total = lost + error**2, total + norm**2
    return Adapter(describe(layers), layers, adapter.facts), errors, math.sqrt(lost / total) if total else 0.0


def folded(leaves: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """A plain LoRA of scale 1 in fp32, without the rows of zeros that other tools need to make all ranks equal."""
    down, up = leaves["lora_A"].float(), leaves["lora_B"].float() * scale
    used = ((down != 0).any(1) | (up != 0).any(0)).nonzero()
    rank = int(used.max()) + 1 if len(used) else 1
    return dict(lora_A=down[:rank].contiguous(), lora_B=up[:, :rank].contiguous())


def check_pair(factors: dict[str, torch.Tensor], method: str, where: str) -> None:
    """The right tensors, whole pairs that fit each other, finite numbers; raises ConfigError."""
    if set(factors) not in LEAVES[method]:
        needed = " or ".join(", ".join(sorted(names)) for names in LEAVES[method])
        raise ConfigError(f"{where}: holds {', '.join(sorted(factors))}; a {method} layer needs {needed}")
    if any(t.ndim != (3 if name.startswith("gralora") else 2) or 0 in t.shape for name, t in factors.items()):
        raise ConfigError(f"{where}: a tensor has the wrong number of dimensions")
    fit = "lora_A" not in factors or factors["lora_A"].shape[0] == factors["lora_B"].shape[1]
    if "gralora_A" in factors:
        (k, n, r), (k_too, r_too, m) = factors["gralora_A"].shape, factors["gralora_B"].shape
        fit &= k == k_too and r == r_too and r % k == 0
        fit &= "lora_A" not in factors or (factors["lora_A"].shape[1], factors["lora_B"].shape[0]) == (
            k * n,
            k * m,
        )
    if not fit or sizes(factors)[0] > 65536:
        raise ConfigError(
            f"{where}: its tensors do not fit each other: {', '.join(f'{name} {list(t.shape)}' for name, t in factors.items())}"
        )
    for name, tensor in factors.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ConfigError(
                f"{where}.{name}: is {str(tensor.dtype).removeprefix('torch.')}; adapters are fp16, bf16, fp32 or fp64"
            )
        if not tensor.isfinite().all():
            raise ConfigError(f"{where}.{name}: holds numbers that are not finite; the file is damaged")


def checked(adapter: Adapter, path) -> Adapter:
    """Raises ConfigError unless every layer is whole and of SDXL's UNet, and of the sizes that the config names."""
    config, facts = adapter.config, adapter.facts
    number, resolution = facts.get("layers_per_block", 2), facts.get("resolution", 1024)
    objective = facts.get("objective", {})
    fit = isinstance(facts.get("base", {}), dict) and number in (1, 2, 3, 4) and type(resolution) is int
    fit &= objective in [
        {},
        *({"prediction_type": p, "rescale_betas_zero_snr": z} for p in PREDICTIONS for z in (False, True)),
    ]
    if not fit:
        raise ConfigError(
            f"{path}: its header cannot be read: base, layers_per_block, resolution or objective is wrong; the file is damaged"
        )
    ranks, ks = {config.rank, *config.rank_pattern.values()}, {config.k, *config.k_pattern.values()}
    for component, module_path, factors in adapter.items():
        where = f"{path}: {component}.{module_path}"
        if component == "unet" and re.match(r"(down_blocks\.(0\.attentions|3)|up_blocks\.3)\.", module_path):
            raise ConfigError(
                f"{where}: SDXL's UNet has no such layer; the adapter was made for Stable Diffusion 1 or 2, or for the refiner"
            )
        if not known(component, module_path):
            raise ConfigError(
                f"{where}: SDXL has no such layer; the adapter was made for another kind of model"
            )
        check_pair(factors, config.method, where)
        rank, k, hybrid = sizes(factors)
        if (
            rank not in ranks
            or (None not in ks and k not in ks and config.method == "gralora")
            or hybrid != config.hybrid_rank
        ):
            raise ConfigError(
                f"{where}: the header says rank {config.rank}, k {config.k}, hybrid_rank {config.hybrid_rank}, and the tensors {rank}, {k}, {hybrid}"
            )
    return adapter
