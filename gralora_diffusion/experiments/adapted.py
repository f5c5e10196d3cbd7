"""A method at one size, and a model that has it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gralora_diffusion.experiments.methods import METHODS, WITH_K, Method
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError, one_of

HEADER = "comparator"  # key of the spec in a file's header


@dataclass(frozen=True)
class Spec:
    """A method at one size.

    size: the rank; VeRA's shared dimension, FourierFT's frequencies per layer, OFT's block size; 0 for full.
    k: GraLoRA's blocks per side.  sizes: [rank, k] of each layer, where gradients chose them.
    """

    method: str
    size: int
    k: int | None = None
    seed: int = 0
    targets: str = "attention"
    sizes: dict[str, list[int]] | None = None

    def __post_init__(self):
        one_of("method", self.method, METHODS)
        if self.k is not None and not self.about.has_k:
            raise ConfigError(f"k is an option of {', '.join(WITH_K)}, not of {self.method}")

    @property
    def about(self) -> Method:
        return METHODS[self.method]


@dataclass(frozen=True)
class Adapted:
    """A model with a method in it: what trains, by name; merge() bakes it into plain layers."""

    spec: Spec
    parameters: dict[str, nn.Parameter]
    merge: Callable[[], None]

    def groups(self, lr: float, decay: float) -> list[dict]:
        """Parameter groups for an optimizer; two for LoRA+, whose B learns faster."""
        ratio = self.spec.about.lr_ratio
        slow, fast = [], []
        for name, p in self.parameters.items():
            if ratio != 1 and "lora_B" in name:
                fast.append(p)
            else:
                slow.append(p)
        groups = [dict(params=slow, lr=lr, weight_decay=decay)]
        if fast:
            groups.append(dict(params=fast, lr=lr * ratio, weight_decay=decay))
        return groups

    def save(self, path: Path) -> None:
        """One .safetensors file of what trains, with the spec in its header; complete or absent."""
        from safetensors.torch import save_file

        tensors = {name: p.detach().cpu().contiguous() for name, p in self.parameters.items()}
        with complete_or_absent(path) as part:
            save_file(tensors, part, {HEADER: json.dumps(dataclasses.asdict(self.spec))})


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
