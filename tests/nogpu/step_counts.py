"""step_counts.py [--gib FLOAT] [--json FILE] [--names] [--turns INT]: a step of SDXL's UNet with adapters.

1024 px, batch 1, bf16, rank 64, k 4, fused AdamW: launches of the forward pass, of the backward pass and of
the optimizer, host CPU time, and memory; beside the package's own layers, PEFT's, under autocast as in its
trainers. --turns: host CPU time of a GraLoRA step as a ratio to that of a LoRA step, over so many turns.
"""

import argparse
import collections
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import card

if __name__ == "__main__":
    card.start()

import counters
import hollow
import stand_ins
import torch

from gralora_diffusion import AdapterConfig, TrainConfig, console, inject
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.sdxl.base import Prompts, blank_inputs, predict
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.optim import make_optimizer

KINDS = ("frozen", "LoRA", "GraLoRA", "PEFT LoRA", "PEFT GraLoRA")
RANK, K = 64, 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
OPTIMIZERS = {  # those that are installed with the package's test extra
    "AdamW": dict(learning_rate=1e-4),
    "AdamW, fp16": dict(learning_rate=1e-4, mixed_precision="fp16"),
    "Prodigy": dict(learning_rate=1.0, optimizer="Prodigy"),
    "Adafactor": dict(learning_rate=1e-4, optimizer="Adafactor"),
    "AdamWScheduleFree": dict(learning_rate=1e-4, optimizer="AdamWScheduleFree"),
    "SGD": dict(learning_rate=1e-4, optimizer="SGD"),
}
SIDE = 128  # of the latents of 1024 px
STEPS = 3  # the last is counted, and the fastest but for the first is timed
PASSES = ("forward", "backward", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--names", action="store_true", help="list the kernels of a GraLoRA step")
    parser.add_argument("--turns", type=int)
    own = parser.parse_args()
    console.quiet_libraries()
    if own.turns:
        print(host_ratio(own.turns))
        return
    found = {}
    for kind in KINDS:
        for checkpointing in (False, True):
            name = f"{kind}, checkpointing" if checkpointing else kind
            found[name] = measure(kind, checkpointing)
            print(text_of(name, found[name]), flush=True)
    if own.names:
        for kernel, launches in found["GraLoRA"]["kernels"].most_common(40):
            print(f"{launches:>7,} {kernel[:180]}")
    if own.json:
        own.json.write_text(json.dumps(found, indent=1))


def unet_of(kind: str) -> torch.nn.Module:
    """SDXL's UNet in bf16 on the card, in training mode; the adapter's factors are fp32."""
    unet = hollow.hollow_unet(torch.bfloat16, "cuda").train()
    if kind in ("LoRA", "GraLoRA"):
        sizes = dict(rank=RANK, k=K) if kind == "GraLoRA" else dict(rank=RANK)
        inject(unet, AdapterConfig(method=kind.lower(), **sizes))
    elif kind.startswith("PEFT"):
        import peft

        configs = {
            "PEFT LoRA": lambda: peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS),
            "PEFT GraLoRA": lambda: peft.GraloraConfig(
                r=RANK, alpha=RANK, gralora_k=K, hybrid_r=0, target_modules=TARGETS
            ),
        }
        peft.inject_adapter_in_model(configs[kind](), unet)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return unet


def measure(kind: str, checkpointing: bool) -> dict:
    """Launches, CPU seconds and memory of the last of STEPS steps."""
    gc.collect()
    torch.cuda.empty_cache()
    step = step_of(kind, checkpointing)
    steps = []
    for number in range(STEPS):
        steps.append(measure_step(*step, names=number == STEPS - 1))
    found = steps[-1]
    for name in PASSES:
        found[f"{name}_cpu"] = min(step[f"{name}_cpu"] for step in steps[1:])
    return found | dict(parameters=sum(p.numel() for p in step[0].parameters() if p.requires_grad))


def host_ratio(turns: int) -> str:
    """The host CPU time of a GraLoRA step to that of a LoRA step, both on the card, in turns."""
    steps = {kind: step_of(kind, checkpointing=False) for kind in ("LoRA", "GraLoRA")}
    seconds = {kind: [] for kind in steps}
    for turn in range(turns + 1):
        for kind, step in steps.items():
            line = measure_step(*step, names=False)
            if turn:
                seconds[kind].append(sum(line[f"{name}_cpu"] for name in PASSES))
    ratios = [g / l for g, l in zip(seconds["GraLoRA"], seconds["LoRA"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    each = ", ".join(f"{kind} {statistics.median(own):.3f} s" for kind, own in seconds.items())
    return f"host CPU time of a step, {turns} turns: {each}; ratio {middle:.2f} ({low:.2f} to {high:.2f})"


def step_of(kind: str, checkpointing: bool) -> tuple:
    """The UNet with this adapter, its inputs, flat factors and optimizer, as measure_step() takes them."""
    unet = unet_of(kind)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    parameters = [p for p in unet.parameters() if p.requires_grad]
    factors = None
    if kind in ("LoRA", "GraLoRA"):  # as the trainer has them
        factors = FlatFactors.of_models([dict(params=parameters)], [unet], torch.bfloat16)
        (group,) = factors.flat_groups()
        parameters = group["params"]
    noisy, timesteps, prompts, sizes = blank_inputs(unet.config, 1, SIDE, device="cuda")
    noisy = noisy.bfloat16().requires_grad_(not parameters)
    inputs = noisy, timesteps, Prompts(*(tensor.bfloat16() for tensor in prompts)), sizes
    optimizer = torch.optim.AdamW(parameters, fused=True) if parameters else None
    return unet, inputs, factors, optimizer


def optimizer_counts() -> dict[str, dict[str, int]]:
    """Launches and waits of each optimizer's own step, over the factors of a GraLoRA."""
    unet = unet_of("GraLoRA")
    found = {}
    stand_ins.set_reads(1.0)  # with 0, Prodigy ends its step early
    try:
        for name, options in OPTIMIZERS.items():
            groups = [dict(params=list(adapter_parameters(unet).values()))]
            optimizer = make_optimizer(FlatFactors(groups, torch.bfloat16), TrainConfig(**options))
            optimizer.step()
            counters.reset()
            optimizer.step()
            report = counters.report()
            found[name] = dict(launches=report.launches, syncs=report.syncs)
    finally:
        stand_ins.set_reads(0.0)
    return found


def measure_step(unet, inputs, factors: FlatFactors | None, optimizer, names: bool) -> dict:
    """Launches, CPU seconds and memory of a step; its kernels where `names` asks for them."""
    torch.cuda.reset_peak_memory_stats()
    found, kernels = {}, collections.Counter()

    def run_pass(name: str, function):
        counters.reset()
        start = time.process_time()
        result = function()
        found[f"{name}_cpu"] = round(time.process_time() - start, 3)
        found[name] = counters.report().launches
        kernels.update(counters.launches_by_name() if names else {})
        return result

    def forward() -> torch.Tensor:
        if factors:
            factors.refresh()
        with torch.autocast("cuda", torch.bfloat16, enabled=optimizer is not None and factors is None):
            predicted = predict(unet, *inputs)
        return predicted.float().square().mean()

    def update() -> None:
        if factors:
            factors.collect()
        if optimizer:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
        if factors:
            factors.clear()
        elif optimizer:
            optimizer.zero_grad(set_to_none=True)

    loss = run_pass("forward", forward)
    run_pass("backward", loss.backward)
    run_pass("optimizer", update)
    inputs[0].grad = None
    return found | dict(
        launches=sum(found[name] for name in PASSES),
        peak=torch.cuda.max_memory_allocated() / card.GIB,
        reserved=torch.cuda.max_memory_reserved() / card.GIB,
        kernels=kernels,
    )


def text_of(name: str, line: dict) -> str:
    launches = ", ".join(f"{part} {line[part]:,}" for part in PASSES)
    seconds = ", ".join(f"{line[f'{part}_cpu']:.3f}" for part in PASSES)
    memory = f"peak {line['peak']:.2f}, reserved {line['reserved']:.2f} GiB"
    return f"{name:<27} launches {line['launches']:>6,} ({launches})  {memory}  host {seconds} s"


if __name__ == "__main__":
    sys.exit(main())
