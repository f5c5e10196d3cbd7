"""What a run would do: from shapes alone, layers, parameters, memory, files, steps; from a few batches, time, memory and disk."""

import contextlib
import ctypes
import functools
import gc
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from . import allocation, delivery
from .allocation import all_layers
from .checkpoints import candidates
from .config import TrainConfig, to_dict
from .data import instance, instance_pictures, pass_length, picture_cache
from .formats import NATIVE
from .injection import inject, table
from .jobs import Job, inject_all, precision, preview_due, steps_of
from .optimization import bytes_per_parameter
from .quantization import BYTES
from .runs import locate
from .sdxl import COMPONENTS, shapes

SAVED_PER_SECOND = 2e8  # bytes of a checkpoint: written, synced, hashed
SMALL = 2 * 10**8  # parameters of a UNet that a CPU can try out


def plan(config: TrainConfig, timed: bool = False) -> str:
    """What train(config) would do, from shapes alone: layers, parameters, memory, files, steps; timed: and how long a step takes here.

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
    files = delivery.sizes(layers, config)
    memory["adapters"] = bytes_per_parameter(config) * files[NATIVE] // 4  # the file holds fp32
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
            *([time_in_words(components, config, resolution, dtype, tokens, steps)] if timed else []),
            f"run folder: {run} (not made: this is a dry run)",
        ]
    )


def time_in_words(components: dict, config: TrainConfig, resolution: int, dtype, tokens: int, steps: int) -> str:
    """What step_time() finds, for people."""
    if config.base_model_precision:
        return "time: not tried out with a quantised base; a run measures it on its first batches"
    try:
        step = step_time(components, config, resolution, dtype, tokens)
    except torch.OutOfMemoryError:
        return "time: not tried out, since a step runs out of memory here: see the memory above, and --gradient_checkpointing or a --preset"
    if step is None:
        return "time: not tried out, since a base of this size takes long on a CPU; a run measures it on its first batches"
    return f"time: about {step:.3g} s a step here, {clock(step * steps)} for {steps}; sample pictures and the first encoding come on top"


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
            n = config.train_batch_size * (1 + config.with_prior_preservation)
            inputs, conditions = inputs_of(unet.config, n, resolution // 8, tokens)
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


def inputs_of(unet_config, n: int, side: int, tokens: int, device=None) -> tuple[tuple, dict]:
    """Zeros in the shapes that the UNet takes for n pictures: ((sample, timesteps, prompt_embeds), added_cond_kwargs)."""
    width = unet_config.projection_class_embeddings_input_dim - 6 * unet_config.addition_time_embed_dim
    zeros = functools.partial(torch.zeros, device=device)
    inputs = zeros(n, unet_config.in_channels, side, side), zeros(n, dtype=torch.long), zeros(n, tokens, unet_config.cross_attention_dim)
    return inputs, dict(text_embeds=zeros(n, width), time_ids=zeros(n, 6))


def forecast_run(job: Job, loss_of, previews) -> dict[str, float]:
    """{"seconds", "memory in MB", "disk in MB"} of what is left of a run, measured on batches whose gradients are dropped."""
    config, steps, layers, device = job.config, job.steps - job.start, all_layers(job.models), job.accelerator.device
    parameters = [p for layer in layers.values() for p in layer.adapter_parameters.values()]

    def batch(number: int) -> None:
        job.accelerator.backward(loss_of(number))
        job.accelerator.clip_grad_norm_(parameters, math.inf)

    batches, alone = steps * config.gradient_accumulation_steps, job.accelerator.num_processes == 1
    seconds = batches * batch_time(batch, batches, device, alone)
    for parameter in parameters:
        parameter.grad = None
    size = sum(p.numel() * p.element_size() for p in parameters)
    optimizer = (bytes_per_parameter(config) - 8) * size // 4  # its state is to come
    memory = max(peak_memory(device), memory_in_use(device) + optimizer)
    drawings = (1 + sum(preview_due(step, job) for step in range(job.start + 1, job.steps))) if previews else 0
    every = config.checkpointing_steps
    saves = job.steps // every - job.start // every + (job.steps % every > 0) if steps else 0
    checkpoint = (bytes_per_parameter(config) - 4) * size // 4  # all but the gradient
    limit = math.inf if config.checkpoints_total_limit is None else config.checkpoints_total_limit - len(candidates(job.path))
    new = sum(size for name, size in delivery.sizes(layers, config).items() if not (job.path / name).exists())
    disk = disk_used(job.path) + (min(saves, limit) * checkpoint if saves else 0) + new
    if previews:
        seconds += drawings * previews.seconds
        disk += drawings * disk_used(previews.of_step(0))
    seconds += saves * checkpoint / SAVED_PER_SECOND
    return {"seconds": seconds, "memory in MB": memory / 1e6, "disk in MB": disk / 1e6}


def batch_time(batch: Callable[[int], None], batches: int, device: torch.device, alone: bool = True) -> float:
    """Seconds of batch(i), after one to warm up: the median of two and more, up to ten or three hundredths of all that are planned.

    Of two where the process is not alone, since all have to take equally many.
    """
    times = []
    for number in range(11):
        began = time.monotonic()
        batch(number)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.monotonic() - began)
        if number >= 2 and (not alone or sum(times) > 0.03 * batches * min(times)):
            break
    return statistics.median(times[1:])


def step_time(components: dict, config: TrainConfig, resolution: int, dtype, tokens: int) -> float | None:
    """Seconds of a training step as a dry run can measure them: adapted models of the plan's shapes, which are on the meta device, with zeros
    for weights and inputs.  None where that would take long or much memory: a base of SDXL's size on a CPU.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    wanted = components if config.train_text_encoder else {"unet": components["unet"]}
    if device.type == "cpu" and sum(p.numel() for p in components["unet"].parameters()) > SMALL:
        return None
    for model in wanted.values():
        for tensor in (*model.parameters(), *model.buffers()):
            frozen = tensor.is_floating_point() and not tensor.requires_grad
            tensor.data = tensor.data.to(dtype) if frozen else tensor.data
        model.to_empty(device=device).train()
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing() if hasattr(model, "enable_gradient_checkpointing") else model.gradient_checkpointing_enable()
    unet, texts = wanted["unet"], [wanted[name] for name in COMPONENTS[1:] if name in wanted]
    n = config.train_batch_size * (1 + config.with_prior_preservation)
    (sample, t, embeds), conditions = inputs_of(unet.config, n, resolution // 8, tokens, device)
    words = torch.zeros(n, tokens, dtype=torch.long, device=device)

    def batch(_: int) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            states = [text(words, output_hidden_states=True).hidden_states[-2] for text in texts]
            out = unet(sample.to(dtype), t, torch.cat(states, -1) if states else embeds, added_cond_kwargs=conditions).sample
        out.float().square().mean().backward()

    return config.gradient_accumulation_steps * batch_time(batch, 10**4, device)


def in_words(expected: dict[str, float]) -> str:
    """forecast_run()'s answer for people."""
    return f"about {clock(expected['seconds'])}, {expected['memory in MB'] / 1024:.1f} GiB of memory, {expected['disk in MB']:,.0f} MB on disk"


def clock(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds // 3600} h {seconds % 3600 // 60} min" if seconds >= 3600 else f"{seconds // 60} min {seconds % 60} s"


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
    with contextlib.suppress(OSError):  # Linux, where getrusage() counts what the parent had when it started this process
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(found[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: torch.device) -> None:
    """Let peak_memory() count from what is in use now; on systems where the peak cannot be reset it stays the process's."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc: give back what earlier work has freed
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux
        Path("/proc/self/clear_refs").write_text("5")


def disk_used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has renamed it since
            total += path.stat().st_size if path.is_file() else 0
    return total
