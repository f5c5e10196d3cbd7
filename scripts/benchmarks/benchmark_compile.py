"""The benchmark's section of --compile: how long the graphs take, and a step with and without them."""

import time
from collections.abc import Callable
from unittest import mock

import torch
from benchmark_inputs import unet_inputs
from benchmark_turns import Bench, milliseconds_of, ratio, ratio_text

from gralora_diffusion import AdapterConfig, inject, load_sdxl
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.sdxl.base import predict
from gralora_diffusion.training import compiled
from gralora_diffusion.training.flat_factors import FlatFactors


def compiling(bench: Bench, backends: tuple[str, ...], rank: int = 8, k: int = 2, images: int = 2) -> dict:
    """The embedded base in bf16 with GraLoRA: seconds of the first compiled step, and steps in turns."""
    print(f"\ncompile: bf16, embedded base, {images} images, rank {rank}, k {k}; steps as a ratio to eager")
    eager, gradient = training_step(bench.device, rank, k, images)
    found = {}
    for backend in backends:
        torch._dynamo.reset()
        with mock.patch.object(compiled, "BACKEND", backend):
            run, own = training_step(bench.device, rank, k, images, compile=True)
            began = time.monotonic()
            run()
        seconds = time.monotonic() - began
        eager()
        error = float((own() - gradient()).norm() / gradient().norm())
        found[backend] = dict(first_step=seconds, gradient_error=error)
        times = bench.in_turns({"eager": eager, backend: run})
        found[backend] |= dict(step=ratio(times, backend, "eager"), ms=milliseconds_of(times))
        step = ratio_text(found[backend]["step"])
        print(f"  {backend}: first step {seconds:.0f} s, steps {step}, gradient's error {error:.2g}")
    return found


def training_step(device: str, rank: int, k: int, images: int, compile: bool = False) -> tuple[Callable, ...]:
    """(a step without its optimizer, the gradient that the last one left)"""
    pipeline = load_sdxl(dtype=torch.bfloat16).to(device)
    unet = pipeline.unet
    torch.manual_seed(0)
    inject(unet, AdapterConfig(rank=rank, k=k))
    parameters = list(adapter_parameters(unet).values())
    for p in parameters:
        torch.nn.init.normal_(p, std=0.05)
    factors = FlatFactors.of_models([dict(params=parameters)], [unet.train()], torch.bfloat16)
    if compile:
        compiled.compile_blocks(unet, 1)
    inputs = unet_inputs(pipeline, images)

    def run() -> None:
        factors.clear()
        factors.refresh()
        predict(unet, *inputs).float().square().mean().backward()
        factors.collect()

    return run, lambda: factors.gradients.clone()
