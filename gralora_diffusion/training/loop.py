"""The training loop: steps, their metrics, checkpoints and sample images."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import BatchPlan, examples_at
from gralora_diffusion.devices import is_out_of_memory, memory_in_use
from gralora_diffusion.options import TrainingError
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.average import EMA, averaged, use_average
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.memory import memory_for, out_of_memory
from gralora_diffusion.training.optim import current_rate, make_optimizer, make_schedule, parameter_groups
from gralora_diffusion.training.optimizer_state import load_optimizer_state, optimizer_state
from gralora_diffusion.training.run_folder import Run
from gralora_diffusion.training.setup import (
    TrainingSetup,
    checkpoint_interval,
    images_per_step,
    validation_due,
)
from gralora_diffusion.training.signals import Interrupts, Stopped
from gralora_diffusion.training.validation_images import Previews

MAX_SKIPPED = 25  # steps in a row that fp16's gradient scaler may skip


class NotFinite(ArithmeticError):
    """A loss or gradient is not finite; the step was not applied."""

    def __init__(self, what: str, step: int):
        super().__init__(f"the {what} of step {step} is not finite")
        self.step = step


class NoMemory(MemoryError):
    """Memory ran out in a step, which was not applied."""

    def __init__(self, step: int):
        super().__init__(f"out of memory at step {step}")
        self.step = step


@dataclass
class Optimization:
    """What turns gradients into a new adapter, and its state between two steps."""

    factors: FlatFactors
    optimizer: object
    schedule: object
    ema: EMA | None
    scaler: object

    @classmethod
    def of(cls, setup: TrainingSetup) -> "Optimization":
        """That of a run, with the state of the checkpoint it resumes from; its models stay where they are."""
        config, accelerator = setup.config, setup.accelerator
        groups = parameter_groups(setup.models, config, accelerator.num_processes)
        factors = FlatFactors.of_models(groups, setup.models.values(), setup.dtype)
        made = cls.over(factors, config, setup.steps, accelerator)
        made.load(setup.state)
        return made

    @classmethod
    def over(cls, factors: FlatFactors, config: TrainConfig, steps: int, accelerator) -> "Optimization":
        """A fresh one."""
        optimizer = make_optimizer(factors, config)
        schedule = make_schedule(optimizer, config, steps)
        ema = EMA(factors.values, config.ema_decay) if config.ema_decay else None
        return cls(factors, accelerator.prepare_optimizer(optimizer), schedule, ema, accelerator.scaler)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self) -> dict:
        return dict(
            optimizer=optimizer_state(self.optimizer),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict() if self.scaler else None,
            ema=self.ema.state() if self.ema else None,
        )

    def load(self, state: dict) -> None:
        if not state:
            return
        load_optimizer_state(self.optimizer, *state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load(*state["ema"])


def training_loop(
    setup: TrainingSetup,
    optimization: Optimization,
    run: Run | None,
    loss_of: Callable,
    batch_plan: BatchPlan,
    previews: Previews | None,
    interrupts: Interrupts,
) -> None:
    """All steps that are left, with metrics, checkpoints and sample images when they are due.

    At the end the models hold what is exported: the moving average, where there is one. run: None in all
    processes but the first. Raises Stopped after a signal, TrainingError where a loss or gradient is not
    finite or memory runs out; the last good state is saved before.
    """
    config, accelerator, steps = setup.config, setup.accelerator, setup.steps
    saved, save_every = setup.start, checkpoint_interval(config, steps)

    def save(step: int) -> None:
        nonlocal saved
        if run and step > saved:
            state = optimization.state() | dict(facts=setup.facts)
            checkpoints.save(setup.path, step, setup.adapter(step), state, config.checkpoints_total_limit)
        saved = step

    interrupts.patient = True
    try:
        for line, stopping in run_steps(
            optimization, loss_of, config, accelerator, interrupts, steps, setup.start
        ):
            step = line["step"]
            # metrics
            if run:
                log(run, line)
                accelerator.log({name: value for name, value in line.items() if value is not None}, step=step)
            # sample images
            if previews and validation_due(setup, step):
                room = memory_for(f"for the sample images of step {step}", config)
                with room, averaged(optimization.optimizer, optimization.ema):
                    previews.generate(step)
            # checkpoint
            if step == steps or stopping or step % save_every == 0:
                save(step)
            if stopping and step < steps:
                where = setup.path / f"checkpoint-{step}"
                raise Stopped(
                    f"stopped at step {step} of {steps}; run the same command to resume from {where}"
                )
    except NotFinite as error:
        save(error.step - 1)
        raise TrainingError(not_finite_message(error, setup, batch_plan)) from None
    except NoMemory as error:
        save(error.step - 1)
        raise out_of_memory(f"at step {error.step}", config) from None
    use_average(optimization.optimizer, optimization.ema)


def log(run: Run, line: dict) -> None:
    try:
        run.log(line)
    except OSError as error:
        problem = f"metrics.jsonl cannot be written ({error})"
        raise TrainingError(f"{problem}; run the same command to resume from the newest checkpoint") from None


def not_finite_message(error: NotFinite, setup: TrainingSetup, batch_plan: BatchPlan) -> str:
    """What failed, on which images, and what is left."""
    per_step = images_per_step(setup.config, setup.accelerator.num_processes)
    positions = range((error.step - 1) * per_step, error.step * per_step)
    names = dict.fromkeys(example.path.name for example in examples_at(batch_plan, positions))
    kept = "there is no earlier state"
    if error.step > 1:
        kept = f"{setup.path}/checkpoint-{error.step - 1} holds the last good state"
    step = f"the step, on {', '.join(names)}, was not applied"
    return f"{error}, and {step}; {kept}: lower --learning_rate"


def run_steps(
    optimization: Optimization,
    loss_of: Callable,
    config: TrainConfig,
    accelerator,
    interrupts: Interrupts,
    steps: int,
    start: int = 0,
) -> Iterator[tuple[dict, bool]]:
    """Steps start + 1 to `steps`: loss, backward, clip, step.

    Yields (line of metrics, whether a signal asked to stop) after each; raises NotFinite, and NoMemory
    when memory runs out. Batch numbers follow from the step alone, so that a resumed run sees the same
    batches.
    """
    optimizer, schedule, ema = optimization.optimizer, optimization.schedule, optimization.ema
    factors, parameters = optimization.factors, optimization.parameters()
    micro_batches = config.gradient_accumulation_steps
    rank, processes = accelerator.process_index, accelerator.num_processes
    smoothed, skipped = None, 0
    bar = tqdm(
        range(start + 1, steps + 1),
        desc="training",
        unit="step",
        initial=start,
        total=steps,
        disable=not accelerator.is_local_main_process,
    )
    for step in bar:
        start_time = time.monotonic()
        torch.manual_seed(config.seed * 1_000_003 + step * 1009 + rank)  # of dropout
        # forward and backward
        factors.refresh()
        losses = []
        try:
            for micro in range((step - 1) * micro_batches, step * micro_batches):
                loss = loss_of(micro * processes + rank) / micro_batches
                accelerator.backward(loss)
                factors.collect()
                losses.append(loss.detach())
            # all processes together: average, clip, check
            loss = torch.stack(losses).sum()
            total, stopping = average(factors.gradients, loss, interrupts.asked, accelerator)
            norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
            total, norm = torch.stack([total, norm]).tolist()  # here the host waits for the GPU
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemory(step) from None
        skipped = 0 if math.isfinite(norm) else skipped + 1
        if not math.isfinite(total):
            raise NotFinite("loss", step)
        if (skipped and not accelerator.scaler) or skipped > MAX_SKIPPED:
            raise NotFinite("gradient", step)
        # step
        lr = current_rate(optimizer)
        with memory_for(f"in the optimizer at step {step}", config):
            optimizer.step()
        if not accelerator.optimizer_step_was_skipped:  # fp16's scaler skips a step now and then
            schedule.step()
            if ema:
                ema.update()
        factors.clear()
        # metrics
        smoothed = total if smoothed is None else 0.95 * smoothed + 0.05 * total
        bar.set_postfix({"smoothed loss": f"{smoothed:.4f}"})
        yield (
            dict(
                step=step,
                loss=total,
                lr=lr,
                grad_norm=norm if math.isfinite(norm) else None,
                seconds=round(time.monotonic() - start_time, 4),
                memory=memory_in_use(accelerator.device),
            ),
            stopping,
        )


def average(
    gradients: torch.Tensor, loss: torch.Tensor, stopping: bool, accelerator
) -> tuple[torch.Tensor, bool]:
    """Average the gradients, in place, and the loss over all processes, in one message.

    Adapters are small and the base is frozen, so that no wrapper such as DDP is needed. `stopping` becomes
    true for all where it is true for one, so that all stop after the same step.
    """
    if accelerator.num_processes == 1:
        return loss, stopping
    others = gradients.new_tensor([loss, float(stopping)])
    means = accelerator.reduce(torch.cat([gradients, others]), "mean")
    gradients.copy_(means[:-2])
    return means[-2], means[-1].item() > 0
