"""What a run takes in time, memory and disk space: forecast from its first batches, measured at its end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gralora_diffusion.devices import memory_in_use, peak_memory, reserved_memory
from gralora_diffusion.training.checkpoint import candidates
from gralora_diffusion.training.export import export_sizes
from gralora_diffusion.training.memory import disk_used
from gralora_diffusion.training.optim import checkpoint_bytes, spec_of
from gralora_diffusion.training.setup import TrainingSetup, checkpoint_interval, validation_due
from gralora_diffusion.training.step_cost import batch_time

SAVED_PER_SECOND = 2e8  # bytes of a checkpoint that are written, synced and hashed


@dataclass(frozen=True)
class RunCost:
    """What a run takes, forecast or measured."""

    seconds: float
    memory: int  # bytes at the peak
    disk: int  # bytes of the run folder
    reserved: int | None = None  # bytes that the allocator took from a GPU, measured only

    def after(self, lines: list[dict]) -> "RunCost":
        """This and what the steps before a resume took, from their lines of metrics.jsonl."""
        seconds = self.seconds + sum(line["seconds"] for line in lines)
        memory = max([self.memory, *(line.get("memory") or 0 for line in lines)])
        return replace(self, seconds=seconds, memory=memory)

    def to_json(self) -> dict[str, float]:
        """As it stands in status.json."""
        found = dict(seconds=self.seconds, memory_mb=self.memory / 1e6, disk_mb=self.disk / 1e6)
        return found if self.reserved is None else found | dict(reserved_mb=self.reserved / 1e6)

    def text(self) -> str:
        memory = f"{self.memory / 2**30:.1f} GiB of memory"
        return f"about {duration(self.seconds)}, {memory}, {self.disk / 1e6:,.0f} MB on disk"


def forecast_run(
    setup: TrainingSetup, optimization, loss_of: Callable, previews, earlier: int = 0, evaluations=None
) -> RunCost:
    """What the rest of a run takes, measured on batches whose gradients are dropped.

    earlier: bytes at the peak before.
    """
    config, accelerator = setup.config, setup.accelerator
    device, factors = accelerator.device, optimization.factors

    def run_batch(number: int) -> None:
        accelerator.backward(loss_of(number))
        factors.collect()
        torch.nn.utils.get_total_norm([factors.gradients])

    batches = (setup.steps - setup.start) * config.gradient_accumulation_steps
    seconds = batches * batch_time(run_batch, batches, device, accelerator.num_processes == 1)
    factors.clear()
    numbers = factors.values.numel()
    optimizer_state = spec_of(config).state_bytes * numbers  # allocated at the first step, and kept
    memory = max(earlier, peak_memory(device) + optimizer_state)
    saves = checkpoints_left(setup)
    checkpoint = checkpoint_bytes(config) * numbers
    seconds += saves * checkpoint / SAVED_PER_SECOND
    disk = disk_used(setup.path) + added_checkpoints(setup, saves) * checkpoint + files_to_come(setup)
    if previews:
        times = 1 + sum(validation_due(setup, step) for step in range(setup.start + 1, setup.steps))
        seconds += times * previews.seconds
        disk += times * disk_used(previews.of_step(0))
        memory = max(memory, previews.memory(memory_in_use(device) + optimizer_state))
    if evaluations:
        seconds += evaluations.seconds * sum(map(evaluations.due, range(setup.start + 1, setup.steps + 1)))
        if config.keep_best and device.type == "cpu":
            memory += 4 * numbers  # the best step's factors
    return RunCost(seconds, memory, disk)


def checkpoints_left(setup: TrainingSetup) -> int:
    """How many checkpoints the rest of the run writes."""
    every, left = checkpoint_interval(setup.config, setup.steps), setup.steps - setup.start
    if not left:
        return 0
    at_the_end = setup.steps % every > 0
    return setup.steps // every - setup.start // every + at_the_end


def added_checkpoints(setup: TrainingSetup, saves: int) -> int:
    """By how many the folder's checkpoints grow: old ones are deleted beyond --checkpoints_total_limit."""
    limit = setup.config.checkpoints_total_limit
    if limit is None or not saves:
        return saves
    return min(saves, limit - len(candidates(setup.path)))


def files_to_come(setup: TrainingSetup) -> int:
    """Bytes of the exported files that are not in the run folder yet."""
    sizes = export_sizes(setup.layers(), setup.config, setup.path)
    return sum(size for name, size in sizes.items() if not (setup.path / name).exists())


def measured_cost(seconds: float, device: torch.device, folder: Path, earlier: int = 0) -> RunCost:
    """What a run that took so many seconds has used, to compare with its forecast."""
    memory = max(earlier, peak_memory(device))
    return RunCost(seconds, memory, disk_used(folder), reserved_memory(device))


def duration(seconds: float) -> str:
    """1 h 2 min, or 3 min 4 s."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {seconds} s"
