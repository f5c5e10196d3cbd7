"""Adapters whose ranks and start come from gradients: `--adapter gora` and `--allocate`.

The facts are written to allocation.json.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

from accelerate.utils import broadcast, broadcast_object_list

from gralora_diffusion.adapters.allocation_file import FILE, inject_sized
from gralora_diffusion.adapters.control import enable
from gralora_diffusion.adapters.gradient_init import check_gradient_start, line_search, point_down
from gralora_diffusion.adapters.gradients import Gradients
from gralora_diffusion.adapters.rank_rules import allocate
from gralora_diffusion.adapters.registry import all_layers
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text


def apply(models: dict, loss_of: Callable, config: TrainConfig, accelerator, run: Path) -> None:
    """Give the adapters their ranks and their start, and write allocation.json into `run`.

    Gradient pass, allocation, injection, factors, line search.  loss_of(index) is the training loss of batch
    `index`, best with gradients.stratified() draws.  The adapters in `models` are replaced, unless
    --allocation gave them their sizes already.  Every process ends with the same ranks and factors.
    """
    if config.gora_init != "zero":
        check_gradient_start(all_layers(models))
    enable_all(models, False)
    memory = math.inf if config.gora_memory is None else config.gora_memory * 2**30
    gradients = Gradients(all_layers(models), loss_of, accelerator, config.gora_batches, memory)
    facts = dict(
        rule=config.allocate or f"as in {config.allocation}",
        init=config.gora_init,
        reference_rank=config.adapter.rank,
    )
    if config.allocate:
        rows, facts["bootstrap_moved"] = allocate(gradients, config)
        if accelerator.num_processes > 1:
            (rows,) = broadcast_object_list([rows])
        sizes = {path: (row["rank"], row["k"]) for path, row in rows.items()}
        inject_sized(models, config.adapter, sizes, config.seed)
        enable_all(models, False)
    else:
        rows = {}
        for path, layer in gradients.layers.items():
            rows[path] = dict(shape=list(layer.matrix_shape), rank=layer.adapter.rank, k=layer.adapter.k)
    layers = all_layers(models)
    if config.gora_init != "zero":
        norms = {path: row.get("gradient_norm") for path, row in rows.items()}
        point_down(layers, gradients, config.gora_init, norms)
    enable_all(models, True)
    if config.gora_init != "zero":
        facts["gamma"], facts["held_out_loss"] = line_search(layers, loss_of, config.gora_gamma, accelerator)
    parameters = []
    for layer in layers.values():
        parameters += [p.data for p in layer.adapter.parameters()]
    if accelerator.num_processes > 1:
        broadcast(parameters)
    facts |= dict(
        batches=gradients.batches,
        batches_run=gradients.ran,
        passes=gradients.passes,
        gradient_bytes=gradients.peak,
        storing_bytes=gradient_bytes(rows)["storing"],
        parameters=sum(p.numel() for p in parameters),
        layers=rows,
    )
    if accelerator.is_main_process:
        write_text(run / FILE, json.dumps(facts, indent=1) + "\n")
        print(allocation_table(facts), flush=True)


def enable_all(models: dict, on: bool) -> None:
    for model in models.values():
        enable(model, on)


def gradient_bytes(rows: dict[str, dict], itemsize: int = 4) -> dict[str, int]:
    """Bytes that the gradient pass needs beside a training step, for {path: {shape, rank}}.

    "storing": fp32 sums of all gradients; "streaming": of what a random A leaves of them; both with the one
    gradient that is alive, in the weights' `itemsize` and in fp32.
    """
    largest = 0
    storing = 0
    streaming = 0
    for row in rows.values():
        m, n = row["shape"]
        largest = max(largest, m * n)
        storing += 4 * m * n
        streaming += 4 * m * row["rank"]
    one = largest * (4 if itemsize == 4 else itemsize + 4)
    return dict(storing=storing + one, streaming=streaming + one)


def allocation_table(facts: dict) -> str:
    """The facts for people: one line per layer, then what the pass cost and how the start was found."""
    rows = facts["layers"]
    width = max(map(len, rows))
    total = sum(row.get("importance", 0) for row in rows.values()) or 1
    lines = [f"{'layer':<{width}}  {'in -> out':>13}  {'importance':>10}  {'rank':>4}  {'k':>2}"]
    for path, row in rows.items():
        sizes = f"{row['shape'][1]} -> {row['shape'][0]}"
        share = f"{row['importance'] / total:.2%}" if "importance" in row else "-"
        lines.append(f"{path:<{width}}  {sizes:>13}  {share:>10}  {row['rank']:>4}  {row['k']:>2}")
    used, storing = facts["gradient_bytes"] / 2**20, facts["storing_bytes"] / 2**20
    passes = "1 pass" if facts["passes"] == 1 else f"{facts['passes']} passes"
    batches = "1 batch" if facts["batches"] == 1 else f"{facts['batches']} batches"
    cost = f"{facts['parameters']:,} parameters, {batches} in {passes}"
    memory = f"{used:.1f} MiB of gradients at once ({storing:.1f} to store all)"
    lines.append(f"{facts['rule']}: {cost}, {memory}")
    if facts.get("bootstrap_moved"):
        lines[-1] += f", {facts['bootstrap_moved'][-1]:.1%} of the parameters still moving"
    if "gamma" in facts:
        losses = {float(gamma): loss for gamma, loss in facts["held_out_loss"].items()}
        change = f"{losses[0.0]:.5f} -> {losses[facts['gamma']]:.5f}"
        lines.append(f"initialization {facts['init']}, gamma {facts['gamma']:g}: held-out loss {change}")
    return "\n".join(lines)
