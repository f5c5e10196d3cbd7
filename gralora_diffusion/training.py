"""One training run: from a TrainConfig to a run folder with config.json, metrics.jsonl, adapter files and samples."""

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .config import ConfigError, TrainConfig, one_of, to_dict
from .data import EXAMPLE, EXAMPLE_PROMPT, Picture, choose, encode_pictures, find_pictures, open_picture
from .exchange import Adapter
from .formats import COMFYUI, DIFFUSERS, KOHYA, NATIVE, write_comfyui, write_diffusers, write_native
from .injection import adapter_parameters, adapters, inject, table, unmatched_patterns
from .loss import add_noise, diffusion_loss, draw, noise_schedule
from .optimization import EMA, check_optimizer, learning_rates, make_optimizer, make_schedule, parameter_groups, rate_in_use, settle
from .sampling import sample, sheet
from .sdxl import COMPONENTS, encode_prompts, load_sdxl, resolution_of

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PLACES = ("", " on a blue background", " in the snow", " on the beach")


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


def train(config: TrainConfig) -> Path:
    """Train, write the run folder, and return its path.  Raises ConfigError before anything is written, TrainingError later."""
    config = config.resolved()
    pictures, run = find_pictures(*instance(config)), run_folder(config)
    mixed_precision, dtype = precision(config)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    if mixed_precision == "fp16" and accelerator.scaler is None:
        raise ConfigError("--mixed_precision fp16 needs a GPU: use no or bf16 here")
    check_optimizer(config, accelerator.device)
    base = dict(path=config.pretrained_model_name_or_path, vae=config.pretrained_vae_model_name_or_path, dtype=dtype)
    base |= dict(revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)
    pipeline = load_sdxl(**base)
    models = inject_all(pipeline.components, config)
    config = in_use(config, pipeline, pictures, mixed_precision, accelerator.num_processes)
    accelerator.wait_for_everyone()  # all have found the run folder free
    main = accelerator.is_main_process
    if main:
        open_run(run, config, accelerator)
        print(f"{table(all_layers(models)).splitlines()[-1]} -> {run}", flush=True)

    pipeline.to(accelerator.device)
    before = draw_samples(run, 0, pipeline, config) if main else []
    records = encode_pictures(pictures, pipeline.vae, config, config.resolution)
    captions = [] if config.train_text_encoder else sorted({p.caption for p in pictures})
    with torch.no_grad():
        known = {caption: [e.cpu() for e in encode_prompts(pipeline, [caption])] for caption in captions}
    scheduler, pipeline.vae = pipeline.scheduler, None
    if not config.train_text_encoder:
        pipeline.text_encoder = pipeline.text_encoder_2 = None  # they leave memory: what they had to say is in `known`

    def encode(captions: list[str]) -> list[torch.Tensor]:
        if config.train_text_encoder:
            return encode_prompts(pipeline, captions)
        return [torch.cat(parts) for parts in zip(*(known[c] for c in captions), strict=True)]

    loss_of = objective(pipeline.unet, scheduler, records, encode, config, accelerator, dtype)
    steps = steps_of(config, len(records), accelerator.num_processes)
    run_steps(models, loss_of, steps, config, accelerator, run)

    accelerator.wait_for_everyone()
    if main:
        seen = dict(instance_prompt=config.instance_prompt, validation_prompt=config.validation_prompt)
        adapter = Adapter.from_models(models, config.pretrained_model_name_or_path or "embedded tiny base", seen)
        write_native(run / NATIVE, adapter)
        write_diffusers(run / DIFFUSERS, adapter, torch.float32 if dtype == torch.float32 else torch.float16)
        write_comfyui(run / COMFYUI, adapter)
        if config.output_kohya_format:
            write_comfyui(run / KOHYA, adapter, sgm=False)
        if before:
            trained = {name: model.eval() for name, model in models.items()}
            after = draw_samples(run, steps, load_sdxl(**base, **trained).to(accelerator.device), config)
            save_comparison(run, pictures, before, after, config)
    accelerator.end_training()
    return run


def objective(unet, scheduler, records, encode: Callable, config: TrainConfig, accelerator, dtype) -> Callable[[int], torch.Tensor]:
    """loss_of(index): the loss of batch number `index` of the series, counted over all processes.

    Noise schedule, latents and time ids stay fp32; the UNet gets them in `dtype` and computes under autocast.
    """
    alphas, device = noise_schedule(scheduler, config.rescale_betas_zero_snr), accelerator.device
    names = ("prediction_type", "snr_gamma", "debiased_estimation", "loss_type", "huber_c", "huber_schedule")
    options = {name: getattr(config, name) for name in names}

    def loss_of(index: int) -> torch.Tensor:
        positions = range(index * config.train_batch_size, (index + 1) * config.train_batch_size)
        batch = choose(records, positions, config.seed)
        posterior, noise, t = draw(batch[0].moments.shape[1:], len(alphas), config.seed, positions, config.noise_offset)
        mean, std = torch.stack([r.moments for r in batch]).unbind(1)
        latents = mean + std * posterior
        noisy = add_noise(latents, noise, t, alphas).to(device, dtype)
        with accelerator.autocast():
            embeds, pooled = (e.to(device) for e in encode([r.caption for r in batch]))
            conditions = dict(text_embeds=pooled, time_ids=torch.stack([r.time_ids for r in batch]).to(device))
            predicted = unet(noisy, t.to(device), embeds, added_cond_kwargs=conditions).sample
        return diffusion_loss(predicted, *(x.to(device) for x in (latents, noise, t, alphas)), **options)

    return loss_of


def run_steps(models: dict, loss_of: Callable, steps: int, config: TrainConfig, accelerator, run: Path) -> None:
    """The loop: loss, backward, clip, step; a line of metrics.jsonl for each.  Raises TrainingError at a number that is not finite."""
    optimizer = make_optimizer(parameter_groups(models, config, accelerator.num_processes), config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = make_schedule(optimizer, config, steps)
    optimizer = accelerator.prepare(optimizer)
    ema = EMA(all_parameters(models), config.ema_decay) if config.ema_decay else None
    for model in models.values():
        model.train()
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing() if hasattr(model, "enable_gradient_checkpointing") else model.gradient_checkpointing_enable()
    started, smooth, micros = time.monotonic(), None, config.gradient_accumulation_steps
    for step in (bar := tqdm(range(1, steps + 1), desc="training", unit="step", disable=not accelerator.is_local_main_process)):
        torch.manual_seed(config.seed * 1_000_003 + step * 1009 + accelerator.process_index)  # dropout
        total = torch.zeros(())
        for micro in range((step - 1) * micros, step * micros):
            loss = loss_of(micro * accelerator.num_processes + accelerator.process_index) / micros
            accelerator.backward(loss)
            total += loss.detach().cpu()
        total = average(parameters, total, accelerator)
        norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
        if not math.isfinite(total) or not (math.isfinite(norm) or accelerator.scaler):  # fp16's scaler skips a step with such gradients
            what = "loss" if not math.isfinite(total) else "gradient"
            raise TrainingError(f"the {what} of step {step} is not finite, and the step was not applied: lower --learning_rate")
        lr = rate_in_use(optimizer)
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            schedule.step()
            if ema:
                ema.update()
        optimizer.zero_grad(set_to_none=True)
        smooth = total if smooth is None else 0.95 * smooth + 0.05 * total
        bar.set_postfix(loss=f"{smooth:.4f}")
        if accelerator.is_main_process:
            line = dict(step=step, loss=total, lr=lr, grad_norm=norm if math.isfinite(norm) else None, seconds=round(time.monotonic() - started, 3))
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
    settle(optimizer, ema)


def average(parameters: list, loss: torch.Tensor, accelerator) -> float:
    """Average the gradients and the loss over all processes, in one message: adapters are small, and the frozen base needs no wrapper."""
    if accelerator.num_processes == 1:
        return loss.item()
    grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
    flat = accelerator.reduce(torch.cat([*grads, loss.to(grads[0]).view(1)]), "mean")
    for p, gradient in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)
    return flat[-1].item()


def instance(config: TrainConfig) -> tuple[Path, str | None]:
    """(folder, prompt) of the pictures to learn."""
    if config.instance_data_dir is None:
        return EXAMPLE, config.instance_prompt or EXAMPLE_PROMPT
    return Path(config.instance_data_dir), config.instance_prompt


def precision(config: TrainConfig) -> tuple[str, torch.dtype]:
    """(name, dtype): --mixed_precision, or what accelerate was told."""
    name = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    one_of("mixed_precision (as accelerate is set up)", name, DTYPES)
    return name, DTYPES[name]


def in_use(config: TrainConfig, pipeline, pictures: list[Picture], mixed_precision: str, processes: int) -> TrainConfig:
    """The config with every value that a run takes from the base or the pictures: what config.json must say."""
    prompt, rates = instance(config)[1] or pictures[0].caption, learning_rates(config, processes)
    return dataclasses.replace(
        config,
        mixed_precision=mixed_precision,
        resolution=config.resolution or resolution_of(pipeline),
        instance_prompt=prompt,
        validation_prompt=config.validation_prompt or "|".join(prompt + place for place in PLACES),
        text_encoder_lr=rates["text_encoder"] if config.train_text_encoder else None,
        text_encoder_2_lr=rates["text_encoder_2"] if config.train_text_encoder else None,
        prediction_type=config.prediction_type or pipeline.scheduler.config.prediction_type,
    )


def inject_all(components: dict, config: TrainConfig) -> dict:
    """Adapt the UNet, and both text encoders if they train: {component: model}.  Raises ConfigError when something does not fit."""
    models = {name: components[name] for name in (COMPONENTS if config.train_text_encoder else ("unet",))}
    torch.manual_seed(config.seed)
    for name, model in models.items():
        try:
            inject(model, config.adapter)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    if idle := unmatched_patterns(all_layers(models), config.adapter):
        raise ConfigError(f"rank_pattern or k_pattern {idle[0]!r} matches none of the adapted layers")
    return models


def all_layers(models: dict) -> dict:
    return {f"{name}.{path}": layer for name, model in models.items() for path, layer in adapters(model).items()}


def all_parameters(models: dict) -> dict:
    return {f"{name}.{path}": p for name, model in models.items() for path, p in adapter_parameters(model).items()}


def steps_of(config: TrainConfig, pictures: int, processes: int) -> int:
    per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
    return config.max_train_steps or math.ceil(config.num_train_epochs * pictures / per_step)


def run_folder(config: TrainConfig) -> Path:
    """The folder to write: output_dir, which must not hold a run yet, or a new runs/NAME."""
    try:
        if config.output_dir is not None:
            run = Path(config.output_dir)
            if (run / "config.json").exists() or (run.exists() and not run.is_dir()):
                raise ConfigError(f"{run} holds a run already, or is a file: choose another --output_dir")
        else:
            subject = "robot" if config.instance_data_dir is None else Path(config.instance_data_dir).resolve().name
            name = f"{subject}-{config.adapter.method}-r{config.adapter.rank}"
            run = next(p for n in range(1, 10**6) if not (p := Path("runs") / (name if n == 1 else f"{name}-{n}")).exists())
        nearest = next(p for p in (run, *run.absolute().parents) if p.exists())
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--output_dir cannot be used: {error}") from None
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{run} cannot be written: {nearest} is a file, or there is no permission")
    return run


def open_run(run: Path, config: TrainConfig, accelerator) -> None:
    """Make the folder with config.json and environment.json: what is needed to do the same again."""
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
    packages = ("gralora-diffusion", "torch", "diffusers", "transformers", "accelerate")
    facts = {name: version(name) for name in packages} | dict(python=platform.python_version(), machine=platform.machine())
    facts |= dict(device=str(accelerator.device), processes=accelerator.num_processes, threads=torch.get_num_threads())
    write_text(run / "environment.json", json.dumps(facts, indent=2) + "\n")


def draw_samples(run: Path, step: int, pipeline, config: TrainConfig) -> list:
    """The validation prompts' pictures, kept in samples/step-N; none with --skip_final_inference."""
    if config.skip_final_inference:
        return []
    images = sample(
        pipeline, prompts_of(config), config.seed, config.num_validation_images, config.num_inference_steps, config.guidance_scale,
        resolution=config.resolution,
    )  # fmt: skip
    folder = run / "samples" / f"step-{step:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:02d}.png")
    return images


def prompts_of(config: TrainConfig) -> list[str]:
    return [prompt.strip() for prompt in config.validation_prompt.split("|")]


def save_comparison(run: Path, pictures: list[Picture], before: list, after: list, config: TrainConfig) -> None:
    """before_after.png: some of the training pictures, then the same prompts and seeds without and with the adapter."""
    shown = min(len(before), 6)
    prompts = [p for p in prompts_of(config) for _ in range(config.num_validation_images)]
    subject = [crop_square(open_picture(p.path)) for p in pictures[:shown]]
    subject = [image.resize(before[0].size) for image in subject]
    rows = {"training pictures": subject, "base": before[:shown], "with the adapter": after[:shown]}
    sheet(rows, prompts[:shown]).save(run / "before_after.png")


def crop_square(image):
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def write_text(path: Path, text: str) -> None:
    """Complete or absent."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
