"""What a run would do and take, from shapes alone: layers, memory, files, steps, and a step's time."""

import math

import torch

from gralora_diffusion.adapters import allocation
from gralora_diffusion.adapters.registry import all_layers
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.class_folders import check_class_folders, check_class_images
from gralora_diffusion.data.dataset import (
    caption_counts,
    concept_lines,
    epoch_length,
    image_cache,
    instance,
    instance_images,
)
from gralora_diffusion.data.held_out import hold_out
from gralora_diffusion.data.masked_images import count_of_masks
from gralora_diffusion.data.sample_prompts import sample_prompts
from gralora_diffusion.devices import best_device, total_memory
from gralora_diffusion.formats.load import check_fits_base
from gralora_diffusion.formats.read import NATIVE, read_adapter
from gralora_diffusion.options import fault_of
from gralora_diffusion.sdxl.load import COMPONENTS, shapes, vae_shapes
from gralora_diffusion.training.accelerator import precision
from gralora_diffusion.training.best import is_exhausted
from gralora_diffusion.training.choose_run import locate, start_of, with_recorded_options
from gralora_diffusion.training.export import export_sizes
from gralora_diffusion.training.library_memory import library_memory
from gralora_diffusion.training.optim import bytes_per_parameter, checkpoint_bytes
from gralora_diffusion.training.phase_memory import numbers, phase_memory
from gralora_diffusion.training.preview_scores import encoder_names
from gralora_diffusion.training.run_folder import read_evaluations, read_status
from gralora_diffusion.training.run_plan import Plan, PlannedLayer
from gralora_diffusion.training.setup import checkpoint_interval, evaluations_due, inject_all, steps_of
from gralora_diffusion.training.step_cost import measure, step_memory


def plan(config: TrainConfig, timed: bool = False) -> Plan:
    """What train(config) would do; timed: and how long a step takes on this machine.

    Writes nothing but what the cache keeps about the images. Raises ConfigError as train() would.
    """
    libraries = library_memory(best_device())  # before there are models
    config = config.resolved()
    images, held_out = hold_out(config, instance_images(config, image_cache(config)), image_cache(config))
    scored = bool(encoder_names(config))
    run = locate(config, images)
    check_class_folders(config)
    check_class_images(config, images, image_cache(config))
    with fault_of("pretrained_model_name_or_path"):
        components = shapes(config.pretrained_model_name_or_path, config.revision, config.cache_dir)
        vae = numbers(vae_shapes(config.pretrained_model_name_or_path))
    unet_config = components["unet"].config
    tokens = components["text_encoder"].config.max_position_embeddings
    text_encoders = sum(numbers(components[name]) for name in COMPONENTS[1:])
    layers = all_layers(inject_all(components, config))
    if config.start_from:
        with fault_of("start_from"):
            adapter = read_adapter(config.start_from)
            check_fits_base(adapter, config.pretrained_model_name_or_path, config.start_from)
    resolution = config.resolution or unet_config.sample_size * 8
    dtype = precision(config)[1]
    files = export_sizes(layers, config, run)
    memory = step_memory(unet_config, config, resolution, dtype, tokens)
    numbers_trained = files[NATIVE] // 4  # the file holds fp32
    memory["adapters"] = bytes_per_parameter(config, dtype != torch.float32) * numbers_trained
    if config.train_text_encoder:
        memory["text encoders"] = dtype.itemsize * text_encoders
    total = total_memory(best_device())
    phases = phase_memory(memory, text_encoders, vae, config, resolution, dtype, total)
    steps = steps_of(config, epoch_length(config, images), 1)
    start = start_of(run, config, steps)
    history = [line for line in read_evaluations(run) if line["step"] <= start] if start else []
    checkpoints = math.ceil(steps / checkpoint_interval(config, steps))
    images_per_step = config.train_batch_size * config.gradient_accumulation_steps
    seconds, no_time = None, None
    if timed:
        seconds, no_time = measure(components, config, resolution, dtype, tokens)
    return Plan(
        config=config,
        layers=tuple(planned(path, layer) for path, layer in layers.items()),
        memory=memory,
        phases=phases,
        libraries=libraries,
        gradient_pass=gradient_pass(config, layers, dtype.itemsize),
        files=files,
        checkpoints=min(checkpoints, config.checkpoints_total_limit or checkpoints),
        checkpoint_size=checkpoint_bytes(config) * numbers_trained,
        steps=steps,
        images_per_step=images_per_step,
        epochs=steps * images_per_step / epoch_length(config, images),
        seconds_per_step=seconds,
        no_time=no_time,
        run=run,
        images=len(images),
        captions=caption_counts(config, images),
        masks=count_of_masks(images) if config.masked_loss else None,
        resolution=resolution,
        source=instance(config)[0],
        held_out=len(held_out),
        evaluations=evaluations_due(config, images, start, steps, 1) if held_out or scored else 0,
        concepts=concept_lines(config, images),
        prompts=sample_prompts(with_recorded_options(run, config), images),
        start=start,
        left=0 if is_exhausted(history, config) else steps - start,
        exported=read_status(run)["state"] == "done",
    )


def planned(path: str, layer) -> PlannedLayer:
    adapter = layer.adapter
    parameters = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    shape = layer.in_features, layer.out_features
    sizes = adapter.rank, adapter.k, adapter.hybrid_rank
    exported_rank = adapter.pair_rank_of(dict(adapter.named_parameters()))
    return PlannedLayer(path, *shape, *sizes, parameters, adapter.kernel, exported_rank)


def gradient_pass(config: TrainConfig, layers: dict, itemsize: int) -> dict[str, int] | None:
    """Bytes that the gradient pass needs beside a training step, or None where there is none."""
    if config.gora_init in (None, "zero") and not config.allocate:
        return None
    sizes = {}
    for path, layer in layers.items():
        sizes[path] = dict(shape=layer.matrix_shape, rank=layer.adapter.rank)
    return allocation.gradient_bytes(sizes, itemsize)
