"""What a run would do: from shapes alone, layers, parameters, memory, files, steps; from a few batches, time, memory and disk."""

import math
import statistics
import time
from collections.abc import Callable

import torch

from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.adapters.quantization import BYTES
from gralora_diffusion.adapters.registry import all_layers
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.sdxl.base import blank_inputs, hidden_states, predict
from gralora_diffusion.sdxl.load import COMPONENTS
from gralora_diffusion.training import export as delivery
from gralora_diffusion.training.checkpoint import candidates
from gralora_diffusion.training.memory import disk_used, memory_in_use, peak_memory
from gralora_diffusion.training.optim import bytes_per_parameter
from gralora_diffusion.training.setup import TrainingSetup, preview_due

SAVED_PER_SECOND = 2e8  # bytes of a checkpoint: written, synced, hashed
SMALL = 2 * 10**8  # parameters of a UNet that a CPU can try out


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
            inputs = blank_inputs(unet.config, n, resolution // 8, tokens)
            for module in unet.modules():
                if type(module).__name__ in ("BasicTransformerBlock", "ResnetBlock2D"):
                    module.register_forward_pre_hook(open_block)
                    module.register_forward_hook(close_block)
            precision = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
            with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                out = predict(unet, *inputs)
            activations = sum(kept.values())
            if config.gradient_checkpointing:
                kept.clear()
                unet.enable_gradient_checkpointing()
                with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                    out = predict(unet, *inputs)  # noqa: F841 - alive while it is counted
                activations = sum(kept.values()) + largest[0]
            trainable = sum(p.numel() for p in unet.parameters() if p.requires_grad)
            weights = sum(p.numel() * p.element_size() for p in unet.parameters() if not p.requires_grad)
            if config.base_model_precision:
                few = BYTES[config.base_model_precision]
                weights -= sum(
                    int(m.weight.numel() * (m.weight.element_size() - few))
                    for m in unet.modules()
                    if isinstance(m, torch.nn.Linear)
                )
    finally:
        torch.set_default_dtype(default)
    return dict(weights=weights, adapters=bytes_per_parameter(config) * trainable, activations=activations)


def forecast_run(job: TrainingSetup, loss_of, previews) -> dict[str, float]:
    """{"seconds", "memory in MB", "disk in MB"} of what is left of a run, measured on batches whose gradients are dropped."""
    config, steps, layers, device = (
        job.config,
        job.steps - job.start,
        all_layers(job.models),
        job.accelerator.device,
    )
    parameters = [p for layer in layers.values() for p in layer.adapter.parameters()]

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
    drawings = (
        (1 + sum(preview_due(step, job) for step in range(job.start + 1, job.steps))) if previews else 0
    )
    every = config.checkpointing_steps
    saves = job.steps // every - job.start // every + (job.steps % every > 0) if steps else 0
    checkpoint = (bytes_per_parameter(config) - 4) * size // 4  # all but the gradient
    limit = (
        math.inf
        if config.checkpoints_total_limit is None
        else config.checkpoints_total_limit - len(candidates(job.path))
    )
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
            model.enable_gradient_checkpointing() if hasattr(
                model, "enable_gradient_checkpointing"
            ) else model.gradient_checkpointing_enable()
    unet, texts = wanted["unet"], [wanted[name] for name in COMPONENTS[1:] if name in wanted]
    n = config.train_batch_size * (1 + config.with_prior_preservation)
    noisy, t, prompts, sizes = blank_inputs(unet.config, n, resolution // 8, tokens, device)
    words = torch.zeros(n, tokens, dtype=torch.long, device=device)

    def batch(_: int) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            embeds = hidden_states(texts, words) if texts else prompts.embeds
            out = predict(unet, noisy.to(dtype), t, prompts._replace(embeds=embeds), sizes)
        out.float().square().mean().backward()

    return config.gradient_accumulation_steps * batch_time(batch, 10**4, device)


def in_words(expected: dict[str, float]) -> str:
    """forecast_run()'s answer for people."""
    return f"about {clock(expected['seconds'])}, {expected['memory in MB'] / 1024:.1f} GiB of memory, {expected['disk in MB']:,.0f} MB on disk"


def clock(seconds: float) -> str:
    seconds = round(seconds)
    return (
        f"{seconds // 3600} h {seconds % 3600 // 60} min"
        if seconds >= 3600
        else f"{seconds // 60} min {seconds % 60} s"
    )


def what_was_used(job: TrainingSetup) -> tuple[float, float]:
    """(memory, disk), both in MB, to compare with forecast_run()."""
    return peak_memory(job.accelerator.device) / 1e6, disk_used(job.path) / 1e6
