"""What one training step costs: its memory, counted on shapes alone, and its time, measured on zeros."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.adapters.layer_adapter import WorkingFactors
from gralora_diffusion.adapters.quantization import BYTES
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.devices import best_device, is_out_of_memory
from gralora_diffusion.sdxl.base import Prompts, blank_inputs, hidden_states, predict
from gralora_diffusion.sdxl.libraries import import_libraries
from gralora_diffusion.sdxl.load import COMPONENTS
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.offload import offloaded_blocks, offloaded_bytes
from gralora_diffusion.training.optim import bytes_per_parameter, parameter_groups
from gralora_diffusion.training.setup import make_trainable

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")  # what gradient checkpointing recomputes one by one
LARGE = 2 * 10**8  # a UNet with more parameters is not timed on a CPU


def step_memory(unet_config, config: TrainConfig, resolution: int, dtype, tokens: int = 77) -> dict[str, int]:
    """Bytes of a training step of the UNet, {"weights", "adapters", "activations"}, counted on fake tensors.

    adapters: with their gradients and the optimizer's state. activations: what the forward pass keeps for the
    backward pass; with gradient checkpointing, the checkpoints and the largest block.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            return count_memory(unet_config, config, resolution, dtype, tokens)
    finally:
        torch.set_default_dtype(default)


def count_memory(unet_config, config: TrainConfig, resolution: int, dtype, tokens: int) -> dict[str, int]:
    """step_memory() within FakeTensorMode."""
    import_libraries()
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(unet_config).train()
    inject(unet, config.adapter)
    inputs = blank_inputs(unet.config, images_per_batch(config), resolution // 8, tokens)
    counter = ActivationCounter([*unet.parameters(), *working_copies(unet, dtype)], unet)
    with counter:
        whole = predict(unet, *inputs)
    activations = counter.total()
    if config.gradient_checkpointing:
        counter.kept.clear()
        unet.enable_gradient_checkpointing()
        with counter:
            checkpointed = predict(unet, *inputs)
        activations = counter.total() + counter.largest_block
        del checkpointed  # it holds what is counted
    del whole
    trainable, weights = 0, 0
    for parameter in unet.parameters():
        if parameter.requires_grad:
            trainable += parameter.numel()
        else:
            weights += parameter.numel() * parameter.element_size()
    if config.base_model_precision:
        weights -= saved_by_quantization(unet, BYTES[config.base_model_precision])
    if config.offload_unet:
        sizes = [offloaded_bytes(block) for block in offloaded_blocks(unet)]
        weights -= sum(sizes) - 2 * max(sizes)  # the one in use, and the next
    adapters = bytes_per_parameter(config, dtype != torch.float32) * trainable
    return dict(weights=weights, adapters=adapters, activations=activations)


def working_copies(unet: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    """Copies of the adapters' factors in this dtype, with which the layers compute from now on."""
    copies = []
    for layer in adapted_layers(unet).values():
        for pair in layer.adapter.factors:
            own = [factor.detach().to(dtype).requires_grad_() for factor in pair]
            layer.adapter.working.append(WorkingFactors(*own))
            copies += own
    return copies


class ActivationCounter:
    """with ActivationCounter(parameters, unet) as counter: bytes that forward passes keep for the backward.

    Each storage counts once, that of a parameter not at all.
    """

    def __init__(self, parameters: list[torch.Tensor], unet: nn.Module):
        self.own = {p.untyped_storage()._cdata for p in parameters}
        self.kept: dict[int, int] = {}  # bytes by storage
        self.largest_block = 0  # bytes that the largest block keeps
        self.before: dict[nn.Module, int] = {}  # the total when a block started
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)
        for module in unet.modules():
            if type(module).__name__ in BLOCKS:
                module.register_forward_pre_hook(self.start_block)
                module.register_forward_hook(self.end_block)

    def __enter__(self) -> "ActivationCounter":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    def total(self) -> int:
        return sum(self.kept.values())

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.kept[storage._cdata] = storage.nbytes()
        return tensor

    def start_block(self, module: nn.Module, _inputs) -> None:
        self.before[module] = self.total()

    def end_block(self, module: nn.Module, _inputs, _output) -> None:
        self.largest_block = max(self.largest_block, self.total() - self.before[module])


def saved_by_quantization(unet: nn.Module, bytes_per_number: float) -> int:
    saved = 0
    for module in unet.modules():
        if isinstance(module, nn.Linear):
            saved += int(module.weight.numel() * (module.weight.element_size() - bytes_per_number))
    return saved


def measure(
    components: dict, config: TrainConfig, resolution: int, dtype: torch.dtype, tokens: int
) -> tuple[float | None, str | None]:
    """(seconds of a step, None), or (None, why they are not known)."""
    if config.base_model_precision or config.offload_unet:
        what = "quantize" if config.base_model_precision else "offload"
        return None, f"a dry run does not {what} the base; a run measures the time on its first batches"
    try:
        seconds = step_time(components, config, resolution, dtype, tokens)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        ways = "see the memory above, and --gradient_checkpointing or a --preset"
        return None, f"a step runs out of memory here: {ways}"
    if seconds is None:
        return None, "a base of this size takes long on a CPU; a run measures the time on its first batches"
    return seconds, None


def step_time(components: dict, config: TrainConfig, resolution: int, dtype, tokens: int) -> float | None:
    """Seconds of a training step on this machine, with zeros for weights and inputs.

    components: adapted models on the meta device, which are moved and filled. Returns None where the
    measurement would take long or much memory: a base of SDXL's size on a CPU.
    """
    device = best_device()
    unet = components["unet"]
    if device.type == "cpu" and sum(p.numel() for p in unet.parameters()) > LARGE:
        return None
    trained = components if config.train_text_encoder else {"unet": unet}
    for model in trained.values():
        fill_with_zeros(model, device, dtype)
    make_trainable(trained, config)
    factors = FlatFactors.of_models(parameter_groups(trained, config), trained.values(), dtype)
    text_encoders = [trained[name] for name in COMPONENTS[1:] if name in trained]
    n = images_per_batch(config)
    noisy, timesteps, prompts, sizes = blank_inputs(unet.config, n, resolution // 8, tokens, device)
    captions = torch.zeros(n, tokens, dtype=torch.long, device=device)

    def run_batch(_number: int) -> None:
        factors.refresh()
        embeds = hidden_states(text_encoders, captions) if text_encoders else prompts.embeds
        in_dtype = Prompts(embeds.to(dtype), prompts.pooled.to(dtype))
        if config.prior_by_prediction:
            half = slice(n // 2)
            with torch.no_grad():
                of_half = Prompts(in_dtype.embeds[half], in_dtype.pooled[half])
                predict(unet, noisy[half].to(dtype), timesteps[half], of_half, sizes[half])
        predicted = predict(unet, noisy.to(dtype), timesteps, in_dtype, sizes)
        predicted.float().square().mean().backward()
        factors.collect()

    return config.gradient_accumulation_steps * batch_time(run_batch, 10**4, device)


def fill_with_zeros(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model from the meta device, its frozen weights in `dtype`."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and not tensor.requires_grad:
            tensor.data = tensor.data.to(dtype)
    model.to_empty(device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()


def images_per_batch(config: TrainConfig) -> int:
    """With prior preservation, each image of a batch has a class image or a second prompt beside it."""
    return config.train_batch_size * (1 + (config.with_prior_preservation or config.prior_by_prediction))


def batch_time(
    run_batch: Callable[[int], None], batches: int, device: torch.device, alone: bool = True
) -> float:
    """Median seconds of run_batch(i) after one warm-up, over two to ten batches or 3 % of all `batches`.

    Where the process is not alone it is always two, since all processes must run equally many.
    """
    times = []
    for number in range(11):
        start = time.monotonic()
        run_batch(number)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.monotonic() - start)
        if number >= 2 and (not alone or sum(times) > 0.03 * batches * min(times)):
            break
    return median(times[1:])
