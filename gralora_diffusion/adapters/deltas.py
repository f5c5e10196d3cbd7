"""What an adapter of any kind adds to one weight or bias: the form in which other tools' layers are read.

A Delta keeps the tensors of its file and computes the change when it is asked, so that the changes of a whole
model are never in memory at once. M is out_features or out_channels, N is in_features or in_channels, and
[M, N, ...] the shape of the weight: [M, N], or [M, N, kh, kw] for a convolution.
"""

from typing import ClassVar

import torch

from gralora_diffusion.options import ConfigError

Tensors = dict[str, torch.Tensor]


class Delta:
    """The change of one parameter at strength 1.

    A new kind is a subclass, and a line in DELTAS of formats/layer_parts.py. needs_base: whether delta()
    needs the base's own weight.
    """

    NAME: ClassVar[str]
    NEEDED: ClassVar[frozenset[str]]  # the tensors, by their names in files
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    needs_base: ClassVar[bool] = False

    def __init__(self, tensors: Tensors, alpha: float | None = None, scale: float | None = None):
        """tensors: those named in NEEDED and OPTIONAL; alpha: the file's, None where it has none.

        scale: in the place of alpha/rank, as a config gives it.

        Raises ValueError when they do not fit each other.
        """
        self.tensors = tensors
        self.alpha = alpha
        self.given_scale = scale

    @classmethod
    def matches(cls, tensors: Tensors) -> bool:
        """Whether a layer with these tensors is of this kind."""
        return cls.NEEDED <= set(tensors) <= cls.NEEDED | cls.OPTIONAL

    @property
    def rank(self) -> int | None:
        """The rank of the factors, for tables; None where there are none."""
        return None

    def pair(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(down [R, N*kh*kw], up [M, R]), delta = up @ down exactly; None where there is no small pair."""
        return None

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        """The change, with as many numbers as the parameter in its order; fp32, or fp64 for fp64 tensors."""
        raise NotImplementedError

    def wide(self, name: str) -> torch.Tensor | None:
        """The tensor of this name in fp32, or in fp64 where it is; None where there is none."""
        tensor = self.tensors.get(name)
        return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.float()

    def scaled(self, rank: int) -> float:
        """alpha / rank; 1 where the file has no alpha."""
        if self.given_scale is not None:
            return self.given_scale
        return 1.0 if self.alpha is None else self.alpha / rank

    def to(self, device) -> "Delta":
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return type(self)(moved, self.alpha, self.given_scale)

    def learn(self, shape: tuple[int, ...]) -> None:
        """Take note of the shape of the parameter, before changes are computed; for sizes no file holds."""

    def applied(self, base: torch.Tensor) -> torch.Tensor:
        """delta() in the shape and on the device of this parameter."""
        return self.delta(base).reshape(base.shape)

    def check_fits(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless this is a change of a parameter of this shape; nothing is computed."""
        base = torch.empty(shape, device="meta")
        try:
            change = self.to("meta").delta(base)
            change.reshape(shape)
        except (RuntimeError, IndexError, ConfigError):
            change = None
        if change is None or change.shape[0] != shape[0]:
            found = ", ".join(f"{name} {list(t.shape)}" for name, t in self.tensors.items())
            raise ValueError(f"{self.NAME} of {found} does not fit a parameter of shape {list(shape)}")


class FullDelta(Delta):
    """The change itself: `diff` of a weight or `diff_b` of a bias."""

    NAME = "full difference"
    NEEDED = frozenset({"diff"})

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        return self.wide("diff")


class Replacement(Delta):
    """The new weight itself, `set_weight` of ComfyUI."""

    NAME = "replaced weight"
    NEEDED = frozenset({"set_weight"})
    needs_base = True

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        new = self.wide("set_weight")
        return new - base.to(new.dtype).reshape(new.shape)


class LowRankDelta(Delta):
    """alpha/r * lora_B @ lora_A, arXiv 2106.09685; lora_A [r, N, ...], lora_B [M, r].

    With lora_mid [r, r, kh, kw] (LyCORIS's Tucker form) lora_A is [r, N, 1, 1], and the middle is folded
    into it.
    """

    NAME = "LoRA"
    NEEDED = frozenset({"lora_A", "lora_B"})
    OPTIONAL = frozenset({"lora_mid"})

    @property
    def rank(self) -> int:
        return self.tensors["lora_B"].shape[1]

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        down, mid = self.wide("lora_A"), self.wide("lora_mid")
        up = self.wide("lora_B").flatten(1)
        if mid is not None:
            down = torch.einsum("ij...,jn->in...", mid, down.flatten(1))
        return down.flatten(1), up * self.scaled(up.shape[1])

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        down, up = self.pair()
        return up @ down


class EmbeddingDelta(Delta):
    """alpha/r * (embedding_B @ embedding_A)^T of an embedding table [V, d], as PEFT stores it.

    embedding_A [r, V], embedding_B [d, r].
    """

    NAME = "LoRA of an embedding"
    NEEDED = frozenset({"embedding_A", "embedding_B"})

    @property
    def rank(self) -> int:
        return self.tensors["embedding_A"].shape[0]

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.wide("embedding_B").T, self.wide("embedding_A").T * self.scaled(self.rank)

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        down, up = self.pair()
        return up @ down
