"""All trainable numbers of a run in one tensor, and their gradients in another.

So a step costs a few operations, whatever the number of layers: one copy into the dtype that the layers
compute in, one sum of gradients, one norm, one update.
"""

from collections.abc import Iterable

import torch
from torch import nn

from gralora_diffusion.adapters.layer_adapter import LayerAdapter, WorkingFactors

ALIGNED = 64  # numbers: where equally shaped parameters begin in the buffers


class FlatFactors:
    """The parameters of these groups as views of `values`, their .grad as views of `gradients`, fp32 [P].

    Within a group, parameters of one shape are neighbours: they are one tensor [n, *shape] too.
    Where the layers compute in half precision they use a copy of the values, made by refresh() after each
    change of them; the gradients of the copy are added to `gradients` by collect() after each backward pass.
    The models must not be moved or cast afterwards.
    """

    def __init__(self, groups: list[dict], dtype: torch.dtype = torch.float32):
        """groups: as optimizers take them.  dtype: in which the layers compute."""
        self.groups = [{**group, "params": sorted_by_shape(group["params"])} for group in groups]
        parameters = self.parameters()
        device = parameters[0].device
        self.places, size = self.layout()
        self.values = torch.zeros(size, device=device)
        self.gradients = torch.zeros(size, device=device)
        half = dtype != torch.float32
        self.copies = torch.zeros(size, dtype=dtype, device=device) if half else None
        self.copies_gradients = torch.zeros(size, dtype=dtype, device=device) if half else None
        self.working = {}  # {parameter: (what the layer computes with, where its gradient goes)}
        for parameter in parameters:
            with torch.no_grad():
                self.view(self.values, parameter).copy_(parameter)
            parameter.data = self.view(self.values, parameter)
            parameter.grad = self.view(self.gradients, parameter)
            self.working[parameter] = (parameter, parameter.grad)
            if half:
                copy = self.view(self.copies, parameter).detach().requires_grad_()
                self.working[parameter] = (copy, self.view(self.copies_gradients, parameter))
        self.refresh()

    def layout(self) -> tuple[dict[nn.Parameter, int], int]:
        """({parameter: where it begins}, how many numbers all take)."""
        places, end = {}, 0
        for group in self.groups:
            shape = None
            for parameter in group["params"]:
                if parameter.shape != shape:
                    end = -(-end // ALIGNED) * ALIGNED
                    shape = parameter.shape
                places[parameter] = end
                end += parameter.numel()
            end = -(-end // ALIGNED) * ALIGNED
        return places, end

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.groups for p in group["params"]]

    def view(self, flat: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """This parameter's part of a buffer."""
        start = self.places[parameter]
        return flat[start : start + parameter.numel()].view(parameter.shape)

    def connect(self, adapters: Iterable[LayerAdapter]) -> None:
        """Let these adapters compute with the working copies while they train."""
        for adapter in adapters:
            adapter.working = []
            for A, B in adapter.factors:
                (A_copy, A_grad), (B_copy, B_grad) = self.working[A], self.working[B]
                adapter.working.append(WorkingFactors(A_copy, B_copy, A_grad, B_grad))

    def flat_groups(self) -> list[dict]:
        """The groups with a single parameter in each: a part of `values` that has a part of `gradients`."""
        flat = []
        for group in self.groups:
            first, last = group["params"][0], group["params"][-1]
            start, end = self.places[first], self.places[last] + last.numel()
            flat.append({**group, "params": [self.trained(start, end)]})
        return flat

    def stacked_groups(self) -> list[dict]:
        """The groups with a parameter [n, *shape] for all parameters of one shape."""
        stacked = []
        for group in self.groups:
            members = {}
            for parameter in group["params"]:
                members.setdefault(parameter.shape, []).append(parameter)
            stacks = []
            for shape, own in members.items():
                start, n = self.places[own[0]], len(own)
                stacks.append(self.trained(start, start + n * own[0].numel(), (n, *shape)))
            stacked.append({**group, "params": stacks})
        return stacked

    def trained(self, start: int, end: int, shape=(-1,)) -> nn.Parameter:
        """A part of the values as a parameter, with its part of the gradients."""
        parameter = nn.Parameter(self.values[start:end].view(shape))
        parameter.grad = self.gradients[start:end].view(shape)
        return parameter

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the values to what the layers compute with.

        Raises RuntimeError where the models were moved or cast, so that the values are no longer theirs.
        """
        first = next(iter(self.working))
        if first.data_ptr() != self.view(self.values, first).data_ptr():
            raise RuntimeError("an adapted model was moved or cast while it trains")
        if self.copies is not None:
            self.copies.copy_(self.values)

    @torch.no_grad()
    def collect(self) -> None:
        """Add what a backward pass gave the copies to the gradients."""
        if self.copies is None:
            return
        for copy, gradient in self.working.values():
            if copy.grad is not None:  # of an operation that was not told where to add it
                gradient.add_(copy.grad)
                copy.grad = None
        self.gradients.add_(self.copies_gradients)
        self.copies_gradients.zero_()

    def clear(self) -> None:
        """Set the gradients to zero, in place."""
        self.gradients.zero_()


def sorted_by_shape(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those of one shape together, otherwise in order."""
    shapes = list(dict.fromkeys(p.shape for p in parameters))
    return sorted(parameters, key=lambda parameter: shapes.index(parameter.shape))
