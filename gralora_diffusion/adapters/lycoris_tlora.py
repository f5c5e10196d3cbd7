"""LyCORIS's T-LoRA, which subtracts what its factors were when training began."""

import torch

from gralora_diffusion.adapters.deltas import Delta


class LycorisTLoRA(Delta):
    """alpha/r * (P diag(l) Q - W_r): W_r is the nearest matrix of rank r to the base's weight.

    q_layer [r, N], p_layer [M, r], lambda_layer [1, r]; the factors began as the largest r singular vectors
    and values of W. Of convolutions only those of 1 x 1. All ranks act, as without a timestep.
    """

    NAME = "T-LoRA of LyCORIS"
    NEEDED = frozenset({"q_layer", "p_layer", "lambda_layer"})
    needs_base = True

    @property
    def rank(self) -> int:
        return self.tensors["q_layer"].shape[0]

    def delta(self, base=None):
        Q, P = self.wide("q_layer").flatten(1), self.wide("p_layer").flatten(1)
        now = (P * self.wide("lambda_layer").reshape(1, -1)) @ Q
        weight = base.flatten(1).double()
        if now.shape != weight.shape:
            raise IndexError("the factors do not fit the layer")
        return (now - nearest_of_rank(weight, self.rank).to(now.dtype)) * self.scale()

    def scale(self) -> float:
        """alpha/r; LyCORIS takes an alpha of 0 for r."""
        return self.scaled(self.rank) if self.alpha else 1.0


def nearest_of_rank(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of this rank to a weight [M, N] in fp64, from its smaller Gram matrix."""
    wide = weight.shape[0] <= weight.shape[1]
    gram = weight @ weight.T if wide else weight.T @ weight
    vectors = torch.linalg.eigh(gram)[1][:, -rank:]  # of the largest eigenvalues
    return vectors @ (vectors.T @ weight) if wide else (weight @ vectors) @ vectors.T
