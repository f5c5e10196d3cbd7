"""LyCORIS's kinds of adapters (arXiv 2309.14859), as its files hold them; see deltas.py for the letters."""

from typing import ClassVar

import torch

from gralora_diffusion.adapters.deltas import Delta

LARGEST_PAIR = 256  # rank of a LoKr as a LoRA; beyond it the nearest LoRA is asked for


class LoHa(Delta):
    """alpha/r * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise (FedPara, arXiv 2108.06098).

    hada_w1_a, hada_w2_a [M, r]; hada_w1_b, hada_w2_b [r, N*kh*kw]. In the Tucker form hada_t1, hada_t2
    [r, r, kh, kw] stand between hada_w?_a [r, M] and hada_w?_b [r, N].
    """

    NAME = "LoHa"
    NEEDED = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
    OPTIONAL = frozenset({"hada_t1", "hada_t2"})

    def __init__(self, tensors, alpha=None, scale=None):
        super().__init__(tensors, alpha, scale)
        if ("hada_t1" in tensors) != ("hada_t2" in tensors):
            raise ValueError("one of hada_t1 and hada_t2 is missing")

    @property
    def rank(self) -> int:
        return self.tensors["hada_w1_b"].shape[0]

    def delta(self, base=None):
        factors = []
        for number in ("1", "2"):
            a, b = self.wide(f"hada_w{number}_a"), self.wide(f"hada_w{number}_b")
            factors.append(core_product(a, b, self.wide(f"hada_t{number}")))
        return factors[0] * factors[1] * self.scaled(self.rank)


class LoKr(Delta):
    """alpha/r * kron(w1, w2); each is whole, or a product of two factors of rank r, w2 perhaps with a core.

    lokr_w1 [M1, N1] or lokr_w1_a [M1, r] @ lokr_w1_b [r, N1]; lokr_w2 [M2, N2, ...], or lokr_w2_a [M2, r] @
    lokr_w2_b [r, N2*kh*kw], or with lokr_t2 [r, r, kh, kw] between lokr_w2_a [r, M2] and lokr_w2_b [r, N2].
    M = M1*M2, N = N1*N2. Where both are whole, alpha has no effect, but for PEFT's scale.
    """

    NAME = "LoKr"
    NEEDED = frozenset()
    FIRST: ClassVar = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
    SECOND: ClassVar = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})

    @classmethod
    def matches(cls, tensors):
        names = set(tensors)
        first = {name for name in names if name.startswith("lokr_w1")}
        return first in cls.FIRST and names - first in cls.SECOND

    @property
    def rank(self) -> int | None:
        for name in ("lokr_w1_b", "lokr_w2_b"):
            if name in self.tensors:
                return self.tensors[name].shape[0]
        return None

    def scale(self) -> float:
        whole = self.rank is None and self.given_scale is None
        return 1.0 if whole else self.scaled(self.rank)

    def pair(self):
        """kron(a @ b, c @ d) = kron(a, c) @ kron(b, d), where that is far smaller than the weight."""
        first = self.factored("lokr_w1", None)
        second = self.factored("lokr_w2", self.wide("lokr_t2"))
        rank = first[0].shape[1] * second[0].shape[1]
        smallest = min(len(first[0]) * len(second[0]), first[1].shape[1] * second[1].shape[1])
        if rank > LARGEST_PAIR or 4 * rank > smallest:
            return None
        return torch.kron(first[1], second[1]), torch.kron(first[0], second[0]) * self.scale()

    def factored(self, name: str, core: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) with a @ b = the factor `name` as a matrix: its own two, or the matrix and an identity."""
        if name not in self.tensors and core is None:
            return self.wide(f"{name}_a"), self.wide(f"{name}_b").flatten(1)
        whole = self.matrix(name, core)
        eye = torch.eye(min(whole.shape), dtype=whole.dtype, device=whole.device)
        return (whole, eye) if whole.shape[0] > whole.shape[1] else (eye, whole)

    def matrix(self, name: str, core: torch.Tensor | None) -> torch.Tensor:
        whole = self.wide(name)
        if whole is None:
            whole = core_product(self.wide(f"{name}_a"), self.wide(f"{name}_b"), core)
        return whole.flatten(1)

    def delta(self, base=None):
        w1 = self.matrix("lokr_w1", None)
        w2 = self.matrix("lokr_w2", self.wide("lokr_t2"))
        return torch.kron(w1, w2) * self.scale()


class GLoRA(Delta):
    """alpha/r * (W a1 a2 + b1 b2), arXiv 2306.07967; a1 [N, r], a2 [r, N], b1 [M, r], b2 [r, N*kh*kw].

    Older files have a1 [r, N], a2 [N, r], b1 [r, N*kh*kw], b2 [M, r], and W a2 a1 + b2 b1.
    """

    NAME = "GLoRA"
    NEEDED = frozenset({"a1", "a2", "b1", "b2"})
    OPTIONAL = frozenset({"bm"})
    needs_base = True

    def __init__(self, tensors, alpha=None, scale=None):
        super().__init__(tensors, alpha, scale)
        shapes = {name: tensors[name].flatten(1).shape for name in sorted(self.NEEDED)}
        ranks = {shapes["a1"][1], shapes["a2"][0], shapes["b1"][1], shapes["b2"][0]}
        older = {shapes["a1"][0], shapes["a2"][1], shapes["b1"][0], shapes["b2"][1]}
        if len(ranks) > 1 and len(older) > 1:
            raise ValueError("the ranks of a1, a2, b1 and b2 differ")
        # The matrices of a square layer can be read both ways; the rank is the smaller number.
        self.older = len(ranks) > 1 or (len(older) == 1 and min(older) < min(ranks))

    @property
    def rank(self) -> int:
        return self.tensors["a1"].shape[0 if self.older else 1]

    def delta(self, base=None):
        a1, a2, b1, b2 = (self.wide(name).flatten(1) for name in ("a1", "a2", "b1", "b2"))
        if self.older:
            a1, a2, b1, b2 = a2, a1, b2, b1
        core = self.wide("bm")
        if core is not None:
            b2 = torch.einsum("ij...,jn->in...", core, b2).flatten(1)
        weight = base.to(a1.dtype)
        through = torch.einsum("mn...,nr->mr...", weight, a1)
        through = torch.einsum("mr...,rn->mn...", through, a2)
        return (through.flatten(1) + b1 @ b2) * self.scaled(self.rank)


class IA3(Delta):
    """W * w, arXiv 2205.05638: `weight` scales the outputs, [M], or with on_input the inputs, [N]."""

    NAME = "IA3"
    NEEDED = frozenset({"weight", "on_input"})
    needs_base = True

    def __init__(self, tensors, alpha=None, scale=None, on_input: bool | None = None):
        super().__init__(tensors, alpha, scale)
        self.on_input = bool(tensors["on_input"]) if on_input is None else on_input

    def to(self, device):
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return IA3(moved, self.alpha, self.given_scale, self.on_input)

    def delta(self, base=None):
        scale = self.wide("weight").flatten()
        axis = 1 if self.on_input else 0
        if scale.numel() != base.shape[axis]:
            raise IndexError("IA3 scales a different number of channels")
        shape = [1] * base.ndim
        shape[axis] = -1
        return base.to(scale.dtype) * scale.reshape(shape)


def core_product(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """a [M, r] @ b [r, N...]; with core [r, r, ...]: a [r, M], core and b [r, N] summed over both ranks."""
    if core is None:
        return a.flatten(1) @ b.flatten(1)
    return torch.einsum("ij...,jn,im->mn...", core, b, a)
