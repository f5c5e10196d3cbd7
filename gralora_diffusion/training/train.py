"""A training run: from a TrainConfig to a run folder with metrics, checkpoints, adapter files and samples."""

import contextlib
import shutil
import time
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from gralora_diffusion.adapters import allocation
from gralora_diffusion.adapters.gradients import stratified
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import share_work
from gralora_diffusion.data.batches import BatchPlan
from gralora_diffusion.data.cache import weights_hash
from gralora_diffusion.data.encode import LatentKeys
from gralora_diffusion.devices import forget_peak, peak_memory, release_unused
from gralora_diffusion.formats.run_files import named_after
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.sdxl.load import COMPONENTS
from gralora_diffusion.sdxl.placement import TOKENS, bring
from gralora_diffusion.training.best import is_exhausted
from gralora_diffusion.training.compiled import compile_blocks
from gralora_diffusion.training.encode_dataset import CACHE, encode_dataset
from gralora_diffusion.training.evaluations import Evaluations, evaluations_of, is_evaluated
from gralora_diffusion.training.export import export, export_again
from gralora_diffusion.training.forecast import forecast_run, measured_cost
from gralora_diffusion.training.hub import push
from gralora_diffusion.training.loop import look, training_loop
from gralora_diffusion.training.loss import draw_noise
from gralora_diffusion.training.memory import memory_for
from gralora_diffusion.training.objective import objective
from gralora_diffusion.training.offload import Offload
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.report import write_report
from gralora_diffusion.training.run_folder import Run, read_status
from gralora_diffusion.training.run_time import RunTime, time_text
from gralora_diffusion.training.setup import TrainingSetup, make_trainable, set_up
from gralora_diffusion.training.sharding import shard
from gralora_diffusion.training.signals import Interrupts, Stopped
from gralora_diffusion.training.start_run import start_run
from gralora_diffusion.training.time_left import costs_from_json
from gralora_diffusion.training.validation_images import Previews, save_comparison, thumbnails

LOST_PROCESS = (
    "another process of this run has ended: its own message says why; "
    "run the same command to resume from the newest checkpoint"
)


def train(config: TrainConfig) -> Path:
    """Train, or resume the run that this config started, and return the run folder.

    Raises ConfigError before anything is written, TrainingError later, and Stopped after SIGINT or SIGTERM,
    when everything trained so far is saved.
    """
    began = time.monotonic()
    run = None  # the folder, once this process has it

    def record(state: str, message: str) -> None:
        if run:
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                step = max((line["step"] for line in run.metrics()), default=0)
                run.status(state, message=message, step=step, doing="")

    def record_kill() -> None:
        record("stopped", "stopped at once: run the same command to resume from the newest checkpoint")

    with Interrupts(record_kill) as interrupts:
        try:
            setup = set_up(config.resolved())
            share_work()
            done = is_complete(setup) and read_status(setup.path)["state"] == "done"
            if not done:
                run = open_run(setup, began)
                start_run(setup, run)
                run_training(setup, run, interrupts)
                record("done", "")
        except BaseException as error:
            if has_lost_process(error):
                error = TrainingError(LOST_PROCESS)
            state = "stopped" if isinstance(error, Stopped) else "failed"
            is_sentence = isinstance(error, ConfigError | TrainingError | Stopped)
            record(state, str(error) if is_sentence else f"{type(error).__name__}: {error}")
            raise error
        finally:
            if run:
                run.lock.release()
    if setup.accelerator.is_main_process:
        finish(setup, done)
    return setup.path


def is_complete(setup: TrainingSetup) -> bool:
    """Whether no step is left, since the run has all of them or --patience ended it."""
    return setup.start == setup.steps or is_exhausted(setup.evaluated(), setup.config)


def has_lost_process(error: BaseException) -> bool:
    """Whether a process that this one was waiting for is gone, as gloo and NCCL report it."""
    if not torch.distributed.is_available() or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def finish(setup: TrainingSetup, done_before: bool) -> None:
    """What follows the training: exports that a finished run lacks, the upload, a line on the console."""
    try:
        if done_before:
            export_again(setup)
        else:
            print(done_message(setup), flush=True)
        if setup.config.push_to_hub:
            print(f"uploaded: {push(setup.path, setup.config)}", flush=True)
    except KeyboardInterrupt:
        where = f"stopped after training; the adapter is in {setup.path}"
        raise Stopped(
            f"{where}; for what is left to do, run the same command with --output_dir {setup.path}"
        ) from None


def done_message(setup: TrainingSetup) -> str:
    """Where the adapter is and what to look at."""
    run, config = setup.path, setup.config
    lora = named_after(run).name
    files = f"adapter.safetensors; for other tools, {lora} and pytorch_lora_weights.safetensors"
    images = "" if config.skip_final_inference else f" and {run}/before_after.png"
    fits = ""
    if config.pretrained_model_name_or_path is None:
        fits = (
            "note: this adapter does not fit SDXL; to train for SDXL, give --pretrained_model_name_or_path\n"
        )
    return f"{fits}done: {run} holds the adapter ({files}); look at {run}/report.html{images}"


def open_run(setup: TrainingSetup, began: float) -> Run | None:
    """Take the folder; only the main process gets it, and all of them stop when it cannot be taken.

    began: time.monotonic() when the command started.
    """
    run, problem = None, None
    accelerator = setup.accelerator
    accelerator.wait_for_everyone()  # all have read what they need
    if accelerator.is_main_process:
        try:
            run = Run(setup.path, began)
            run.begin(setup.config, setup.facts, setup.start)
        except ConfigError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{setup.path} cannot be written: {error}"
    if accelerator.num_processes > 1:
        (problem,) = broadcast_object_list([problem])
    if problem:
        raise ConfigError(problem, option="output_dir")
    return run


def run_training(setup: TrainingSetup, run: Run | None, interrupts: Interrupts) -> None:
    """Encode, train, export; run: None in all processes but the first.

    The text encoders, the VAE and the UNet are moved to the device one after the other: small GPUs cannot
    hold all. Raises TrainingError where even one does not fit.
    """
    config, accelerator, pipeline = setup.config, setup.accelerator, setup.pipeline
    device = accelerator.device
    clock = RunTime(run, setup.steps)
    clock.doing("encoding the dataset")
    forget_peak(device)
    keys = LatentKeys(pipeline.vae, config)
    text_encoders = weights_hash(pipeline.text_encoder, pipeline.text_encoder_2)
    previews = None
    training_images = thumbnails(setup.images, config) if run else []
    if not config.skip_final_inference:
        with memory_for("while the validation prompts are embedded", config):
            bring(pipeline, COMPONENTS[1:], device, TOKENS)
            ranks = accelerator.process_index, accelerator.num_processes
            previews = Previews(pipeline, config, setup.path, *ranks)
    batch_plan, held_out, encode = encode_dataset(setup, keys, text_encoders)

    # UNet: images of the base, ranks and factors from gradients, a forecast, and the training
    with memory_for("when the UNet is moved to the GPU", config):
        if config.offload_unet:
            Offload(pipeline.unet, device)
        bring(pipeline, COMPONENTS, device, 0)  # text encoders too where they train; they are None otherwise
        shard(pipeline.unet, accelerator)
    if previews and setup.start == 0:
        if run:
            first = "adapter to start from" if config.start_from else "base model"
            print(f"generating sample images of the {first} ...", flush=True)
        previews.generate(0, clock.images if run else None)
        accelerator.wait_for_everyone()  # the forecast counts the files of all processes
        clock.doing("", share=0.0)
    make_trainable(setup.models, config)
    loss_of = loss_function(setup, batch_plan, encode)
    if config.gora_init and setup.start == 0:
        clock.doing("reading gradients")
        allocate(setup, loss_function(setup, batch_plan, encode, stratified(draw_noise)))
    if config.compile:
        compile_blocks(pipeline.unet, batch_plan.shapes())
    earlier = peak_memory(device)
    if device.type != "cpu":  # where memory is counted, that of the training is forecast
        forget_peak(device)
    with memory_for("before the first step", config):
        optimization = Optimization.of(setup)
        clock.doing("evaluating" if is_evaluated(setup) else "")
        evaluations = evaluations_of(setup, run, optimization, held_out, encode, previews)
        clock.doing("measuring a step")
        before = costs_from_json(run.before.get("costs")) if run else None
        forecast = forecast_run(setup, optimization, loss_of, previews, earlier, evaluations, before)
    if run:
        steps_before = run.metrics()
        clock.begin(forecast.costs, before)
        whole = forecast.after(run.seconds(), steps_before)
        run.status("running", forecast=whole.to_json(), **clock.facts())
        print(f"estimate: {whole.text()}", flush=True)  # as the report has it
    last = training_loop(
        setup, optimization, run, loss_of, batch_plan, previews, interrupts, evaluations, clock
    )

    if not (evaluations and evaluations.has(last)):
        look(last, previews, evaluations, clock)
    accelerator.wait_for_everyone()
    if run:
        clock.start_export()
        exported = choose_best(setup, evaluations, last)
        with memory_for("while the adapter is exported", config):
            export(setup, exported)
        if previews:
            save_comparison(setup.path, training_images, exported, config)
        shutil.rmtree(setup.path / CACHE, ignore_errors=True)
        clock.export_ended()
        cost = measured_cost(run.end(), device, setup.path, earlier, steps_before)
        known = dict(actual=cost.to_json(), costs=clock.costs.to_json(), step=last)
        run.status("running", doing="writing the report", **known)
        write_report(setup.path, training_images)
        print(f"time: {time_text(run.seconds(), run.metrics())}", flush=True)
    accelerator.end_training()


def choose_best(setup: TrainingSetup, evaluations: Evaluations | None, last: int) -> int:
    """With --keep_best put the best step's adapter into the models; returns the step that they are of."""
    if not setup.config.keep_best:
        return last
    ended = f"stopped after step {last} by --patience; " if last < setup.steps else ""
    print(f"{ended}{evaluations.text()}", flush=True)
    return evaluations.use_best() or last


def loss_function(setup: TrainingSetup, batch_plan: BatchPlan, encode, draw=draw_noise):
    """objective() of this run."""
    pipeline = setup.pipeline
    return objective(
        pipeline.unet,
        pipeline.scheduler,
        batch_plan,
        encode,
        setup.config,
        setup.accelerator,
        setup.dtype,
        draw,
        models=setup.models,
    )


def allocate(setup: TrainingSetup, loss_of) -> None:
    """Ranks and first factors from the gradients of loss_of."""
    first = "keep fewer sums at once with --gora_memory 1"
    with memory_for("in the gradient pass", setup.config, first):
        allocation.apply(setup.models, loss_of, setup.config, setup.accelerator, setup.path)
    release_unused(setup.accelerator.device)
