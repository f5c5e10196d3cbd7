"""What a run would do: from shapes alone, layers, parameters, memory, files, steps; from a few batches, time, memory and disk."""

import json
import time
from pathlib import Path

import psutil
import torch

from . import allocation
from .allocation import all_layers
from .config import TrainConfig, to_dict
from .data import instance, instance_pictures, pass_length, picture_cache
from .formats import COMFYUI, DIFFUSERS, KOHYA, NATIVE, file_sizes
from .injection import inject, table
from .jobs import Job, inject_all, precision, steps_of
from .optimization import bytes_per_parameter
from .quantization import BYTES
from .runs import locate
from .sdxl import COMPONENTS, shapes


def plan(config: TrainConfig) -> str:
    """What train(config) would do, from shapes alone: layers, parameters, memory, files, steps.

    Writes nothing, but for what it learns of the pictures, which goes to the cache.
    """
    config = config.resolved()
    pictures, run = instance_pictures(config, picture_cache(config)), locate(config)
    components = shapes(config.pretrained_model_name_or_path, config.revision, config.cache_dir)
    unet, tokens = components["unet"], components["text_encoder"].config.max_position_embeddings
    layers = all_layers(inject_all(components, config))
    resolution = config.resolution or unet.config.sample_size * 8
    dtype = precision(config)[1]
    memory = forecast(unet.config, config, resolution, dtype, tokens)
    native, exported = file_sizes(layers)
    files = {NATIVE: native, DIFFUSERS: exported if dtype == torch.float32 else exported // 2, COMFYUI: exported // 2}
    files |= {KOHYA: exported // 2} if config.output_kohya_format else {}
    memory["adapters"] = bytes_per_parameter(config) * native // 4  # the file holds fp32
    if config.train_text_encoder:
        encoders = [p for name in COMPONENTS[1:] for p in components[name].parameters() if not p.requires_grad]
        memory["text encoders"] = sum(p.numel() for p in encoders) * torch.finfo(dtype).bits // 8
    steps, per_step = steps_of(config, pass_length(config, pictures), 1), config.train_batch_size * config.gradient_accumulation_steps
    return "\n".join(
        [
            json.dumps(to_dict(config), indent=2),
            table(layers),
            f"pictures: {len(pictures)} at {resolution} x {resolution} from {instance(config)[0]}",
            f"steps: {steps} of {per_step} picture(s) per process, {steps * per_step / pass_length(config, pictures):.1f} passes",
            f"memory of a training step, about: {sum(memory.values()) / 2**30:.2f} GiB = "
            + " + ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items()),
            *gradient_pass(config, layers, torch.finfo(dtype).bits // 8),
            "files: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in files.items()),
            f"run folder: {run} (not made: this is a dry run)",
        ]
    )


def gradient_pass(config: TrainConfig, layers: dict, itemsize: int) -> list[str]:
    """What the gradient pass of GoRA needs, beside the frozen base and the activations of a step; nothing without it."""
    if config.gora_init in (None, "zero") and not config.allocate:
        return []
    sizes = {path: dict(shape=tuple(layer.weight.shape), rank=layer.rank) for path, layer in layers.items()}
    bytes_of = allocation.forecast(sizes, itemsize)
    return [
        f"memory of the gradient pass: {bytes_of['storing'] / 2**30:.2f} GiB to keep all sums (less, in more passes, with --gora_memory); "
        f"{bytes_of['streaming'] / 2**30:.2f} GiB where --allocation gives the ranks and --gora_init is random"
    ]


def forecast(unet_config, config: TrainConfig, resolution: int, dtype, tokens: int = 77) -> dict[str, int]:
    """Bytes that a training step of the UNet needs, counted on fake tensors: the weights, the adapters with their gradients and
    AdamW's moments, and what the forward pass keeps for the backward pass (with checkpointing: the checkpoints and the largest block).
    """
    from diffusers import UNet2DConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept, largest, default = {}, [0], torch.get_default_dtype()

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def open_block(module, *_):
        module.kept_before = sum(kept.values())

    def close_block(module, *_):
        largest[0] = max(largest[0], sum(kept.values()) - module.kept_before)

    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            unet = UNet2DConditionModel.from_config(unet_config).train()
            inject(unet, config.adapter)
            own = {p.untyped_storage()._cdata for p in unet.parameters()}
            n, side, c = config.train_batch_size * (1 + config.with_prior_preservation), resolution // 8, unet.config.cross_attention_dim
            width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            inputs = (torch.empty(n, unet.config.in_channels, side, side), torch.zeros(n, dtype=torch.long), torch.empty(n, tokens, c))
            conditions = dict(text_embeds=torch.empty(n, width), time_ids=torch.empty(n, 6))
            for module in unet.modules():
                if type(module).__name__ in ("BasicTransformerBlock", "ResnetBlock2D"):
                    module.register_forward_pre_hook(open_block)
                    module.register_forward_hook(close_block)
            precision = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
            with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                out = unet(*inputs, added_cond_kwargs=conditions).sample
            activations = sum(kept.values())
            if config.gradient_checkpointing:
                kept.clear()
                unet.enable_gradient_checkpointing()
                with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                    out = unet(*inputs, added_cond_kwargs=conditions).sample  # noqa: F841 - alive while it is counted
                activations = sum(kept.values()) + largest[0]
            trainable = sum(p.numel() for p in unet.parameters() if p.requires_grad)
            weights = sum(p.numel() * p.element_size() for p in unet.parameters() if not p.requires_grad)
            if config.base_model_precision:
                few = BYTES[config.base_model_precision]
                weights -= sum(int(m.weight.numel() * (m.weight.element_size() - few)) for m in unet.modules() if isinstance(m, torch.nn.Linear))
    finally:
        torch.set_default_dtype(default)
    return dict(weights=weights, adapters=bytes_per_parameter(config) * trainable, activations=activations)


def forecast_run(job: Job, loss_of, previews) -> dict[str, float]:
    """{"seconds", "memory in MB", "disk in MB"} of what is left of a run, measured on three batches whose gradients are dropped."""
    config, steps, layers, times = job.config, job.steps - job.start, all_layers(job.models), []
    parameters = [p for layer in layers.values() for p in layer.adapter_parameters.values()]
    for batch in range(3):
        began = time.monotonic()
        job.accelerator.backward(loss_of(batch))
        times.append(time.monotonic() - began)
    for parameter in parameters:
        parameter.grad = None
    size = sum(p.numel() * p.element_size() for p in parameters)
    optimizer = (bytes_per_parameter(config) - 8) * size // 4  # its state is to come
    memory = max(peak_memory(job.accelerator.device), memory_in_use(job.accelerator.device) + optimizer)
    every = [n for n in (config.validation_steps,) if n]
    pictures = (1 + sum(steps // n for n in every)) if previews else 0
    saves = len({*range(job.start // config.checkpointing_steps, job.steps // config.checkpointing_steps), -1}) if steps else 0
    native, exported = file_sizes(layers)
    disk = disk_used(job.path) + min(saves, config.checkpoints_total_limit or saves) * 3 * size + native + exported
    seconds = steps * config.gradient_accumulation_steps * sum(times[1:]) / 2 + pictures * (previews.seconds if previews else 0)
    return {"seconds": seconds, "memory in MB": memory / 1e6, "disk in MB": disk / 1e6}


def in_words(expected: dict[str, float]) -> str:
    """forecast_run()'s answer for people."""
    seconds = round(expected["seconds"])
    time = f"{seconds // 3600} h {seconds % 3600 // 60} min" if seconds >= 3600 else f"{seconds // 60} min {seconds % 60} s"
    return f"about {time}, {expected['memory in MB'] / 1024:.1f} GiB of memory, {expected['disk in MB']:,.0f} MB on disk"


def what_was_used(job: Job) -> tuple[float, float]:
    """(memory, disk), both in MB, to compare with forecast_run()."""
    return peak_memory(job.accelerator.device) / 1e6, disk_used(job.path) / 1e6


def memory_in_use(device: torch.device) -> int:
    """Bytes of this process on the GPU, or in RAM."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process had on the GPU, or in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if hasattr(psutil.Process().memory_info(), "peak_wset"):  # Windows
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def disk_used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
