"""What the files of an adapter record of its training, see formats/training_facts.py."""

import math
import os
import time
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.dataset import epoch_length
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.files import without_folders
from gralora_diffusion.formats.read import HEADER, NATIVE
from gralora_diffusion.formats.safetensors_files import opened, parsed
from gralora_diffusion.formats.training_facts import is_number, tag_frequency
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.sampling_settings import EMBEDDED
from gralora_diffusion.training.optim import SGD_MOMENTUM, learning_rates

OPTIMIZER_CLASSES = {
    "AdamW": "torch.optim.adamw.AdamW",
    "Prodigy": "prodigyopt.prodigy.Prodigy",
    "Adafactor": "gralora_diffusion.training.adafactor.Adafactor",
    "AdamWScheduleFree": "schedulefree.adamw_schedulefree.AdamWScheduleFree",
    "SGD": "torch.optim.sgd.SGD",
}
ADAMW_8BIT = "bitsandbytes.optim.adamw.AdamW8bit"


def base_name(config: TrainConfig) -> str:
    """The base as files name it: a hub id, the last component of a path, or the embedded base."""
    return without_folders(config.pretrained_model_name_or_path or EMBEDDED)


def training_record(
    config: TrainConfig,
    images: list[TrainingImage],
    class_images: list[TrainingImage],
    processes: int,
    steps: int,
    step: int,
    began: float,
) -> dict:
    """facts["training"] of the adapter after `step` of `steps` steps.

    config: with the base's defaults.  began: when the run was started, in seconds since 1970.
    """
    now = time.time()
    values = options_of(config, processes)
    values |= epochs_of(config, epoch_length(config, images), processes, steps, step)
    values |= dict(
        training_started_at=began,
        training_finished_at=now,
        num_train_images=sum(image.repeats for image in images) * config.repeats,
        num_validation_images=0,
        num_reg_images=len(class_images),
    )
    captions = [(folder_of(image), image.caption) for image in images + class_images]
    return dict(
        values=values,
        tag_frequency=tag_frequency(captions),
        dataset_dirs=folders_of(images, config.repeats),
        reg_dataset_dirs=folders_of(class_images, 1),
        resolution=config.resolution,
        timestep_range=[config.min_timestep, config.max_timestep],
        finished_at=now,
    )


def options_of(config: TrainConfig, processes: int) -> dict:
    """What sd-scripts records of the options, under its names without ss_; None is an option that is off."""
    rates = learning_rates(config, processes)
    vae = config.pretrained_vae_model_name_or_path
    total = config.train_batch_size * config.gradient_accumulation_steps * processes
    return dict(
        sd_model_name=base_name(config),
        **(dict(vae_name=without_folders(vae)) if vae else {}),
        learning_rate=config.learning_rate,
        unet_lr=rates["unet"],
        text_encoder_lr=text_encoder_rates(config, rates),
        lr_scheduler=config.lr_scheduler,
        lr_warmup_steps=config.lr_warmup_steps,
        optimizer=optimizer_text(config),
        max_grad_norm=config.max_grad_norm,
        batch_size_per_device=config.train_batch_size,
        total_batch_size=total,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing,
        mixed_precision=config.mixed_precision,
        full_fp16=False,
        fp8_base=False,
        lowram=False,
        seed=config.seed,
        network_dropout=config.adapter.dropout or None,
        loss_type=config.loss_type,
        huber_schedule=config.huber_schedule,
        huber_c=config.huber_c,
        min_snr_gamma=config.snr_gamma,
        debiased_estimation=config.debiased_estimation,
        noise_offset=config.noise_offset or None,
        multires_noise_iterations=config.multires_noise_iterations or None,
        multires_noise_discount=config.multires_noise_discount,
        prior_loss_weight=config.prior_loss_weight,
        resolution=f"({config.resolution}, {config.resolution})",
        enable_bucket=config.use_aspect_ratio_buckets,
        random_crop=not config.center_crop,
        flip_aug=config.random_flip,
        caption_dropout_rate=config.caption_dropout,
        shuffle_caption=config.shuffle_captions,
        keep_tokens=config.keep_tokens,
        cache_latents=config.cache_latents,
        clip_skip=config.clip_skip,
        max_token_length=config.max_token_length,
    )


def text_encoder_rates(config: TrainConfig, rates: dict[str, float]) -> float | str | None:
    """One rate for both text encoders, a list of two as text, or None where they are not trained."""
    if not config.train_text_encoder:
        return None
    both = [rates["text_encoder"], rates["text_encoder_2"]]
    return both[0] if both[0] == both[1] else str(both)


def optimizer_text(config: TrainConfig) -> str:
    """The optimizer's class with its arguments."""
    name = ADAMW_8BIT if config.use_8bit_adam else OPTIMIZER_CLASSES[config.optimizer]
    arguments = [f"weight_decay={config.adam_weight_decay}"]
    if config.optimizer == "SGD":
        arguments.append(f"momentum={SGD_MOMENTUM}")
    elif config.optimizer != "Adafactor":
        arguments.append(f"betas=({config.adam_beta1}, {config.adam_beta2})")
        arguments.append(f"eps={config.adam_epsilon}")
    return f"{name}({','.join(arguments)})"


def epochs_of(config: TrainConfig, length: int, processes: int, steps: int, step: int) -> dict:
    """How far the training is. length: images of an epoch; step: of `steps`."""
    batches = math.ceil(length / (config.train_batch_size * processes))
    steps_per_epoch = math.ceil(batches / config.gradient_accumulation_steps)
    return dict(
        num_batches_per_epoch=batches,
        num_epochs=math.ceil(steps / steps_per_epoch),
        max_train_steps=steps,
        steps=step,
        epoch=math.ceil(step / steps_per_epoch),
    )


def folder_of(image: TrainingImage) -> str:
    """The name of the folder or of the dataset that an image is in."""
    return os.path.basename(os.path.abspath(image.path.parent)) or "images"


def folders_of(images: list[TrainingImage], repeats: int) -> dict[str, dict[str, int]]:
    """{folder's name: how many images it has, and how often an epoch repeats them}

    repeats: of the run, beside those of the images.
    """
    found: dict[str, dict[str, int]] = {}
    for image in images:
        repeated = dict(n_repeats=image.repeats * repeats, img_count=0)
        folder = found.setdefault(folder_of(image), repeated)
        folder["img_count"] += 1
    return found


def began_at(checkpoint: Path) -> float | None:
    """When the run of this checkpoint was started; None for a checkpoint of an earlier version."""
    path = checkpoint / NATIVE
    try:
        with opened(path) as file:
            header = (file.metadata() or {}).get(HEADER, "{}")
        started = parsed(header, str(path))["training"]["values"]["training_started_at"]
    except (ConfigError, OSError, KeyError, TypeError):
        return None
    return started if is_number(started) else None
