"""The training loop: steps, their metrics, checkpoints and sample images."""

from collections.abc import Callable

from gralora_diffusion.data.batches import BatchPlan, examples_at
from gralora_diffusion.options import TrainingError
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.average import averaged, use_average
from gralora_diffusion.training.evaluations import Evaluations
from gralora_diffusion.training.memory import memory_for, out_of_memory
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.run_folder import Run
from gralora_diffusion.training.run_time import RunTime
from gralora_diffusion.training.setup import (
    TrainingSetup,
    checkpoint_interval,
    images_per_step,
    validation_due,
)
from gralora_diffusion.training.signals import Interrupts, Stopped
from gralora_diffusion.training.step_metrics import NotFinite
from gralora_diffusion.training.steps import NoMemory, OtherFailed, run_steps
from gralora_diffusion.training.validation_images import Previews


def training_loop(
    setup: TrainingSetup,
    optimization: Optimization,
    run: Run | None,
    loss_of: Callable,
    batch_plan: BatchPlan,
    previews: Previews | None,
    interrupts: Interrupts,
    evaluations: Evaluations | None,
    clock: RunTime,
) -> int:
    """All steps that are left, with metrics, evaluations, checkpoints and sample images when they are due.

    Returns the last step, which is an earlier one where --patience ends the run. At the end the models hold
    the moving average, where there is one. run: None in all processes but the first. Raises Stopped after a
    signal, TrainingError where a loss or gradient is not finite or memory runs out; the last good state is
    saved before.
    """
    config, accelerator, steps = setup.config, setup.accelerator, setup.steps
    saved, save_every = setup.start, checkpoint_interval(config, steps)

    def save(step: int) -> None:
        nonlocal saved
        if run and step > saved:
            state = optimization.state() | dict(facts=setup.facts)
            if evaluations:
                state["evaluations"] = evaluations.state()
            clock.doing("saving a checkpoint")
            checkpoints.save(setup.path, step, setup.adapter(step), state, config.checkpoints_total_limit)
            clock.doing("")
        saved = step

    def saving_due(step: int) -> bool:
        return step == steps or step % save_every == 0

    def images_due(step: int) -> bool:
        return previews is not None and (validation_due(setup, step) or evaluation_due(step))

    def evaluation_due(step: int) -> bool:
        return evaluations is not None and evaluations.due(step)

    def state_needed(step: int) -> bool:
        return saving_due(step) or images_due(step) or evaluation_due(step)

    if evaluations and evaluations.exhausted():  # resumed after the last step, before the export
        use_average(optimization.optimizer, optimization.ema)
        return setup.start

    interrupts.patient = True
    how = dict(state_needed=state_needed, clock=clock)
    made = run_steps(optimization, loss_of, config, accelerator, interrupts, steps, setup.start, **how)
    try:
        for line, stopping in made:
            step = line["step"]
            # metrics
            if run:
                log(run, line)
                accelerator.log({name: value for name, value in line.items() if value is not None}, step=step)
            # sample images and evaluation
            if images_due(step) or evaluation_due(step):
                room = memory_for(f"for the sample images of step {step}", config)
                with room, averaged(optimization.optimizer, optimization.ema):
                    look(step, previews, evaluations if evaluation_due(step) else None, clock)
            # checkpoint
            enough = evaluation_due(step) and evaluations.exhausted()
            if stopping or enough or saving_due(step):
                save(step)
            if enough:
                steps = step
                break
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
    except OtherFailed as error:
        save(error.step - 1)
        raise TrainingError(f"{error}: its own message says why, and all processes stop") from None
    finally:
        made.close()  # the progress bar, before anything else is printed
    use_average(optimization.optimizer, optimization.ema)
    return steps


def look(step: int, previews: Previews | None, evaluations: Evaluations | None, clock: RunTime) -> None:
    """The sample images of a step, and its evaluation; the models must be as they are sampled from."""
    if previews:
        previews.generate(step, clock.images if clock.run else None)
    if evaluations:
        clock.doing("evaluating", share=1.0)
        evaluations.add(step)
    clock.look_ended(step, previews, evaluations)


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
    return f"{error}, and {step}; {kept}: use a lower --learning_rate and another --output_dir"
