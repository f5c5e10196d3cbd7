"""The steps of a run: loss, gradients, average, clip, update.

On a GPU the host does not wait for a step: it reads loss and norm while the device works on the next one. An
update is skipped on the device where they are not finite, so that the step before remains when that is read.
"""

import time
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.devices import is_out_of_memory
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.memory import memory_for
from gralora_diffusion.training.optim import current_rate, unwrapped
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.prefetch import PINNED
from gralora_diffusion.training.run_time import RunTime
from gralora_diffusion.training.signals import Interrupts
from gralora_diffusion.training.step_metrics import Metrics, Numbers, Update

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"  # tqdm's own times leave images out


class NoMemory(MemoryError):
    """Memory ran out in a step, which was not applied."""

    def __init__(self, step: int):
        super().__init__(f"out of memory at step {step}")
        self.step = step


class OtherFailed(RuntimeError):
    """Another process failed in a step, which was not applied in any."""

    def __init__(self, step: int):
        super().__init__(f"another process failed at step {step}")
        self.step = step


def reads_late(optimizer, accelerator) -> bool:
    """Whether the device itself can skip an update, and the host need not wait for its numbers."""
    fused = unwrapped(optimizer).defaults.get("fused")
    alone = accelerator.num_processes == 1 and not accelerator.scaler
    return bool(fused and alone and accelerator.device.type in PINNED)


def run_steps(
    optimization: Optimization,
    loss_of: Callable,
    config: TrainConfig,
    accelerator,
    interrupts: Interrupts,
    steps: int,
    start: int = 0,
    state_needed: Callable[[int], bool] = lambda step: True,
    clock: RunTime | None = None,
) -> Iterator[tuple[dict, bool]]:
    """Steps start + 1 to `steps`: loss, backward, clip, step.

    Yields (line of metrics, whether a signal asked to stop) after each; raises NotFinite, and NoMemory
    when memory runs out. Batch numbers follow from the step alone, so that a resumed run sees the same
    batches. state_needed(step): whether the models must be those of that step when its line is given;
    otherwise the next step may be under way, whose update comes later. clock: has the times of the progress
    bar, which are tqdm's own without it.
    """
    optimizer, factors = optimization.optimizer, optimization.factors
    late = reads_late(optimizer, accelerator)
    bar = tqdm(
        desc="training",
        unit="step",
        initial=start,
        total=steps,
        disable=not accelerator.is_local_main_process,
        bar_format=BAR if clock else None,
    )
    metrics = Metrics(optimization, accelerator, bar, clock)
    waiting = None  # the update whose numbers are not read yet
    with bar, metrics:
        for step in range(start + 1, steps + 1):
            factors.refresh()
            problem = None
            try:
                loss, stopping = gradients_of(step, optimization, loss_of, config, accelerator, interrupts)
                norm = accelerator.clip_grad_norm_(optimization.parameters(), config.max_grad_norm)
                numbers = torch.stack([loss, norm])
            except (NoMemory, OtherFailed) as error:
                problem = error
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = NoMemory(step)
            if waiting:
                yield metrics.end_step(waiting), waiting.stopping
                metrics.before = time.monotonic()
            if problem:
                raise problem from None
            waiting = Update(step, current_rate(optimizer), Numbers(numbers), stopping)
            if late:
                unwrapped(optimizer).found_inf = numbers.isfinite().all().logical_not().float()
            else:
                metrics.check(waiting)
            with memory_for(f"in the optimizer at step {step}", config):
                optimizer.step()
            factors.clear()
            if not late or stopping or state_needed(step):
                yield metrics.end_step(waiting), waiting.stopping
                metrics.before = time.monotonic()
                waiting = None


def gradients_of(
    step: int, optimization: Optimization, loss_of: Callable, config: TrainConfig, accelerator, interrupts
) -> tuple[torch.Tensor, bool]:
    """Fill the gradients with those of a step: (its loss, whether a signal asked to stop).

    Where a process fails, the others would wait for it: they are told, and raise OtherFailed.
    """
    factors, failure = optimization.factors, None
    try:
        loss = backward(step, factors, loss_of, config, accelerator)
    except Exception as error:
        if accelerator.num_processes == 1:
            raise
        failure = NoMemory(step) if is_out_of_memory(error) else error
        loss = factors.gradients.new_zeros(())
    total, stopping, failed = average(
        factors.gradients, loss, interrupts.asked, failure is not None, accelerator
    )
    if failure:
        raise failure
    if failed:
        raise OtherFailed(step)
    return total, stopping


def backward(
    step: int, factors: FlatFactors, loss_of: Callable, config: TrainConfig, accelerator
) -> torch.Tensor:
    """Add this process's gradients of a step; returns its loss."""
    micro_batches = config.gradient_accumulation_steps
    rank, processes = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(config.seed * 1_000_003 + step * 1009 + rank)  # of dropout
    losses = []
    for micro in range((step - 1) * micro_batches, step * micro_batches):
        loss = loss_of(micro * processes + rank) / micro_batches
        accelerator.backward(loss)
        factors.collect()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def average(
    gradients: torch.Tensor, loss: torch.Tensor, stopping: bool, failed: bool, accelerator
) -> tuple[torch.Tensor, bool, bool]:
    """Average the gradients, in place, and the loss over all processes, in one message.

    Adapters are small and the base is frozen, so that no wrapper such as DDP is needed. `stopping` and
    `failed` become true for all where they are true for one, so that all stop after the same step.
    """
    if accelerator.num_processes == 1:
        return loss, stopping, failed
    others = gradients.new_tensor([loss, float(stopping), float(failed)])
    means = accelerator.reduce(torch.cat([gradients, others]), "mean")
    gradients.copy_(means[:-3])
    any_stopping, any_failed = means[-2:].tolist()
    return means[-3], any_stopping > 0, any_failed > 0
