"""Adapters that rotate the outputs of a layer: OFT (arXiv 2306.07280) and BOFT (arXiv 2311.06243).

Q = blocks - blocks^T, shrunk to the norm alpha*M where alpha is above 0; R = (I + Q)(I - Q)^-1, the Cayley
transform. The formulas are those of LyCORIS and of kohya's networks.oft, which store the same tensors.
"""

import torch

from gralora_diffusion.adapters.deltas import Delta


def rotations(blocks: torch.Tensor, limit: float) -> torch.Tensor:
    """blocks [..., b, b] -> R of the same shape; limit: the largest norm of all of Q, 0 for none."""
    skew = blocks - blocks.transpose(-1, -2)
    if limit > 0:
        norm = skew.norm()
        skew = skew * torch.clamp(limit / (norm + 1e-8), max=1)
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


class OFT(Delta):
    """(R^T - I) W in blocks of rows; oft_blocks [M/b, b, b], rescale [M, 1, ...] of the new rows."""

    NAME = "OFT"
    NEEDED = frozenset({"oft_blocks"})
    OPTIONAL = frozenset({"rescale"})
    needs_base = True

    @classmethod
    def matches(cls, tensors):
        return super().matches(tensors) and tensors["oft_blocks"].ndim == 3

    def delta(self, base=None):
        blocks = self.wide("oft_blocks")
        weight = base.to(blocks.dtype)
        R = rotations(blocks, (self.alpha or 0.0) * base.shape[0])
        count, size, _ = blocks.shape
        rows = weight.reshape(count, size, -1)
        new = (R.transpose(1, 2) @ rows).reshape(weight.shape)
        return rescaled(new, self.wide("rescale")) - weight


class BOFT(Delta):
    """A product of m butterfly stages of rotations; oft_blocks [m, M/b, b, b], rescale [M, 1, ...].

    Stage i rotates groups of b rows that lie 2^i b/2 apart.
    """

    NAME = "BOFT"
    NEEDED = frozenset({"oft_blocks"})
    OPTIONAL = frozenset({"rescale"})
    needs_base = True

    @classmethod
    def matches(cls, tensors):
        return super().matches(tensors) and tensors["oft_blocks"].ndim == 4

    def delta(self, base=None):
        blocks = self.wide("oft_blocks")
        weight = base.to(blocks.dtype)
        size = blocks.shape[-1]
        new = weight.flatten(1)
        for stage, R in enumerate(rotations(blocks, (self.alpha or 0.0) * base.shape[0])):
            step = 2**stage * size // 2
            groups = new.unflatten(0, (-1, 2, step)).transpose(1, 2).reshape(-1, size, new.shape[1])
            turned = (R @ groups).reshape(-1, step, 2, new.shape[1])
            new = turned.transpose(1, 2).flatten(0, 2)
        return rescaled(new.reshape(weight.shape), self.wide("rescale")) - weight


def rescaled(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return weight if scale is None else weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
