"""Averages of an adapter over the steps: an exponential moving one, and that of a schedule-free optimizer."""

import contextlib
from collections.abc import Iterator

import torch

from gralora_diffusion.training.optim import unwrapped


class EMA:
    """An exponential moving average of all parameters: average = d average + (1 - d) parameter.

    d = min(decay, (1 + n) / (10 + n)), where n counts earlier updates: the first steps fade soon.
    """

    def __init__(self, values: torch.Tensor, decay: float):
        """values: those of FlatFactors."""
        self.values, self.decay, self.updates = values, decay, 0
        self.average = values.clone()

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step that was applied."""
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.average.lerp_(self.values, 1 - d)
        self.updates += 1

    def state(self) -> tuple[torch.Tensor, dict]:
        """(tensor, facts for JSON), a copy on the CPU."""
        return self.average.to("cpu", copy=True), dict(updates=self.updates)

    def load(self, average: torch.Tensor, facts: dict) -> None:
        """state() the other way round. Raises ValueError for the state of another adapter."""
        if average.shape != self.average.shape:
            raise ValueError("the moving average belongs to another adapter")
        self.average.copy_(average)
        self.updates = facts["updates"]


@torch.no_grad()
def use_average(optimizer, ema: EMA | None = None) -> None:
    """Put into the parameters what is sampled and exported: the moving average, or the schedule-free one.

    Training cannot continue from there.
    """
    if hasattr(unwrapped(optimizer), "eval"):
        unwrapped(optimizer).eval()
    if ema is not None:
        ema.values.copy_(ema.average)


@contextlib.contextmanager
def averaged(optimizer, ema: EMA | None = None) -> Iterator[None]:
    """Within it the parameters are as use_average() leaves them; afterward, bit for bit, as they were."""
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
