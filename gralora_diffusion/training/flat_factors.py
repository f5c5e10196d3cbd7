"""All trainable numbers of a run in one tensor, and their gradients in another.

So a step costs a few operations, whatever the number of layers: one copy into the dtype that the layers
compute in, one sum of gradients, one norm, one update.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from gralora_diffusion.adapters.layer_adapter import LayerAdapter, WorkingFactors
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.adapters.shared_input import SharedInput, SharedPart, layers_of_one_input

ALIGNED = 64  # numbers: where equally shaped parameters begin in the buffers


class FlatFactors:
    """The parameters of these groups as views of `values`, their .grad as views of `gradients`, fp32 [P].

    Within a group, parameters of one shape are neighbors: they are one tensor [n, *shape] too.
    Where the layers compute in half precision they use a copy of the values, made by refresh() after each
    change of them; the gradients of the copy are added to `gradients` by collect() after each backward pass.
    The models must not be moved or cast afterward.
    """

    def __init__(
        self,
        groups: list[dict],
        dtype: torch.dtype = torch.float32,
        side_by_side: Sequence[Sequence[nn.Parameter]] = (),
        unswapped: bool = False,
    ):
        """groups: as optimizers take them.  dtype: in which the layers compute.

        side_by_side: lists of L parameters of one shape whose copies in half precision are to be one tensor
        for the kernel, of [k, n, r] each [k, n, L r], of [r, n] each [L r, n]; with `unswapped` the first is
        in the order of adapters/unswapped.py, [k, n, r/k L k].  Raises ValueError for a list whose
        parameters are in several groups.
        """
        half = dtype != torch.float32
        self.unswapped = unswapped and half  # in fp32 the layers compute with the parameters themselves
        self.side_by_side = [tuple(members) for members in side_by_side if half]
        self.groups = [{**group, "params": self.in_order(group["params"])} for group in groups]
        parameters = self.parameters()
        device = parameters[0].device
        self.places, size = self.layout()
        for members in self.side_by_side:
            places = [self.places[member] for member in members]
            if places != [places[0] + number * members[0].numel() for number in range(len(members))]:
                raise ValueError("parameters that must be contiguous are in several groups")
        self.values = torch.zeros(size, device=device)
        self.gradients = torch.zeros(size, device=device)
        self.copies = torch.zeros(size, dtype=dtype, device=device) if half else None
        self.copies_gradients = torch.zeros(size, dtype=dtype, device=device) if half else None
        self.regions = self.copied_regions(size)
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
        for members in self.interleaved():
            wholes = self.whole(self.copies, members), self.whole(self.copies_gradients, members)
            for number, parameter in enumerate(members):
                copy, gradient = (self.part(whole, number, members) for whole in wholes)
                self.working[parameter] = (copy.detach().requires_grad_(), gradient)
        self.refresh()

    @classmethod
    def of_models(
        cls,
        groups: list[dict],
        models: Iterable[nn.Module],
        dtype: torch.dtype,
        unswapped: bool | None = None,
    ) -> "FlatFactors":
        """Those of adapted models, which compute with them from now on.

        unswapped: how GraLoRA's swap is computed; by default as the device does it faster.
        """
        models = list(models)
        if unswapped is None:
            unswapped = groups[0]["params"][0].device.type != "cpu"
        together = []
        for model in models:
            together += [layers for layers in layers_of_one_input(model) if are_in_one(groups, layers)]
        lists = []
        for layers in together:
            for number in range(len(layers[0].adapter.factors)):
                lists.append([layer.adapter.factors[number][0] for layer in layers])
        if unswapped:
            lists += [[A] for A in blocks_alone(models, lists)]
        factors = cls(groups, dtype, lists, unswapped)
        for model in models:
            factors.connect(layer.adapter for layer in adapted_layers(model).values())
        factors.share(together)
        return factors

    def in_order(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those of one shape together, first those side by side, in lists of one length together."""
        own = set(parameters)
        first = {}  # {parameter: its place among those side by side}
        for members in sorted(self.side_by_side, key=len):
            if own.issuperset(members):
                first |= {parameter: len(first) + number for number, parameter in enumerate(members)}
        shapes = list(dict.fromkeys(p.shape for p in parameters))
        return sorted(parameters, key=lambda p: (shapes.index(p.shape), first.get(p, len(parameters))))

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

    def interleaved(self) -> list[tuple[nn.Parameter, ...]]:
        """The lists whose copies do not lie as the parameters, in order of place."""
        found = [members for members in self.side_by_side if members[0].ndim == 3]
        return sorted(found, key=lambda members: self.places[members[0]])

    def copied_regions(self, size: int) -> list[tuple[int, int, tuple | None]]:
        """(start, end, shape of the values), in order; None where the copies lie as the values do.

        shape: (lists, L, k, n, r).
        """
        if self.copies is None:
            return []
        found = []
        for members in self.interleaved():
            start, length = self.places[members[0]], len(members)
            end = start + length * members[0].numel()
            shape = (length, *members[0].shape)
            if found and found[-1][1] == start and found[-1][2][1:] == shape:
                begin, _, (lists, *_) = found.pop()
                found.append((begin, end, (lists + 1, *shape)))
            else:
                found.append((start, end, (1, *shape)))
        whole, last = [], 0
        for start, end, shape in found:
            whole += [(last, start, None), (start, end, shape)] if start > last else [(start, end, shape)]
            last = end
        return [*whole, (last, size, None)] if size > last else whole

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.groups for p in group["params"]]

    def view(self, flat: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """This parameter's part of a buffer."""
        start = self.places[parameter]
        return flat[start : start + parameter.numel()].view(parameter.shape)

    def whole(self, flat: torch.Tensor, members: tuple[nn.Parameter, ...]) -> torch.Tensor:
        """The copies of parameters that lie side by side, as one: [k, n, L r], or [L r, n]."""
        start, first = self.places[members[0]], members[0]
        part = flat[start : start + len(members) * first.numel()]
        if first.ndim == 3:
            k, n, r = first.shape
            return part.view(k, n, len(members) * r)
        return part.view(-1, first.shape[1])

    def part(self, whole: torch.Tensor, number: int, members: tuple[nn.Parameter, ...]) -> torch.Tensor:
        """The copy of one of several [k, n, r] that lie side by side: [k, n, r], or [k, n, r/k, k]."""
        k, n, r = members[0].shape
        if self.unswapped and len(members) > 1:  # for which there is no view of three dimensions
            return whole.view(k, n, r // k, len(members), k)[:, :, :, number]
        return whole[:, :, number * r : (number + 1) * r]

    def connect(self, adapters: Iterable[LayerAdapter]) -> None:
        """Let these adapters compute with the working copies while they train."""
        for adapter in adapters:
            adapter.working = []
            for A, B in adapter.factors:
                (A_copy, A_grad), (B_copy, B_grad) = self.working[A], self.working[B]
                unswapped = self.unswapped and A.ndim == 3
                adapter.working.append(WorkingFactors(A_copy, B_copy, A_grad, B_grad, unswapped))

    def share(self, layers_of_one_input: Iterable[list[AdaptedLinear]]) -> None:
        """Let these layers compute together while they train; their A are among those side by side."""
        for layers in layers_of_one_input if self.copies is not None else ():
            parts = []
            for number, ranks in enumerate(layers[0].adapter.part_ranks):
                pairs = [layer.adapter.factors[number] for layer in layers]
                members = tuple(A for A, _ in pairs)
                whole = self.whole(self.copies, members).detach().requires_grad_()
                gradient = self.whole(self.copies_gradients, members)
                copies, gradients = zip(*(self.working[B] for _, B in pairs), strict=True)
                rest = ranks, self.unswapped and whole.ndim == 3
                parts.append(SharedPart(whole, gradient, list(copies), list(gradients), *rest))
            shared = SharedInput(layers, parts)
            for layer in layers:
                layer.shared = shared

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
        for start, end, shape in self.regions:
            values, copies = self.values[start:end], self.copies[start:end]
            if shape:
                copies, values = self.in_order_of_values(copies, values, shape)
            copies.copy_(values)

    @torch.no_grad()
    def collect(self) -> None:
        """Add what a backward pass gave the copies to the gradients."""
        if self.copies is None:
            return
        for copy, gradient in self.working.values():
            if copy.grad is not None:  # of an operation that was not told where to add it
                gradient.add_(copy.grad)
                copy.grad = None
        for start, end, shape in self.regions:
            gradients, copies = self.gradients[start:end], self.copies_gradients[start:end]
            if shape:
                copies, gradients = self.in_order_of_values(copies, gradients, shape)
            gradients.add_(copies)
        self.copies_gradients.zero_()

    def in_order_of_values(
        self, copies: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of a region, and its values or gradients, as views of one shape; see copied_regions()."""
        lists, length, k, n, r = shape
        if self.unswapped:
            order = copies.view(lists, k, n, r // k, length, k).permute(0, 4, 1, 2, 5, 3)
            return order, values.view(lists, length, k, n, k, r // k)
        return copies.view(lists, k, n, length, r).permute(0, 3, 1, 2, 4), values.view(shape)

    def clear(self) -> None:
        """Set the gradients to zero, in place."""
        self.gradients.zero_()


def are_in_one(groups: list[dict], layers: list[AdaptedLinear]) -> bool:
    """Whether the A of these layers are in one group, so that they can be contiguous."""
    places = {}
    for number, group in enumerate(groups):
        places |= dict.fromkeys(group["params"], number)
    of_parts = zip(*(layer.adapter.factors for layer in layers), strict=True)
    return all(len({places.get(A) for A, _ in pairs}) == 1 for pairs in of_parts)


def blocks_alone(models: list[nn.Module], lists: list[list[nn.Parameter]]) -> list[nn.Parameter]:
    """GraLoRA's factors A that are in none of these lists."""
    together = {A for members in lists for A in members}
    found = []
    for model in models:
        for layer in adapted_layers(model).values():
            for adapter in layer.adapters.values():
                found += [A for A, _ in adapter.factors if A.ndim == 3 and A not in together]
    return found
