"""Averages of an adapter over the steps: an exponential moving one, and that of a schedule-free optimizer."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from gralora_diffusion.training.optim import unwrapped


class EMA:
    """An exponential moving average of parameters: average = d average + (1 - d) parameter.

    d = min(decay, (1 + n) / (10 + n)), where n counts earlier updates: the first steps fade soon.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step that was applied."""
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - d)
        self.updates += 1

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """(tensors, facts for JSON), copies on the CPU."""
        tensors = {name: t.to("cpu", copy=True) for name, t in self.average.items()}
        return tensors, dict(updates=self.updates)

    def load(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        """state() the other way round. Raises ValueError for the state of another adapter."""
        if shapes_of(tensors) != shapes_of(self.average):
            raise ValueError("the moving average belongs to another adapter")
        for name, tensor in tensors.items():
            self.average[name].copy_(tensor)
        self.updates = facts["updates"]


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


@torch.no_grad()
def use_average(optimizer, ema: EMA | None = None) -> None:
    """Put into the parameters what is sampled and exported: the moving average, or the schedule-free one.

    Training cannot continue from there.
    """
    if hasattr(unwrapped(optimizer), "eval"):
        unwrapped(optimizer).eval()
    if ema is not None:
        for name, parameter in ema.parameters.items():
            parameter.copy_(ema.average[name])


@contextlib.contextmanager
def averaged(optimizer, ema: EMA | None = None) -> Iterator[None]:
    """Within it the parameters are as use_average() leaves them; afterwards, bit by bit, as they were."""
    own = unwrapped(optimizer)
    parameters = []
    if ema is not None or hasattr(own, "eval"):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = [p.detach().clone() for p in parameters]
    use_average(optimizer, ema)
    try:
        yield
    finally:
        if hasattr(own, "train"):
            own.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, held, strict=True):
                parameter.copy_(value)
