"""PEFT's OFT, BOFT and IA3 as its folders hold them, by PEFT's formulas, which differ from LyCORIS's.

Options are those of adapter_config.json. N includes the kernel of a convolution.
"""

import math
import re

import torch

from gralora_diffusion.adapters.deltas import Delta, Tensors
from gralora_diffusion.options import ConfigError

MOST_TERMS = 100  # of Neumann's series; PEFT's default is 5


class PeftDelta(Delta):
    """A weight change given by PEFT's tensors and options; all kinds need the base."""

    needs_base = True

    def __init__(self, tensors: Tensors, options: dict | None = None):
        super().__init__(tensors)
        self.options = options or {}

    def to(self, device):
        return type(self)({name: t.to(device) for name, t in self.tensors.items()}, self.options)


class PeftOFT(PeftDelta):
    """W R^T - W, arXiv 2506.19847: R rotates blocks of b inputs; oft_R [N/b, b(b-1)/2], or [1, ...] shared.

    A row is the triangle above the diagonal of a skew-symmetric Q. Raises ValueError for options or sizes
    that PEFT could not have written.
    """

    NAME = "OFT of PEFT"
    NEEDED = frozenset({"oft_R"})

    def __init__(self, tensors, options=None):
        super().__init__(tensors, options)
        given = self.options
        self.side = side_of(tensors["oft_R"])
        self.terms = None  # the exact rotation
        if given.get("use_cayley_neumann", True):
            self.terms = given.get("num_cayley_neumann_terms", 5)
            if type(self.terms) is not int or not 0 <= self.terms <= MOST_TERMS:
                rule = f"it must be a whole number from 0 to {MOST_TERMS}"
                raise ConfigError(f"num_cayley_neumann_terms is {shortened(self.terms)}; {rule}")
        self.halves_last = is_since_0_18(given.get("peft_version"))
        self.limit = given.get("eps", 6e-5) if given.get("coft") else None
        if self.limit is not None and not (type(self.limit) in (int, float) and 0 <= self.limit < 1e3):
            raise ConfigError(f"eps is {shortened(self.limit)}; it must be a number from 0 to 1000")

    def delta(self, base=None):
        triangles = self.wide("oft_R")
        weight = base.to(triangles.dtype)
        Q = skew(triangles, self.side)
        if self.limit is not None:
            limit = self.limit / math.sqrt(len(Q))
            norm = Q.norm(dim=(1, 2), keepdim=True)
            Q = torch.where(norm <= limit, Q, limit * Q / norm)
        R = cayley(Q) if self.terms is None else neumann(Q, self.terms, self.halves_last)
        blocks = weight.flatten(1).unflatten(1, (-1, self.side))  # [M, N/b, b]
        if len(R) not in (1, blocks.shape[1]):
            raise IndexError("the blocks do not fit the layer")
        new = torch.einsum("mnb,ncb->mnc", blocks, R.expand(blocks.shape[1], -1, -1))
        return new.reshape(weight.shape) - weight


class PeftBOFT(PeftDelta):
    """s * (W R^T) - W, arXiv 2311.06243; boft_R [m, N/b, b, b] of m butterfly stages, boft_s [M] of outputs.

    Stage i rotates the inputs in another order: P B P^T, with P from butterfly().
    """

    NAME = "BOFT of PEFT"
    NEEDED = frozenset({"boft_R", "boft_s"})

    def __init__(self, tensors, options=None):
        super().__init__(tensors, options)
        blocks = tensors["boft_R"]
        if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3]:
            raise ValueError("the blocks of boft_R are not square")
        stages, count, side = blocks.shape[:3]
        odd = stages > 1 and (side % 2 or count % 2 ** (stages - 1))
        if odd or stages > count.bit_length():
            raise ValueError(f"{count} block{'' if count == 1 else 's'} cannot have {stages} stages")

    def delta(self, base=None):
        blocks = self.wide("boft_R")
        weight = base.to(blocks.dtype)
        stages, count, side = blocks.shape[:3]
        new = weight.flatten(1)
        if new.shape[1] != count * side:
            raise IndexError("the blocks do not fit the layer")
        for stage in range(stages):
            R = cayley(0.5 * (blocks[stage] - blocks[stage].transpose(1, 2)))
            order = None
            if stages > 1:
                order = butterfly(count * side, count // 2**stage, side // 2, new.device)
                turned = torch.empty_like(new)
                turned[:, order] = new
                new = turned
            new = torch.einsum("mnb,ncb->mnc", new.unflatten(1, (count, side)), R).flatten(1)
            new = new if order is None else new[:, order]
        scale = self.wide("boft_s").flatten()
        if scale.numel() != len(new):
            raise IndexError("boft_s does not fit the layer")
        return (new * scale[:, None]).reshape(weight.shape) - weight


class PeftIA3(PeftDelta):
    """W * l - W, arXiv 2205.05638; ia3_l scales the outputs and a bias, or with on_input the inputs."""

    NAME = "IA3 of PEFT"
    NEEDED = frozenset({"ia3_l"})

    def delta(self, base=None):
        scale = self.wide("ia3_l").flatten()
        axis = 1 if self.options.get("on_input") else 0
        if base is None or base.ndim <= axis or scale.numel() != base.shape[axis]:
            raise IndexError("IA3 scales a different number of channels")
        shape = [1] * base.ndim
        shape[axis] = -1
        return base.to(scale.dtype) * (scale - 1).reshape(shape)


def is_since_0_18(version) -> bool:
    """Whether PEFT 0.18 or later wrote a config; earlier versions did not record it.

    Raises ConfigError for a value that is not a version.
    """
    if version is None:
        return False
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    if numbers is None:
        raise ConfigError(f"peft_version is {shortened(version)}; it must be a version, such as 0.18.0")
    return (int(numbers[1]), int(numbers[2])) >= (0, 18)


def shortened(value) -> str:
    """A value of a config, for a message."""
    return repr(value)[:40]


def side_of(triangles: torch.Tensor) -> int:
    """b of triangles [blocks, b(b-1)/2] above the diagonals of b x b.  Raises ValueError for other shapes."""
    side = (1 + math.isqrt(1 + 8 * triangles.shape[-1])) // 2 if triangles.ndim == 2 else 0
    if side < 2 or side * (side - 1) // 2 != triangles.shape[1]:
        raise ValueError("the rows of a rotation do not fit a square block")
    return side


def skew(triangles: torch.Tensor, side: int) -> torch.Tensor:
    """[blocks, b, b], skew-symmetric, of the triangles above its diagonals."""
    rows, columns = torch.triu_indices(side, side, 1, device=triangles.device)
    Q = triangles.new_zeros(len(triangles), side, side)
    Q[:, rows, columns] = triangles
    return Q - Q.transpose(1, 2)


def cayley(Q: torch.Tensor) -> torch.Tensor:
    """(I - Q)(I + Q)^-1 of each Q [..., b, b]."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q)
    return torch.linalg.solve(eye + Q, eye - Q, left=False)


def neumann(Q: torch.Tensor, terms: int, halves_last: bool = True) -> torch.Tensor:
    """PEFT's series for (I + Q)(I - Q)^-1: I + 2 Q + 2 Q^2 + ... + Q^(terms - 1), with 3 terms also Q^3.

    Without halves_last, as before PEFT 0.18, every term but I has the factor 2, and the series always ends
    at Q^(terms - 1).
    """
    R = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).repeat(len(Q), 1, 1)
    if terms < 2:
        return R
    R = R + 2 * Q
    if terms > 2:
        power = Q @ Q
        R = R + 2 * power
        for _ in range(3, terms - 1 if halves_last else terms):
            power = power @ Q
            R = R + 2 * power
        if halves_last:
            R = R + power @ Q
    return R


def butterfly(n: int, groups: int, chunk: int, device) -> torch.Tensor:
    """An order of n numbers: in each group, chunks at even places come before those at odd places."""
    places = torch.arange(n, device=device).view(groups, -1, chunk)
    return torch.cat([places[:, 0::2], places[:, 1::2]], 1).flatten()
