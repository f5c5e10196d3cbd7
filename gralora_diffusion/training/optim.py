"""Optimizers, their learning rates, and their schedules."""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gralora_diffusion.adapters.inject import compiled, first_match
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.libraries import import_libraries
from gralora_diffusion.training.adafactor import Adafactor
from gralora_diffusion.training.flat_factors import FlatFactors

CONSTANT_SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
)  # whatever the number of steps
SGD_MOMENTUM = 0.9


def adamw(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    # accelerate does not notice the steps that a fused optimizer skips for fp16's gradient scaler.
    how = dict(foreach=True) if config.mixed_precision == "fp16" else dict(fused=True)
    return torch.optim.AdamW(groups, **adam_options(config), **how)


def adamw_8bit(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, **adam_options(config))


def prodigy(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    """arXiv 2306.06101"""
    from prodigyopt import Prodigy

    names = ("beta3", "decouple", "use_bias_correction", "safeguard_warmup")
    own = {name: getattr(config, f"prodigy_{name}") for name in names}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints
        return Prodigy(groups, **adam_options(config), **own)


def adafactor(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    return Adafactor(groups, lr=config.learning_rate, weight_decay=config.adam_weight_decay)


def sgd(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    options = dict(weight_decay=config.adam_weight_decay, momentum=SGD_MOMENTUM, foreach=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, **options)


def adamw_schedule_free(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    """arXiv 2405.15682"""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(groups, **adam_options(config), warmup_steps=config.lr_warmup_steps)
    optimizer.train()
    return optimizer


def adam_options(config: TrainConfig) -> dict:
    return dict(
        lr=config.learning_rate,
        weight_decay=config.adam_weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


@dataclass(frozen=True)
class OptimizerSpec:
    """One kind of optimizer."""

    make: Callable[[list[dict], TrainConfig], torch.optim.Optimizer]
    state_bytes: int  # of its state, per trainable number
    package: str | None = None  # that it needs, and the extra of gralora-diffusion that installs it
    extra: str | None = None
    own_warmup: bool = False  # it applies --lr_warmup_steps itself
    shapes: bool = False  # it needs the shapes of the parameters


OPTIMIZERS = {
    "AdamW": OptimizerSpec(adamw, 8),
    "Prodigy": OptimizerSpec(prodigy, 16, "prodigyopt", "prodigy"),
    "Adafactor": OptimizerSpec(adafactor, 0, shapes=True),  # less than 1
    "AdamWScheduleFree": OptimizerSpec(
        adamw_schedule_free, 8, "schedulefree", "schedulefree", own_warmup=True
    ),
    "SGD": OptimizerSpec(sgd, 4),
}
ADAMW_8BIT = OptimizerSpec(adamw_8bit, 2, "bitsandbytes", "8bit")


def spec_of(config: TrainConfig) -> OptimizerSpec:
    return ADAMW_8BIT if config.use_8bit_adam else OPTIMIZERS[config.optimizer]


def make_optimizer(factors: FlatFactors, config: TrainConfig) -> torch.optim.Optimizer:
    """--optimizer over these parameters, in training mode; check_optimizer() says whether it works."""
    spec = spec_of(config)
    return spec.make(factors.stacked_groups() if spec.shapes else factors.flat_groups(), config)


def bytes_per_parameter(config: TrainConfig, half: bool = False) -> int:
    """One trainable number with its gradient, the optimizer's state, and its moving average.

    half: and a copy of number and gradient in half precision.
    """
    average = 4 if config.ema_decay else 0
    return 8 + spec_of(config).state_bytes + average + (4 if half else 0)


def checkpoint_bytes(config: TrainConfig) -> int:
    """One trainable number in a checkpoint: without its gradient, and with that of the best step."""
    return bytes_per_parameter(config) - 4 + (4 if config.keep_best else 0)


def check_optimizer(config: TrainConfig, device: torch.device, steps: int) -> None:
    """Raises ConfigError where the optimizer does not run here, or the schedule does not fit the steps."""
    make_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate), config, steps)
    spec = spec_of(config)
    name, option = config.optimizer, "optimizer"
    if config.use_8bit_adam:
        name, option = "8-bit AdamW", "use_8bit_adam"
    if spec.package and importlib.util.find_spec(spec.package) is None:
        install = f"pip install 'gralora-diffusion[{spec.extra}]'"
        problem = f"{name} needs the package {spec.package}: {install}, or drop the option"
        raise ConfigError(problem, option=option)
    if config.use_8bit_adam:
        check_8bit(config, device)


def check_8bit(config: TrainConfig, device: torch.device) -> None:
    """One step on a parameter large enough for 8 bits: older versions of bitsandbytes need a GPU."""
    parameter = nn.Parameter(torch.zeros(64, 64, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        adamw_8bit([dict(params=[parameter])], config).step()
    except Exception as error:  # whatever a driver or a missing kernel raises
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        problem = f"8-bit AdamW does not run on {device} here ({why}): drop --use_8bit_adam"
        raise ConfigError(problem, option="use_8bit_adam") from None


def learning_rates(config: TrainConfig, processes: int = 1) -> dict[str, float]:
    """{component: learning rate of its adapters}.

    --scale_lr multiplies the UNet's by the images per step, and the others' where they follow it.
    """
    unet = config.learning_rate
    if config.scale_lr:
        unet *= config.gradient_accumulation_steps * config.train_batch_size * processes
    first = unet if config.text_encoder_lr is None else config.text_encoder_lr
    second = first if config.text_encoder_2_lr is None else config.text_encoder_2_lr
    return dict(unet=unet, text_encoder=first, text_encoder_2=second)


def check_lr_pattern(layers: dict, config: TrainConfig) -> None:
    """Raises ConfigError for a pattern of --lr_pattern that is none, or that is found in no layer's name.

    layers: {component.path: layer}.
    """
    for text in config.lr_pattern:
        try:
            pattern = compiled(text, "--lr_pattern")
        except ValueError as error:
            raise ConfigError(str(error), option="lr_pattern") from None
        if not any(pattern.search(path) for path in layers):
            problem = f"--lr_pattern {text!r} matches none of the adapted layers"
            raise ConfigError(problem, option="lr_pattern")


def by_factor(component: str, model: nn.Module, config: TrainConfig) -> dict[float, dict]:
    """{factor on the learning rate: {name: parameter}} of a model's adapters, by --lr_pattern."""
    found = {}
    for path, layer in adapted_layers(model).items():
        factor = float(first_match(config.lr_pattern, f"{component}.{path}", 1.0))
        members = found.setdefault(factor, {})
        for name, parameter in layer.adapter.named_parameters():
            if parameter.requires_grad:
                members[f"{path}.{name}"] = parameter
    return found


def parameter_groups(models: dict[str, nn.Module], config: TrainConfig, processes: int = 1) -> list[dict]:
    """One group for each of {component: model}, with its learning rate and weight decay.

    One for each factor of --lr_pattern; two of each with LoRA+ (arXiv 2402.12354): lr(B) = ratio * lr(A),
    for parameters whose names end in _B.
    """
    rates = learning_rates(config, processes)
    ratio = config.loraplus_lr_ratio
    groups = []
    for component, model in models.items():
        decay = config.adam_weight_decay
        if component != "unet" and config.adam_weight_decay_text_encoder is not None:
            decay = config.adam_weight_decay_text_encoder
        for factor, named in by_factor(component, model, config).items():
            rate = rates[component] * factor
            fast = [p for name, p in named.items() if name.endswith("_B")] if ratio != 1 else []
            rest = [p for name, p in named.items() if not (ratio != 1 and name.endswith("_B"))]
            groups.append(dict(params=rest, lr=rate, weight_decay=decay))
            if fast:
                groups.append(dict(params=fast, lr=rate * ratio, weight_decay=decay))
    return groups


def depends_on_length(config: TrainConfig) -> bool:
    """Whether the learning rate of a step depends on how many steps the run has."""
    return config.lr_scheduler not in CONSTANT_SCHEDULES


def make_schedule(optimizer, config: TrainConfig, steps: int):
    """diffusers' --lr_scheduler for a run of this many steps; its state_dict() is JSON already.

    Raises ConfigError where the two do not fit.
    """
    import_libraries()
    from diffusers.optimization import get_scheduler

    warmup = 0 if OPTIMIZERS[config.optimizer].own_warmup else config.lr_warmup_steps
    if warmup and warmup >= steps:
        problem = f"--lr_warmup_steps is {warmup}, and the run ends after {counted(steps, 'step')}: use fewer"
        raise ConfigError(problem, option="lr_warmup_steps")
    try:
        return get_scheduler(
            config.lr_scheduler,
            unwrapped(optimizer),
            config.lr_step_rules,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        )
    except ValueError as error:  # a polynomial that would rise
        problem = f"--lr_scheduler {config.lr_scheduler}: {error}"
        raise ConfigError(problem, option="lr_scheduler") from None


def current_rate(optimizer) -> float:
    """The learning rate that the next step applies to the first group.

    It includes Prodigy's estimate d and the warm-up of AdamWScheduleFree.
    """
    group = unwrapped(optimizer).param_groups[0]
    rate = group["lr"] * group.get("d", 1.0)
    if "scheduled_lr" in group:  # AdamWScheduleFree's
        return rate * min(1.0, (group["k"] + 1) / (group["warmup_steps"] or 1))
    return rate


def unwrapped(optimizer):
    """The optimizer itself, where accelerate has wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)
