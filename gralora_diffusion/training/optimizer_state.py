"""An optimizer's state as plain tensors and JSON, bit for bit."""

import math

import torch

from gralora_diffusion.training.optim import unwrapped


def optimizer_state(optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, facts for JSON) of any optimizer, as load_optimizer_state() takes them; copies on the CPU.

    tensors: {"number of the parameter, counted through all groups.name": value}.
    facts: every other value of the groups and states.
    """
    optimizer = unwrapped(optimizer)
    tensors, states = {}, {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                states.setdefault(str(number), {})[name] = value
    groups, sizes = [], []
    for group in optimizer.param_groups:
        groups.append({name: for_json(value) for name, value in group.items() if name != "params"})
        sizes.append(len(group["params"]))
    return tensors, dict(optimizer=type(optimizer).__name__, groups=groups, sizes=sizes, states=states)


def for_json(value):
    """A tuple as a list, an infinity as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def from_json(value, like):
    """for_json() the other way round, for a value of the type of `like`."""
    if isinstance(value, list | str) and like is not None:
        return type(like)(value)
    return value


def load_optimizer_state(optimizer, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Put the result of optimizer_state() into a fresh optimizer of the same groups.

    Raises ValueError for the state of another adapter or optimizer.
    """
    optimizer = unwrapped(optimizer)
    if facts["optimizer"] != type(optimizer).__name__:
        raise ValueError(f"the optimizer state belongs to another optimizer, {facts['optimizer']}")
    if facts["sizes"] != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError("the optimizer state belongs to another adapter")
    for group, saved in zip(optimizer.param_groups, facts["groups"], strict=True):
        for name, value in saved.items():
            group[name] = from_json(value, like=group.get(name))
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for number, values in facts["states"].items():
        parameter, _ = parameters[int(number)]
        optimizer.state[parameter].update(values)
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        parameter, group = parameters[int(number)]
        # torch.optim keeps the step count on the CPU unless it is fused or capturable.
        on_cpu = name == "step" and not (group.get("fused") or group.get("capturable"))
        optimizer.state[parameter][name] = tensor.to("cpu" if on_cpu else parameter.device, copy=True)
