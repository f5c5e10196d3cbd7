"""PEFT's VeRA (arXiv 2310.11454), with its shared projections stored, or made again from their seed."""

import math

import torch

from gralora_diffusion.adapters.peft_kinds import PeftDelta
from gralora_diffusion.options import ConfigError

MOST_NUMBERS = 2**27  # of a projection


class PeftVeRA(PeftDelta):
    """diag(b) B diag(d) A; A [r, at least N] and B [at least M, r] are of all layers."""

    NAME = "VeRA"
    NEEDED = frozenset({"vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"})

    @property
    def rank(self) -> int:
        return self.tensors["vera_lambda_d"].numel()

    def projections(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, B)"""
        return self.wide("vera_A"), self.wide("vera_B")

    def delta(self, base=None):
        b, d = self.wide("vera_lambda_b"), self.wide("vera_lambda_d")
        A, B = (matrix.to(b) for matrix in self.projections())
        m, n = base.shape
        if b.numel() != m or len(B) < m or A.shape[1] < n:
            raise IndexError("its vectors do not fit the layer")
        return (b.view(-1, 1) * B[:m]) @ (d.view(-1, 1) * A[:, :n])


class Projections:
    """vera_A [rank, columns] and vera_B [rows, rank] as PEFT makes them on the CPU from projection_prng_key.

    rows, columns: the largest sizes of all layers. Files do not hold the columns: learn() finds them in the
    base. Raises ValueError for a seed that is none.
    """

    def __init__(self, seed, rank: int, rows: int):
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError("projection_prng_key must be a whole number from 0 on")
        self.seed, self.rank, self.rows = seed, rank, rows
        self.columns = 0
        self.made: tuple[torch.Tensor, torch.Tensor] | None = None

    def learn(self, columns: int) -> None:
        if columns > self.columns:
            self.columns = columns
            self.made = None

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, B) in fp32: uniform numbers of Kaiming's variance, A's before B's."""
        if not self.columns:
            problem = "the projections of a VeRA depend on the sizes of the base's layers"
            raise ConfigError(f"{problem}: give the base with --pretrained_model_name_or_path")
        if self.rank * max(self.rows, self.columns) > MOST_NUMBERS:
            raise ConfigError("the projections of a VeRA are too large")
        if self.made is None:
            random = torch.Generator("cpu").manual_seed(self.seed)
            A = kaiming_uniform(self.rank, self.columns, random)
            self.made = A, kaiming_uniform(self.rows, self.rank, random)
        return self.made


class SeededVeRA(PeftVeRA):
    """VeRA without stored projections; options: {"projections": those of all layers}."""

    NEEDED = frozenset({"vera_lambda_b", "vera_lambda_d"})

    def learn(self, shape):
        self.options["projections"].learn(math.prod(shape[1:]))

    def projections(self):
        return self.options["projections"].matrices()


def kaiming_uniform(m: int, n: int, random: torch.Generator) -> torch.Tensor:
    """[m, n], uniform with the variance 2/n."""
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(n))
    return torch.empty(m, n).uniform_(-bound, bound, generator=random)
