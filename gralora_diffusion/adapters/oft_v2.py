"""OFT v2 (arXiv 2506.19847) as OneTrainer and kohya's networks.oft_v2 store it, without a config."""

import math

import torch

from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.peft_kinds import neumann, side_of, skew

TERMS = 5  # of Neumann's series, in both trainers


class OFTv2(Delta):
    """W R^T - W, of a convolution W R - W: R turns blocks of b inputs; rotation [N/b, b(b-1)/2], or [1, ...].

    A row is the triangle above the diagonal of a skew-symmetric Q; with scaled_oft it is divided by the
    square root of its length. N counts the kernel.
    """

    NAME = "OFT v2"
    NEEDED = frozenset({"rotation"})
    OPTIONAL = frozenset({"scaled_oft"})
    needs_base = True

    def __init__(self, tensors, alpha=None, scale=None):
        super().__init__(tensors, alpha, scale)
        self.side = side_of(tensors["rotation"])

    def delta(self, base=None):
        triangles = self.wide("rotation")
        if "scaled_oft" in self.tensors:
            triangles = triangles / math.sqrt(triangles.shape[1])
        R = neumann(skew(triangles, self.side), TERMS)
        blocks = base.to(triangles.dtype).flatten(1).unflatten(1, (-1, self.side))  # [M, N/b, b]
        if len(R) not in (1, blocks.shape[1]):
            raise IndexError("the blocks do not fit the layer")
        turn = "mnb,nbc->mnc" if base.ndim == 4 else "mnb,ncb->mnc"
        new = torch.einsum(turn, blocks, R.expand(blocks.shape[1], -1, -1))
        return new.reshape(base.shape) - base
