"""What a run works with: everything checked, the base loaded and adapted, the checkpoint read, and nothing written."""

import dataclasses
import hashlib
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized

from gralora_diffusion.adapters import allocation_file, rank_rules
from gralora_diffusion.adapters.inject import inject, unmatched_patterns
from gralora_diffusion.adapters.linear import DEFAULT
from gralora_diffusion.adapters.quantization import check_quantization, quantize
from gralora_diffusion.adapters.registry import adapted_layers, all_layers, handles
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.data.cache import weights_hash
from gralora_diffusion.data.class_images import class_images
from gralora_diffusion.data.dataset import image_cache, instance, instance_images, pass_length
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.options import ConfigError, one_of
from gralora_diffusion.sdxl.base import resolution_of
from gralora_diffusion.sdxl.fingerprint import fingerprint
from gralora_diffusion.sdxl.load import COMPONENTS, load_sdxl, shapes
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.hub import check_hub
from gralora_diffusion.training.optim import check_optimizer, learning_rates
from gralora_diffusion.training.run_folder import check_same, environment, locate, start_of
from gralora_diffusion.training.sharding import check_sharding
from gralora_diffusion.training.trackers import trackers_of

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLAT = (
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
)  # schedules that do not ask when the run ends
PLACES = ("", " on a blue background", " in the snow", " on the beach")


@dataclass
class TrainingSetup:
    """What a run works with, once everything is checked and nothing written yet."""

    config: TrainConfig
    path: Path
    accelerator: Accelerator
    pipeline: object
    models: dict  # {component: adapted model}
    images: list[TrainingImage]
    of_class: list[TrainingImage]  # for prior preservation
    dtype: torch.dtype
    facts: dict  # what must be the same when the run is resumed, and what should be
    start: int  # the step of the checkpoint to go on from, or 0
    steps: int
    state: dict  # what the checkpoint holds beside the adapter


def set_up(config: TrainConfig) -> TrainingSetup:
    """Check everything, load the base and adapt it, read the checkpoint; writes nothing but class images, and the cache."""
    images, path = instance_images(config, image_cache(config)), locate(config)
    mixed_precision, dtype = precision(config)
    if config.push_to_hub:
        check_hub(config, path)
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    if (path / config.logging_dir).is_file():
        raise ConfigError(f"--logging_dir {config.logging_dir} is a file: name a folder")
    if is_initialized() and AcceleratorState().mixed_precision != mixed_precision:
        raise ConfigError(
            f"this process has used --mixed_precision {AcceleratorState().mixed_precision} before, and accelerate keeps that until it ends: "
            f"train with {mixed_precision} in another process"
        )
    accelerator = Accelerator(
        mixed_precision=mixed_precision, log_with=trackers_of(config), project_dir=path / config.logging_dir
    )
    if mixed_precision == "fp16" and accelerator.scaler is None:
        raise ConfigError("--mixed_precision fp16 needs a GPU: use no or bf16 here")
    check_sharding(config, accelerator)
    check_quantization(config.base_model_precision)
    check_optimizer(
        config, accelerator.device, steps_of(config, pass_length(config, images), accelerator.num_processes)
    )
    base = dict(
        path=config.pretrained_model_name_or_path, vae=config.pretrained_vae_model_name_or_path, dtype=dtype
    )
    base |= dict(revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)
    if config.with_prior_preservation:  # images are drawn for it: first see that the adapter fits
        inject_all(shapes(config.pretrained_model_name_or_path, config.revision, config.cache_dir), config)
    of_class = class_images(config, images, base, accelerator, image_cache(config))
    pipeline = load_sdxl(**base)
    if config.base_model_precision:
        known = fingerprint(pipeline.unet)
        quantize(pipeline.unet, config.base_model_precision)
    models = inject_all(pipeline.components, config)
    if config.base_model_precision:
        handles(pipeline.unet)[DEFAULT].fingerprint = known
    chosen = (
        config.adapter.method == "gralora"
        and config.adapter.k is None
        and not (config.allocate or config.allocation)
    )
    if chosen and all(layer.adapter.k == 1 for layer in all_layers(models).values()):
        note(
            f"at rank {config.adapter.rank} the rule for k gives 1, which is a plain LoRA: blocks need --gralora_k 2, and a rank that 2 divides"
        )
    config = with_base_defaults(config, pipeline, images, mixed_precision, accelerator.num_processes)
    steps = steps_of(config, pass_length(config, images), accelerator.num_processes)
    facts = facts_of(pipeline, images + of_class, None if config.lr_scheduler in FLAT else steps, accelerator)
    start, state = resume(path, config, models, facts)
    if start > steps:
        raise ConfigError(
            f"{path} is at step {start} already, beyond the {steps} asked for: nothing is left to do"
        )
    return TrainingSetup(
        config, path, accelerator, pipeline, models, images, of_class, dtype, facts, start, steps, state
    )


def resume(path: Path, config: TrainConfig, models: dict, facts: dict) -> tuple[int, dict]:
    """(step, state) of the checkpoint to go on from, its adapter in the models; (0, {}) where there is none.

    Raises ConfigError, with what differs, when the run was begun with other options, images or another base.
    """
    if not (path / "config.json").exists():
        if config.resume_from_checkpoint:
            raise ConfigError(
                f"--resume_from_checkpoint {config.resume_from_checkpoint}: {path} holds no run"
            )
        return 0, {}
    check_same(path, config)
    checkpoint = start_of(path, config)
    if checkpoint is None:
        return 0, {}
    tensors, state = checkpoints.load(checkpoint)
    check_facts(checkpoint, state["facts"], facts)
    if config.allocate:
        allocation_file.inject_from(path / allocation_file.FILE, models, config)
    own = {
        f"{name}.{canonical(name, layer_path)}.{leaf}": parameter
        for name, model in models.items()
        for layer_path, layer in adapted_layers(model).items()
        for leaf, parameter in layer.adapter.named_parameters()
    }
    if missing := [name for name, p in own.items() if name not in tensors or tensors[name].shape != p.shape]:
        raise ConfigError(
            f"{checkpoint} does not fit this run's adapter: {missing[0]} is missing or of another shape"
        )
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])
    return int(checkpoint.name.rpartition("-")[2]), state


def facts_of(pipeline, images: list[TrainingImage], steps: int | None, accelerator) -> dict:
    """What a run depends on beside its config; steps: their number, where the learning rate depends on it."""
    content = hashlib.sha256()
    for image in images:
        content.update(f"{image.path.name}\0{image.caption}\0{image.digest}\0".encode())
    alphas = pipeline.scheduler.alphas_cumprod.float().numpy()
    must_match = dict(
        images=content.hexdigest(),
        base=fingerprint(pipeline.unet),
        processes=accelerator.num_processes,
        steps=steps,
        others=weights_hash(pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2),
        noise=hashlib.sha256(alphas.tobytes()).hexdigest(),
    )
    should_match = dict(device=str(accelerator.device.type), threads=torch.get_num_threads(), **environment())
    return dict(must_match=must_match, should_match=should_match)


CHANGED = {  # the facts of a run that must match when it is resumed, as a message names them
    "images": "other images or captions",
    "base": "another base",
    "processes": "another number of processes",
    "steps": "other steps, which --lr_scheduler depends on",
    "others": "another VAE or other text encoders",
    "noise": "another noise schedule",
}


def check_facts(checkpoint: Path, before: dict, now: dict) -> None:
    """Raises ConfigError where the run would learn something else, warns where its numbers may differ in their last digits."""
    if before.keys() != now.keys():
        raise ConfigError(
            f"{checkpoint} was written by another version of gralora_diffusion: resume it with that version, "
            "or choose another --output_dir"
        )
    was, is_now = before["must_match"], now["must_match"]
    if other := [what for name, what in CHANGED.items() if name in was and is_now[name] != was[name]]:
        raise ConfigError(
            f"{checkpoint} was made with {' and '.join(other)}: give the same to go on, or choose another --output_dir"
        )
    was, is_now = before["should_match"], now["should_match"]
    if other := [
        f"{name} {was[name]}, now {is_now.get(name)}" for name in was if is_now.get(name) != was[name]
    ]:
        warnings.warn(
            f"{checkpoint} was made with {', '.join(other)}: the run goes on, but not bit by bit as it would have",
            stacklevel=2,
        )


def precision(config: TrainConfig) -> tuple[str, torch.dtype]:
    """(name, dtype): --mixed_precision, or what accelerate was told."""
    name = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    one_of("mixed_precision (as accelerate is set up)", name, DTYPES)
    return name, DTYPES[name]


def with_base_defaults(
    config: TrainConfig, pipeline, images: list[TrainingImage], mixed_precision: str, processes: int
) -> TrainConfig:
    """The config with every value that a run takes from the base or the images: what config.json must say."""
    prompt, rates = instance(config)[1] or images[0].caption, learning_rates(config, processes)
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
    if config.allocation:
        allocation_file.inject_from(config.allocation, models, config)
        return models
    torch.manual_seed(config.seed)
    for name, model in models.items():
        try:
            inject(model, config.adapter)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    if idle := unmatched_patterns(all_layers(models), config.adapter):
        raise ConfigError(f"rank_pattern or k_pattern {idle[0]!r} matches none of the adapted layers")
    if config.allocate:
        rank_rules.check_range(all_layers(models), config)
    return models


def steps_of(config: TrainConfig, images: int, processes: int) -> int:
    per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
    return config.max_train_steps or math.ceil(config.num_train_epochs * images / per_step)


def positions_of(step: int, job: TrainingSetup) -> range:
    """Where in the series of images this step stands, over all its batches and processes."""
    per_step = (
        job.config.train_batch_size * job.config.gradient_accumulation_steps * job.accelerator.num_processes
    )
    return range((step - 1) * per_step, step * per_step)


def preview_due(step: int, job: TrainingSetup) -> bool:
    """Whether sample images are drawn after this step, the last one aside."""
    config = job.config
    per_epoch = math.ceil(pass_length(config, job.images) / len(positions_of(step, job)))
    every = [config.validation_steps, config.validation_epochs and config.validation_epochs * per_epoch]
    return step < job.steps and any(n and step % n == 0 for n in every)


def adapter_of(job: TrainingSetup) -> Adapter:
    seen = dict(instance_prompt=job.config.instance_prompt, validation_prompt=job.config.validation_prompt)
    adapter = Adapter.from_models(
        job.models, job.config.pretrained_model_name_or_path or "embedded tiny base", seen
    )
    adapter.facts["objective"] = {
        name: getattr(job.config, name) for name in ("prediction_type", "rescale_betas_zero_snr")
    }
    return adapter
