"""What turns gradients into a new adapter: learning rates, optimizers, schedules, averages; and their state as plain tensors and JSON."""

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator

import torch
from torch import nn

from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError

PACKAGES = {
    "Prodigy": ("prodigyopt", "prodigy"),
    "AdamWScheduleFree": ("schedulefree", "schedulefree"),
    "8-bit AdamW": ("bitsandbytes", "8bit"),
}


def check_optimizer(config: TrainConfig, device: torch.device, steps: int) -> None:
    """Raises ConfigError where the optimizer's package is not there or does not run on this device, or the schedule does not fit the steps."""
    make_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate), config, steps)
    name = "8-bit AdamW" if config.use_8bit_adam else config.optimizer
    package, extra = PACKAGES.get(name, (None, None))
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{name} needs the package {package}: pip install 'gralora-diffusion[{extra}]', or drop the option"
        )
    if (
        config.use_8bit_adam
    ):  # older versions need a GPU: one step on a parameter large enough for 8 bits tells
        trial = nn.Parameter(torch.zeros(64, 64, device=device))
        trial.grad = torch.ones_like(trial)
        try:
            make_optimizer([dict(params=[trial])], config).step()
        except Exception as error:  # whatever a driver or a missing kernel raises
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{name} does not run on {device} here, drop --use_8bit_adam: {why}") from None


def learning_rates(config: TrainConfig, processes: int = 1) -> dict[str, float]:
    """{component: learning rate of its adapters}; --scale_lr multiplies the UNet's by the images per step, and the others where they follow it."""
    unet = config.learning_rate
    if config.scale_lr:
        unet *= config.gradient_accumulation_steps * config.train_batch_size * processes
    first = unet if config.text_encoder_lr is None else config.text_encoder_lr
    second = first if config.text_encoder_2_lr is None else config.text_encoder_2_lr
    return dict(unet=unet, text_encoder=first, text_encoder_2=second)


def parameter_groups(models: dict[str, nn.Module], config: TrainConfig, processes: int = 1) -> list[dict]:
    """One group for each of {component: model}, with its learning rate and weight decay; two where LoRA+ gives B another rate than A.

    LoRA+ (arXiv 2402.12354): lr(B) = ratio * lr(A), for lora_B and gralora_B.
    """
    groups, rates = [], learning_rates(config, processes)
    for component, model in models.items():
        decay = config.adam_weight_decay if component == "unet" else config.adam_weight_decay_text_encoder
        decay = config.adam_weight_decay if decay is None else decay
        named = adapter_parameters(model)
        for letter, ratio in (
            (("A", 1), ("B", config.loraplus_lr_ratio)) if config.loraplus_lr_ratio != 1 else (("", 1),)
        ):
            params = [p for name, p in named.items() if name.endswith(letter)]
            groups.append(dict(params=params, lr=rates[component] * ratio, weight_decay=decay))
    return groups


def make_optimizer(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    """--optimizer over these parameter groups, in training mode.  check_optimizer() tells beforehand whether it can be made."""
    betas, decay = (config.adam_beta1, config.adam_beta2), config.adam_weight_decay
    common = dict(lr=config.learning_rate, weight_decay=decay)
    adam = common | dict(betas=betas, eps=config.adam_epsilon)
    if config.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **adam)
    if config.optimizer == "AdamW":
        device = groups[0]["params"][0].device
        fused = (
            device.type in ("cpu", "cuda", "mps", "xpu") and config.mixed_precision != "fp16"
        )  # fused, it hides the steps that fp16's scaler skips
        return torch.optim.AdamW(groups, **adam, fused=fused)
    if (
        config.optimizer == "Adafactor"
    ):  # arXiv 1804.04235, with the rates that are asked for in place of its own
        from transformers.optimization import Adafactor

        return Adafactor(groups, **common, relative_step=False, scale_parameter=False)
    if config.optimizer == "AdamWScheduleFree":  # arXiv 2405.15682
        from schedulefree import AdamWScheduleFree

        optimizer = AdamWScheduleFree(groups, **adam, warmup_steps=config.lr_warmup_steps)
        optimizer.train()
        return optimizer
    from prodigyopt import Prodigy  # arXiv 2306.06101

    names = ("beta3", "decouple", "use_bias_correction", "safeguard_warmup")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints
        return Prodigy(groups, **adam, **{name: getattr(config, f"prodigy_{name}") for name in names})


def bytes_per_parameter(config: TrainConfig) -> int:
    """What one trainable number takes in training: itself, its gradient, the optimizer's state, and its moving average."""
    state = {
        "AdamW": 2 if config.use_8bit_adam else 8,
        "Prodigy": 14,
        "Adafactor": 0,
        "AdamWScheduleFree": 8,
    }[config.optimizer]
    return (
        8 + state + (4 if config.ema_decay else 0)
    )  # Prodigy's fourth tensor is empty for every B, which begins as zero


def make_schedule(optimizer, config: TrainConfig, steps: int):
    """diffusers' --lr_scheduler for a run of this many steps; its state_dict() is JSON already.  Raises ConfigError where the two do not fit."""
    from diffusers.optimization import get_scheduler

    warmup = 0 if config.optimizer == "AdamWScheduleFree" else config.lr_warmup_steps
    if warmup and warmup >= steps:
        raise ConfigError(f"--lr_warmup_steps is {warmup}, and the run ends after {steps} steps: take fewer")
    counts = dict(num_warmup_steps=warmup, num_training_steps=steps, num_cycles=config.lr_num_cycles)
    try:
        return get_scheduler(
            config.lr_scheduler, bare(optimizer), config.lr_step_rules, power=config.lr_power, **counts
        )
    except ValueError as error:  # a polynomial that would rise
        raise ConfigError(f"--lr_scheduler {config.lr_scheduler}: {error}") from None


def rate_in_use(optimizer) -> float:
    """The learning rate of the first group as the next step takes it: Prodigy's estimate and the schedule-free warm-up included."""
    group = bare(optimizer).param_groups[0]
    warmup = group.get("warmup_steps") or 1
    return (
        group["lr"]
        * group.get("d", 1.0)
        * (min(1.0, (group["k"] + 1) / warmup) if "scheduled_lr" in group else 1.0)
    )


class EMA:
    """An exponential moving average of parameters: average = d average + (1 - d) parameter, with d = min(decay, (1 + n) / (10 + n)).

    n counts the updates before this one: the first steps, far from where training ends, are soon forgotten.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step that was applied."""
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - d
        )
        self.updates += 1

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """(tensors, JSON-able facts), copies on the CPU."""
        return {name: t.to("cpu", copy=True) for name, t in self.average.items()}, dict(updates=self.updates)

    def load(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        """Raises ValueError when they are of another adapter."""
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in self.average.items()}:
            raise ValueError("the moving average is of another adapter")
        for name, tensor in tensors.items():
            self.average[name].copy_(tensor)
        self.updates = facts["updates"]


@torch.no_grad()
def settle(optimizer, ema: EMA | None = None) -> None:
    """Leave in the parameters what is sampled and exported: the moving average, or the schedule-free one.  Training cannot go on."""
    if hasattr(bare(optimizer), "eval"):
        bare(optimizer).eval()
    if ema is not None:
        for name, p in ema.parameters.items():
            p.copy_(ema.average[name])


@contextlib.contextmanager
def settled(optimizer, ema: EMA | None = None) -> Iterator[None]:
    """Within it the parameters are as settle() leaves them; afterwards they are, bit for bit, what they were, and training goes on."""
    averages = ema is not None or hasattr(bare(optimizer), "eval")
    parameters = [p for group in optimizer.param_groups for p in group["params"]] if averages else []
    held = [p.detach().clone() for p in parameters]
    settle(optimizer, ema)
    try:
        yield
    finally:
        if hasattr(bare(optimizer), "train"):
            bare(optimizer).train()
        with torch.no_grad():
            for p, value in zip(parameters, held, strict=True):
                p.copy_(value)


def bare(optimizer):
    """The optimizer itself, where accelerate has wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)


def optimizer_state(optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, JSON-able facts) that load_optimizer_state() takes: every optimizer's state, bit for bit; copies on the CPU.

    tensors: {"number of the parameter, counted through all groups.name": value}; facts: the groups' numbers and the states'.
    """
    optimizer = bare(optimizer)
    tensors, states = {}, {}
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for name, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{i}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                states.setdefault(str(i), {})[name] = value
    groups = [
        {name: plain(v) for name, v in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    return tensors, dict(optimizer=type(optimizer).__name__, groups=groups, sizes=sizes, states=states)


def plain(value):
    """JSON's own types: a tuple becomes a list, an infinity its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def load_optimizer_state(optimizer, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Put optimizer_state()'s answer into a fresh optimizer of the same groups.  Raises ValueError when it is of another adapter or optimizer."""
    optimizer = bare(optimizer)
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    if facts["optimizer"] != type(optimizer).__name__:
        raise ValueError(f"the optimizer's state is of another optimizer, {facts['optimizer']}")
    if facts["sizes"] != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError("the optimizer's state is of another adapter")
    for group, saved in zip(optimizer.param_groups, facts["groups"], strict=True):
        for name, value in saved.items():  # a list that was a tuple, a string that was an infinity
            group[name] = (
                type(group[name])(value)
                if isinstance(value, list | str) and group.get(name) is not None
                else value
            )
    optimizer.state.clear()
    for number, values in facts["states"].items():
        optimizer.state[parameters[int(number)][0]].update(values)
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        p, group = parameters[int(number)]
        on_cpu = name == "step" and not (
            group.get("fused") or group.get("capturable")
        )  # as torch.optim keeps it
        optimizer.state[p][name] = tensor.to("cpu" if on_cpu else p.device, copy=True)
