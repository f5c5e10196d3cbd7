"""One training run: from a TrainConfig to a run folder with config.json, metrics.jsonl, checkpoints, adapter files and samples."""

import contextlib
import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from gralora_diffusion.adapters import allocation
from gralora_diffusion.adapters.gradients import stratified
from gralora_diffusion.adapters.registry import adapter_parameters, layer_table
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import (
    BatchPlan,
    encode_captions,
    examples_at,
    plan_batches,
    tell_long_captions,
)
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.dataset import image_cache
from gralora_diffusion.options import ConfigError, TrainingError, to_dict
from gralora_diffusion.sdxl.base import Prompts, encode_prompts, predict
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.export import export, export_again
from gralora_diffusion.training.forecast import forecast_run, in_words, what_was_used
from gralora_diffusion.training.hub import push
from gralora_diffusion.training.loss import add_noise, diffusion_loss, draw, noise_schedule
from gralora_diffusion.training.memory import memory_in_use
from gralora_diffusion.training.optim import (
    EMA,
    load_optimizer_state,
    make_optimizer,
    make_schedule,
    optimizer_state,
    parameter_groups,
    rate_in_use,
    settle,
    settled,
)
from gralora_diffusion.training.report import write_report
from gralora_diffusion.training.run_folder import Run, read_status
from gralora_diffusion.training.setup import (
    TrainingSetup,
    adapter_of,
    all_layers,
    positions_of,
    preview_due,
    set_up,
)
from gralora_diffusion.training.sharding import shard
from gralora_diffusion.training.signals import Interrupts, Stopped
from gralora_diffusion.training.validation_images import Previews, save_comparison, subject_of

CACHE = "cache"  # of a run with --no-cache_latents, in its folder until it ends
SKIPS = 25  # fp16's scaler may skip so many steps in a row


def train(config: TrainConfig) -> Path:
    """Train, or go on with the run that this config began, and return the run folder.

    Raises ConfigError before anything is written, TrainingError later, and Stopped after SIGINT or SIGTERM, when all that was learnt is saved.
    """
    runs: list[Run] = []  # the folder, once this process has it

    def last_words(state: str, message: str) -> None:
        for run in runs:
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                run.status(
                    state, message=message, step=max((line["step"] for line in run.metrics()), default=0)
                )

    with Interrupts(
        lambda: last_words("stopped", "stopped at once: the same command goes on from the newest checkpoint")
    ) as interrupts:
        try:
            job = set_up(config.resolved())
            done = job.start == job.steps and read_status(job.path)["state"] == "done"
            if not done:
                run = open_run(job)
                runs += [run] if run else []
                run_training(job, run, interrupts)
                last_words("done", "")
        except BaseException as error:
            sentence = isinstance(error, ConfigError | TrainingError | Stopped)
            last_words(
                "stopped" if isinstance(error, Stopped) else "failed",
                str(error) if sentence else f"{type(error).__name__}: {error}",
            )
            raise
        finally:
            for run in runs:
                run.lock.release()
    if job.accelerator.is_main_process:
        try:
            if done:
                export_again(job.path, job.config)
            if config.push_to_hub:
                print(f"uploaded: {push(job.path, job.config)}", flush=True)
        except KeyboardInterrupt:
            left = f"the same command with --output_dir {job.path} does what was left"
            raise Stopped(f"stopped after the training, whose adapter is in {job.path}; {left}") from None
    return job.path


def open_run(job: TrainingSetup) -> Run | None:
    """Take the folder; only the main process gets it, and all of them stop when it cannot be taken."""
    run, refused, accelerator = None, [None], job.accelerator
    accelerator.wait_for_everyone()  # all have read what they need
    if accelerator.is_main_process:
        try:
            run = Run(job.path)
            run.begin(job.config, job.facts, job.start)
        except (ConfigError, OSError) as error:
            refused = [f"{job.path} cannot be written: {error}" if isinstance(error, OSError) else str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(refused)
    if refused[0]:
        raise ConfigError(refused[0])
    if run:
        run.status("starting", step=job.start, steps=job.steps)
        print(
            f"{layer_table(all_layers(job.models)).splitlines()[-1]} -> {job.path}"
            + (f", from step {job.start}" if job.start else ""),
            flush=True,
        )
    if accelerator.log_with:
        values = to_dict(dataclasses.replace(job.config, hub_token=None)).items()
        accelerator.init_trackers(
            "gralora_diffusion",
            {name: value for name, value in values if isinstance(value, str | int | float)},
        )
    return run


def run_training(job: TrainingSetup, run: Run | None, interrupts: Interrupts) -> None:
    """Encode, train, export.  The text encoders, the VAE and the UNet come onto the device one after the other: small cards do not hold all."""
    config, accelerator, pipeline = job.config, job.accelerator, job.pipeline
    pipeline.text_encoder.to(accelerator.device)
    pipeline.text_encoder_2.to(accelerator.device)
    previews = (
        None
        if config.skip_final_inference
        else Previews(pipeline, config, job.path, accelerator.process_index, accelerator.num_processes)
    )
    subject = subject_of(job.images, config) if previews else []
    tell_long_captions(job.images + job.of_class, pipeline)
    pipeline.vae.to(accelerator.device)
    series = plan_batches(
        job.images,
        job.of_class,
        pipeline.vae,
        config,
        image_cache(config) or Cache(job.path / CACHE),
        accelerator,
    )
    pipeline.vae.to("cpu")
    pipeline.vae, encode = None, functools.partial(encode_prompts, pipeline)
    if not config.train_text_encoder:
        encode = encode_captions(
            series.captions(), pipeline, series.cache, accelerator, config.dataloader_num_workers
        )
        pipeline.text_encoder = pipeline.text_encoder_2 = (
            None  # they leave memory: what they had to say is in the cache and in `previews`
        )
    pipeline.unet.to(accelerator.device)
    shard(pipeline.unet, accelerator)
    if previews and job.start == 0:
        previews.draw(0)
        accelerator.wait_for_everyone()  # the forecast looks at what all have drawn
    needs = pipeline.unet, pipeline.scheduler, series, encode, config, accelerator, job.dtype
    loss_of = objective(*needs)
    make_trainable(job.models, config)
    if config.gora_init and job.start == 0:
        try:
            allocation.apply(job.models, objective(*needs, stratified(draw)), config, accelerator, job.path)
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"out of memory in the gradient pass: give it fewer sums at once with --gora_memory 1, {what_to_lower(config)}"
            ) from None
    try:
        expected = forecast_run(job, loss_of, previews)
    except torch.OutOfMemoryError:
        raise TrainingError(f"out of memory before the first step: {what_to_lower(config)}") from None
    if run:
        print(f"forecast: {in_words(expected)}", flush=True)
        run.status("running", forecast=expected)
    began = time.monotonic()
    training_loop(job, run, loss_of, series, previews, interrupts)
    if previews:
        previews.draw(job.steps)
    accelerator.wait_for_everyone()
    if run:
        export(job)
        if previews:
            save_comparison(job.path, subject, job.steps, config)
        run.status(
            "running",
            actual=dict(zip(expected, (time.monotonic() - began, *what_was_used(job)), strict=True)),
        )
        shutil.rmtree(job.path / CACHE, ignore_errors=True)
        write_report(job.path)
    accelerator.end_training()


def training_loop(
    job: TrainingSetup,
    run: Run | None,
    loss_of: Callable,
    series: BatchPlan,
    previews: Previews | None,
    interrupts: Interrupts,
) -> None:
    """All steps that are left: each with its line in metrics.jsonl, with images and checkpoints when they are due; at the end the models
    hold what is to be exported, the moving average where there is one.

    Raises Stopped when a signal asked for it, TrainingError at a loss or gradient that is not finite; the last good state is saved before.
    """
    config, accelerator = job.config, job.accelerator
    optimization, saved = Optimization.of(job), job.start

    def save(step: int) -> None:
        nonlocal saved
        if run and step > saved:
            state = optimization.state() | dict(facts=job.facts)
            checkpoints.save(job.path, step, adapter_of(job), state, config.checkpoints_total_limit)
        saved = step

    interrupts.patient = True
    try:
        for line, stopping in run_steps(job, optimization, loss_of, interrupts):
            step = line["step"]
            if run:
                log(run, line)
                accelerator.log({name: value for name, value in line.items() if value is not None}, step=step)
            if previews and preview_due(step, job):
                with settled(optimization.optimizer, optimization.ema):
                    previews.draw(step)
            if step == job.steps or stopping or step % config.checkpointing_steps == 0:
                save(step)
            if stopping and step < job.steps:
                raise Stopped(
                    f"stopped at step {step} of {job.steps}; the same command goes on from {job.path / f'checkpoint-{step}'}"
                )
    except NotFinite as error:
        save(error.step - 1)
        files = dict.fromkeys(r.path.name for r in examples_at(series, positions_of(error.step, job)))
        last = (
            f"{job.path}/checkpoint-{error.step - 1} holds the last good state"
            if error.step > 1
            else "no step was taken before it"
        )
        raise TrainingError(
            f"{error}, and the step, which learnt {', '.join(files)}, was not applied; {last}: lower --learning_rate"
        ) from None
    settle(optimization.optimizer, optimization.ema)


def log(run: Run, line: dict) -> None:
    try:
        run.log(line)
    except OSError as error:
        raise TrainingError(
            f"metrics.jsonl cannot be written ({error}); the same command goes on from the newest checkpoint"
        ) from None


class NotFinite(ArithmeticError):
    def __init__(self, what: str, step: int):
        super().__init__(f"the {what} of step {step} is not finite")
        self.step = step


@dataclass
class Optimization:
    """What turns gradients into a new adapter, and its state between two steps."""

    optimizer: object
    schedule: object
    ema: EMA | None
    scaler: object

    @classmethod
    def of(cls, job: TrainingSetup) -> "Optimization":
        config, accelerator = job.config, job.accelerator
        optimizer = make_optimizer(parameter_groups(job.models, config, accelerator.num_processes), config)
        schedule = make_schedule(optimizer, config, job.steps)
        named = {
            f"{name}.{path}": p
            for name, model in job.models.items()
            for path, p in adapter_parameters(model).items()
        }
        self = cls(
            accelerator.prepare_optimizer(optimizer),
            schedule,
            EMA(named, config.ema_decay) if config.ema_decay else None,
            accelerator.scaler,
        )
        self.load(job.state)
        return self

    def state(self) -> dict:
        scaler, ema = (
            self.scaler.state_dict() if self.scaler else None,
            self.ema.state() if self.ema else None,
        )
        return dict(
            optimizer=optimizer_state(self.optimizer),
            schedule=self.schedule.state_dict(),
            scaler=scaler,
            ema=ema,
        )

    def load(self, state: dict) -> None:
        if state:
            load_optimizer_state(self.optimizer, *state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.scaler:
                self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.load(*state["ema"])


def make_trainable(models: dict, config: TrainConfig) -> None:
    for model in models.values():
        model.train()
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing() if hasattr(
                model, "enable_gradient_checkpointing"
            ) else model.gradient_checkpointing_enable()


def run_steps(
    job: TrainingSetup, optimization: Optimization, loss_of: Callable, interrupts: Interrupts
) -> Iterator[tuple[dict, bool]]:
    """The loop: loss, backward, clip, step.  Yields (line of metrics, whether a signal has asked to stop) after each; raises NotFinite."""
    config, accelerator = job.config, job.accelerator
    optimizer, schedule, ema = optimization.optimizer, optimization.schedule, optimization.ema
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    smooth, skipped, micros = None, 0, config.gradient_accumulation_steps
    shown = dict(
        desc="training",
        unit="step",
        initial=job.start,
        total=job.steps,
        disable=not accelerator.is_local_main_process,
    )
    for step in (bar := tqdm(range(job.start + 1, job.steps + 1), **shown)):
        began = time.monotonic()
        torch.manual_seed(config.seed * 1_000_003 + step * 1009 + accelerator.process_index)  # dropout
        total = torch.zeros(())
        try:
            for micro in range((step - 1) * micros, step * micros):
                loss = loss_of(micro * accelerator.num_processes + accelerator.process_index) / micros
                accelerator.backward(loss)
                total += loss.detach().cpu()
        except torch.OutOfMemoryError:
            raise TrainingError(f"out of memory at step {step}: {what_to_lower(config)}") from None
        total, stopping = average(parameters, total, interrupts.asked, accelerator)
        norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
        skipped = 0 if math.isfinite(norm) else skipped + 1
        if (
            not math.isfinite(total) or (skipped and not accelerator.scaler) or skipped > SKIPS
        ):  # fp16's scaler skips a step now and then
            raise NotFinite("loss" if not math.isfinite(total) else "gradient", step)
        lr = rate_in_use(optimizer)
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            schedule.step()
            if ema:
                ema.update()
        optimizer.zero_grad(set_to_none=True)
        smooth = total if smooth is None else 0.95 * smooth + 0.05 * total
        bar.set_postfix({"smoothed loss": f"{smooth:.4f}"})
        seconds = time.monotonic() - began
        line = dict(
            step=step,
            loss=total,
            lr=lr,
            grad_norm=norm if math.isfinite(norm) else None,
            seconds=round(seconds, 4),
        )
        yield line | dict(memory=memory_in_use(accelerator.device)), stopping


def objective(
    unet, scheduler, series: BatchPlan, encode: Callable, config: TrainConfig, accelerator, dtype, draw=draw
) -> Callable[[int], torch.Tensor]:
    """loss_of(index): the loss of batch number `index` of the series, counted over all processes.

    Noise schedule, latents and time ids stay fp32; the UNet gets them in `dtype` and computes under autocast.
    """
    alphas, device = noise_schedule(scheduler, config.rescale_betas_zero_snr), accelerator.device
    names = ("prediction_type", "snr_gamma", "debiased_estimation", "loss_type", "huber_c", "huber_schedule")
    options = {name: getattr(config, name) for name in names}

    def loss_of(index: int) -> torch.Tensor:
        positions = range(index * config.train_batch_size, (index + 1) * config.train_batch_size)
        batch = examples_at(series, positions)
        posterior, noise, t = draw(
            batch[0].moments.shape[1:],
            len(alphas),
            config.seed,
            [r.position for r in batch],
            config.noise_offset,
        )
        mean, std = torch.stack([r.moments for r in batch]).unbind(1)
        latents = mean + std * posterior
        noisy = add_noise(latents, noise, t, alphas).to(device, dtype)
        with accelerator.autocast():
            prompts = Prompts(*(e.to(device) for e in encode([r.caption for r in batch])))
            sizes = torch.stack([r.time_ids for r in batch]).to(device)
            predicted = predict(unet, noisy, t.to(device), prompts, sizes)
        weights = (
            torch.tensor([r.weight for r in batch]) * len(batch) / len(positions)
        )  # the instance's mean plus the weighted mean of the class
        return diffusion_loss(
            predicted,
            *(x.to(device) for x in (latents, noise, t, alphas)),
            **options,
            weights=weights.to(device),
        )

    return loss_of


def average(parameters: list, loss: torch.Tensor, stopping: bool, accelerator) -> tuple[float, bool]:
    """Average the gradients and the loss over all processes, in one message: adapters are small, and the frozen base needs no wrapper.

    `stopping` becomes true for all where it is for one, so that all stop after the same step.
    """
    if accelerator.num_processes == 1:
        return loss.item(), stopping
    grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
    flat = accelerator.reduce(torch.cat([*grads, grads[0].new_tensor([loss, float(stopping)])]), "mean")
    for p, gradient in zip(parameters, flat[:-2].split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)
    return flat[-2].item(), flat[-1].item() > 0


def what_to_lower(config: TrainConfig) -> str:
    ways = [
        (not config.gradient_checkpointing, "add --gradient_checkpointing"),
        (config.mixed_precision == "no", "--mixed_precision bf16"),
        (config.train_batch_size > 1, "--train_batch_size 1 with --gradient_accumulation_steps"),
        (True, "lower --resolution or the rank"),
    ]
    return ", ".join(way for wanted, way in ways if wanted)
