"""What a run would do, from shapes alone: layers, parameters, memory, files, steps."""

import json

import torch

from gralora_diffusion.adapters import allocation
from gralora_diffusion.adapters.registry import all_layers, layer_table
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.dataset import image_cache, instance, instance_images, pass_length
from gralora_diffusion.formats.read import NATIVE
from gralora_diffusion.options import to_dict
from gralora_diffusion.sdxl.load import COMPONENTS, shapes
from gralora_diffusion.training import export as delivery
from gralora_diffusion.training.forecast import clock, forecast, step_time
from gralora_diffusion.training.optim import bytes_per_parameter
from gralora_diffusion.training.run_folder import locate
from gralora_diffusion.training.setup import inject_all, precision, steps_of


def plan(config: TrainConfig, timed: bool = False) -> str:
    """What train(config) would do, from shapes alone: layers, parameters, memory, files, steps; timed: and how long a step takes here.

    Writes nothing, but for what it learns of the images, which goes to the cache.
    """
    config = config.resolved()
    images, run = instance_images(config, image_cache(config)), locate(config)
    components = shapes(config.pretrained_model_name_or_path, config.revision, config.cache_dir)
    unet, tokens = components["unet"], components["text_encoder"].config.max_position_embeddings
    layers = all_layers(inject_all(components, config))
    resolution = config.resolution or unet.config.sample_size * 8
    dtype = precision(config)[1]
    memory = forecast(unet.config, config, resolution, dtype, tokens)
    files = delivery.sizes(layers, config)
    memory["adapters"] = bytes_per_parameter(config) * files[NATIVE] // 4  # the file holds fp32
    if config.train_text_encoder:
        encoders = [
            p for name in COMPONENTS[1:] for p in components[name].parameters() if not p.requires_grad
        ]
        memory["text encoders"] = sum(p.numel() for p in encoders) * torch.finfo(dtype).bits // 8
    steps, per_step = (
        steps_of(config, pass_length(config, images), 1),
        config.train_batch_size * config.gradient_accumulation_steps,
    )
    return "\n".join(
        [
            json.dumps(to_dict(config), indent=2),
            layer_table(layers),
            f"images: {len(images)} at {resolution} x {resolution} from {instance(config)[0]}",
            f"steps: {steps} of {per_step} image(s) per process, {steps * per_step / pass_length(config, images):.1f} passes",
            f"memory of a training step, about: {sum(memory.values()) / 2**30:.2f} GiB = "
            + " + ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items()),
            *gradient_pass(config, layers, torch.finfo(dtype).bits // 8),
            "files: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in files.items()),
            *([time_in_words(components, config, resolution, dtype, tokens, steps)] if timed else []),
            f"run folder: {run} (not made: this is a dry run)",
        ]
    )


def time_in_words(
    components: dict, config: TrainConfig, resolution: int, dtype, tokens: int, steps: int
) -> str:
    """What step_time() finds, for people."""
    if config.base_model_precision:
        return "time: not tried out with a quantised base; a run measures it on its first batches"
    try:
        step = step_time(components, config, resolution, dtype, tokens)
    except torch.OutOfMemoryError:
        return "time: not tried out, since a step runs out of memory here: see the memory above, and --gradient_checkpointing or a --preset"
    if step is None:
        return "time: not tried out, since a base of this size takes long on a CPU; a run measures it on its first batches"
    return f"time: about {step:.3g} s a step here, {clock(step * steps)} for {steps}; sample images and the first encoding come on top"


def gradient_pass(config: TrainConfig, layers: dict, itemsize: int) -> list[str]:
    """What the gradient pass of GoRA needs, beside the frozen base and the activations of a step; nothing without it."""
    if config.gora_init in (None, "zero") and not config.allocate:
        return []
    sizes = {
        path: dict(shape=tuple(layer.weight.shape), rank=layer.adapter.rank) for path, layer in layers.items()
    }
    bytes_of = allocation.gradient_bytes(sizes, itemsize)
    return [
        f"memory of the gradient pass: {bytes_of['storing'] / 2**30:.2f} GiB to keep all sums (less, in more passes, with --gora_memory); "
        f"{bytes_of['streaming'] / 2**30:.2f} GiB where --allocation gives the ranks and --gora_init is random"
    ]
