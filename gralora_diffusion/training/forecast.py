"""What a run takes in time, memory and disk space: forecast from its first batches, measured at its end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gralora_diffusion.console import duration
from gralora_diffusion.devices import memory_in_use, peak_memory, reserved_memory
from gralora_diffusion.training.checkpoint import candidates
from gralora_diffusion.training.export import export_sizes
from gralora_diffusion.training.memory import disk_used
from gralora_diffusion.training.optim import checkpoint_bytes, spec_of
from gralora_diffusion.training.setup import TrainingSetup, checkpoint_interval, validation_due
from gralora_diffusion.training.step_cost import batch_time
from gralora_diffusion.training.time_left import Costs, saves_left, seconds_left

SAVED_PER_SECOND = 2e8  # bytes of a checkpoint, or of an exported file, that are written, synced and hashed


@dataclass(frozen=True)
class RunCost:
    """What a run takes, forecast or measured."""

    seconds: float
    memory: int  # bytes at the peak
    disk: int  # bytes of the run folder
    reserved: int | None = None  # bytes that the allocator took from a GPU, measured only
    costs: Costs | None = None  # what the seconds are made of, forecast only

    def after(self, seconds: float, lines: list[dict]) -> "RunCost":
        """This and so many seconds before, and the memory of steps before a resume, from metrics.jsonl."""
        seconds += self.seconds
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
    setup: TrainingSetup,
    optimization,
    loss_of: Callable,
    previews,
    earlier: int = 0,
    evaluations=None,
    before: Costs | None = None,
) -> RunCost:
    """What the rest of a run takes, measured on batches whose gradients are dropped.

    earlier: bytes at the peak before; before: what was measured before a resume.
    """
    before = before or Costs()
    config, accelerator = setup.config, setup.accelerator
    device, factors = accelerator.device, optimization.factors

    def run_batch(number: int) -> None:
        accelerator.backward(loss_of(number))
        factors.collect()
        torch.nn.utils.get_total_norm([factors.gradients])

    batches = (setup.steps - setup.start) * config.gradient_accumulation_steps
    seconds = batch_time(run_batch, batches, device, accelerator.num_processes == 1)
    factors.clear()
    numbers = factors.values.numel()
    optimizer_state = spec_of(config).state_bytes * numbers  # allocated at the first step, and kept
    memory = max(earlier, peak_memory(device) + optimizer_state)
    save_every = checkpoint_interval(config, setup.steps)
    saves = saves_left(save_every, setup.start, setup.steps)
    checkpoint = checkpoint_bytes(config) * numbers
    disk = disk_used(setup.path) + added_checkpoints(setup, saves) * checkpoint + files_to_come(setup)
    if previews:
        times = 1 + sum(validation_due(setup, step) for step in range(setup.start + 1, setup.steps))
        disk += times * disk_used(previews.of_step(0))
        memory = max(memory, previews.memory(memory_in_use(device) + optimizer_state))
    if evaluations and config.keep_best and device.type == "cpu":
        memory += 4 * numbers  # the best step's factors
    costs = Costs(
        step=seconds * config.gradient_accumulation_steps,
        images=(previews.seconds or before.images) if previews else 0.0,
        evaluation=(evaluations.seconds or before.evaluation) if evaluations else 0.0,
        checkpoint=checkpoint / SAVED_PER_SECOND,
        export=before.export or files_to_come(setup) / SAVED_PER_SECOND,
        look_every=tuple(setup.validation_intervals) if previews or evaluations else (),
        save_every=save_every,
    )
    left = seconds_left(costs, setup.start, setup.steps, None, setup.start)
    return RunCost(left, memory, disk, costs=costs)


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


def measured_cost(
    seconds: float, device: torch.device, folder: Path, earlier: int, lines: list[dict]
) -> RunCost:
    """What a run that took so many seconds has used, to compare with its forecast.

    earlier: bytes at the peak before its steps; lines: of metrics.jsonl before a resume.
    """
    cost = RunCost(seconds, max(earlier, peak_memory(device)), disk_used(folder), reserved_memory(device))
    return cost.after(0.0, lines)
