"""The numbers that each step leaves: read from the device, checked, and turned into a line of metrics."""

import functools
import math
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from gralora_diffusion.devices import memory_in_use, peak_memory, reserved_memory
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.prefetch import PINNED
from gralora_diffusion.training.report_charts import smooth
from gralora_diffusion.training.run_time import RunTime

MAX_SKIPPED = 25  # steps in a row that fp16's gradient scaler may skip


class NotFinite(ArithmeticError):
    """A loss or gradient is not finite; the step was not applied."""

    def __init__(self, what: str, step: int):
        super().__init__(f"the {what} of step {step} is not finite")
        self.step = step


class Numbers:
    """Numbers of the device, on their way to the host."""

    def __init__(self, numbers: torch.Tensor):
        self.event = None
        self.host = numbers
        if numbers.device.type in PINNED:
            self.host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.host.copy_(numbers, non_blocking=True)
            self.event = torch.accelerator.current_stream(numbers.device).record_event()

    def read(self) -> list[float]:
        """Waits for what the device did before it sent them, and for nothing later."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()


@dataclass
class Update:
    """An update that is queued: what is known of its step, and what the device has yet to tell."""

    step: int
    lr: float
    numbers: Numbers  # loss and norm of the gradient
    stopping: bool
    loss: float | None = None
    norm: float | None = None


class Metrics:
    """Turns the numbers of each step into its line of metrics, in order."""

    def __init__(
        self,
        optimization: Optimization,
        accelerator,
        bar: tqdm,
        clock: RunTime | None,
    ):
        """clock: has what the bar shows of time; None for tqdm's own."""
        self.optimization, self.accelerator, self.bar = optimization, accelerator, bar
        self.clock = clock
        losses = [line["loss"] for line in clock.run.metrics()] if clock and clock.run else []
        self.smoothed = functools.reduce(smooth, losses) if losses else None  # goes on after a resume
        self.skipped = 0
        self.before = time.monotonic()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        """The bar as it stays, where there is a loss to show."""
        if self.clock and self.smoothed is not None:
            self.show(self.clock.after_steps(), refresh=False)  # the bar draws itself when it is closed

    def show(self, times: str, refresh: bool = True) -> None:
        text = ", ".join(filter(None, [times, f"smoothed loss {self.smoothed:.4f}"]))
        self.bar.set_postfix_str(text, refresh)

    def check(self, update: Update) -> None:
        """Read the numbers; raises NotFinite where the update must not be applied."""
        if update.loss is not None:
            return
        update.loss, update.norm = update.numbers.read()
        self.skipped = 0 if math.isfinite(update.norm) else self.skipped + 1
        if not math.isfinite(update.loss):
            raise NotFinite("loss", update.step)
        if (self.skipped and not self.accelerator.scaler) or self.skipped > MAX_SKIPPED:
            raise NotFinite("gradient", update.step)

    def end_step(self, update: Update) -> dict:
        """The line, once schedule and average have followed the update."""
        self.check(update)
        optimization, loss, device = self.optimization, update.loss, self.accelerator.device
        if not self.accelerator.optimizer_step_was_skipped:  # fp16's scaler skips a step now and then
            optimization.schedule.step()
            if optimization.ema:
                optimization.ema.update()
        self.smoothed = loss if self.smoothed is None else smooth(self.smoothed, loss)
        seconds = round(time.monotonic() - self.before, 4)
        times = self.clock.add_step(update.step, seconds) if self.clock else ""
        self.bar.n = update.step
        self.show(times)
        return dict(
            step=update.step,
            loss=loss,
            lr=update.lr,
            grad_norm=update.norm if math.isfinite(update.norm) else None,
            seconds=seconds,
            memory=memory_in_use(device),
            peak=peak_memory(device),
            reserved=reserved_memory(device),
        )
