"""DoRA (arXiv 2402.09353): the norms of a weight's rows, or of its columns, are learned on their own."""

import torch

from gralora_diffusion.adapters.deltas import Delta


class DoRA(Delta):
    """magnitude * (W + delta) / |W + delta| - W, for a delta of another kind.

    magnitude: M norms of the output rows (PEFT, and LyCORIS's default), or N of the inputs with on_inputs.
    """

    NAME = "DoRA"
    NEEDED = frozenset({"magnitude"})
    needs_base = True

    def __init__(self, inner: Delta, magnitude: torch.Tensor, on_inputs: bool = False):
        super().__init__(inner.tensors | dict(magnitude=magnitude))
        self.inner = inner
        self.on_inputs = on_inputs

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    def to(self, device) -> "DoRA":
        return DoRA(self.inner.to(device), self.tensors["magnitude"].to(device), self.on_inputs)

    def delta(self, base=None):
        magnitude = self.wide("magnitude")
        axis = 1 if self.on_inputs else 0
        if magnitude.numel() != base.shape[axis]:
            raise IndexError("the magnitude does not fit the layer")
        new = base.to(magnitude.dtype) + self.inner.applied(base).to(magnitude.dtype)
        others = [dim for dim in range(base.ndim) if dim != axis]
        norm = torch.linalg.vector_norm(new, dim=others, keepdim=True)
        norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
        return magnitude.reshape(norm.shape) * new / norm - base.to(magnitude.dtype)
