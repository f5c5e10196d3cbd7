"""The training loop that all stages of the embedded base share; a stopped stage resumes from its state."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

WARMUP_STEPS = 100
LOG_EVERY = 100
SAVE_EVERY = 1000


def fit(
    stage: str,
    folder: Path,
    modules: dict[str, nn.Module],
    loss_of: Callable[[int, np.random.Generator], torch.Tensor],
    steps: int,
    lr: float,
    flat: float = 0.0,
    ema: float = 0.0,
) -> None:
    """Train `modules` with AdamW and gradients averaged over all processes.

    loss_of(step, rng): the loss, a scalar; rng depends on stage, step and process alone.
    flat: share of the steps at a constant learning rate; a cosine to zero follows.
    ema: decay of the average of the weights, which the modules hold in the end; 0: no average.
    Weights, moments, average and step are saved in folder/STAGE.pt.
    """
    rank = dist.get_rank()
    parameters = []
    for module in modules.values():
        parameters += [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2, betas=(0.9, 0.99))
    mean = [p.detach().clone() for p in parameters] if ema else None
    path = folder / f"{stage}.pt"
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        optimizer.load_state_dict(state["optimizer"])
        mean = state["mean"]
        start = state["step"]

    began = time.time()
    for step in range(start, steps):
        rate = learning_rate(step, steps, lr, flat)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(step, np.random.default_rng((stage_key(stage), step, rank)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if ema:
            decay = min(ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(mean, [p.detach() for p in parameters], 1 - decay)
        last = step == steps - 1
        if rank == 0 and (step % LOG_EVERY == 0 or last):
            seconds = (time.time() - began) / (step - start + 1)
            log(stage, step, steps, loss.item(), rate, seconds)
        if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or last):
            weights = {name: module.state_dict() for name, module in modules.items()}
            state = dict(modules=weights, optimizer=optimizer.state_dict(), mean=mean, step=step + 1)
            save(state, path)

    if ema:
        for p, average in zip(parameters, mean, strict=True):
            p.data.copy_(average)
    dist.barrier()


def learning_rate(step: int, steps: int, lr: float, flat: float) -> float:
    """A linear warm-up, then constant for `flat` of all steps, then a cosine to zero."""
    done = step / steps
    decay = 1 if done < flat else 0.5 + 0.5 * np.cos(np.pi * (done - flat) / (1 - flat))
    return float(lr * min(1, (step + 1) / WARMUP_STEPS) * decay)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean over all processes, in one message."""
    sizes = [p.numel() for p in parameters]
    parts = []
    for p in parameters:
        parts.append(torch.zeros(p.numel()) if p.grad is None else p.grad.flatten())
    flat = torch.cat(parts)
    dist.all_reduce(flat)
    flat = flat / dist.get_world_size()
    for p, gradient in zip(parameters, flat.split(sizes), strict=True):
        p.grad = gradient.view_as(p)


def log(stage: str, step: int, steps: int, loss: float, rate: float, seconds: float) -> None:
    """Print one line of JSON.  seconds: of a step."""
    line = dict(
        stage=stage,
        step=step,
        loss=round(loss, 4),
        lr=round(rate, 6),
        s_per_step=round(seconds, 4),
        eta_min=round(seconds * (steps - step) / 60, 1),
    )
    print(json.dumps(line), flush=True)


def save(value, path: Path) -> None:
    """torch.save() to a file that is complete or absent."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def stage_key(name: str) -> int:
    """A number for the seeds of a stage."""
    return int.from_bytes(name.encode()[:4].ljust(4), "big")
