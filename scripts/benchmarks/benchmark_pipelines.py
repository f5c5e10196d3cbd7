"""The benchmark's sections of pipelines: export, loading, merging and swapping adapters, sampling."""

import functools
import tempfile
import warnings
from pathlib import Path

import torch
from benchmark_inputs import base_of, unet_inputs, write_adapters
from benchmark_layers import peft_gralora
from benchmark_turns import Bench, milliseconds, milliseconds_of, ratio, ratio_text
from diffusers.utils import logging
from torch import nn

from gralora_diffusion import GraLoRALinear, load_adapter
from gralora_diffusion.adapters.control import merge, remove, set_strength, unmerge
from gralora_diffusion.console import counted
from gralora_diffusion.sdxl.base import predict

# {(in, out): number}: 560 layers of SDXL's UNet and 176 of its text encoders
SDXL_LAYERS = {
    (1280, 1280): 360 + 128,
    (2048, 1280): 120,
    (640, 640): 60,
    (2048, 640): 20,
    (768, 768): 48,
}
PEFT = "PEFT's convert_to_lora"


def export(bench: Bench, rank: int = 64, k: int = 4, layers: dict = SDXL_LAYERS) -> dict:
    """SDXL's attention layers as plain LoRAs, compared with PEFT's convert_to_lora.

    One layer of each shape is timed; its time counts as often as the shape occurs.
    """
    print(
        f"\nexport: {sum(layers.values())} layers, rank {rank}, k {k}, to a LoRA of rank {k * rank};", end=" "
    )
    print("one of each shape timed, times their number")
    seconds = {"ours": 0.0, PEFT: 0.0}
    errors = []
    for (n, m), number in layers.items():
        ms, error = export_layer(bench, n, m, rank, k)
        errors.append(error)
        for name in seconds:
            seconds[name] += number * ms[name] / 1e3
        size = f"{n} -> {m}"
        print(f"  {size:<14}{number:>4} layers: ours {ms['ours']:7.2f} ms,", end=" ")
        print(f"relative error {error:.0e}; {PEFT} {ms[PEFT]:8.1f} ms", flush=True)
    faster = seconds[PEFT] / seconds["ours"]
    print(f"  all: ours {seconds['ours']:.2f} s, {PEFT} {seconds[PEFT]:.1f} s:", end=" ")
    print(f"{faster:.0f} times faster (goal: 100)")
    return dict(seconds=seconds, faster=faster, error=max(errors))


def export_layer(bench: Bench, n: int, m: int, rank: int, k: int) -> tuple[dict[str, float], float]:
    """({name: ms}, the relative error of our delta compared with PEFT's)"""
    import peft

    layer = GraLoRALinear.from_linear(nn.Linear(n, m, bias=False, device=bench.device), rank, k)
    model = nn.ModuleDict(dict(linear=nn.Linear(n, m, bias=False, device=bench.device)))
    model = peft.get_peft_model(model, peft_gralora(rank, k))
    twin = model.base_model.model["linear"]
    for name, factor in layer.named_parameters():
        if name.endswith("gralora_A"):
            twin.gralora_A["default"].data.copy_(factor)
        elif name.endswith("gralora_B"):
            factor.data.normal_()
            twin.gralora_B["default"].data.copy_(factor)
    contestants = {
        "ours": layer.low_rank,
        PEFT: functools.partial(peft.convert_to_lora, model, rank=k * rank),
    }
    times = Bench(bench.device, bench.clock, rounds=3, seconds=0).in_turns(contestants, warm_up=1)
    exact = twin.get_delta_weight("default").detach()
    down, up = layer.low_rank()
    error = float((up @ down - exact).norm() / exact.norm())
    return milliseconds_of(times), error


def loading(bench: Bench, size: str = "half", rank: int = 64, k: int = 4, rounds: int = 5) -> dict:
    """Load, merge, change the strength and swap: ours with GraLoRA, diffusers with a LoRA of equal rank.

    Both work on the same pipeline, in turns.
    """
    logging.set_verbosity_error()  # diffusers warns each time that a file has nothing for the text encoders
    pipeline = base_of(size, bench.device)
    print(f"\nload: a UNet of size {size}, GraLoRA of rank {rank}, k {k},", end=" ")
    print(f"beside diffusers with a LoRA of rank {rank}; ms, median")
    times = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        files = write_adapters(pipeline, Path(folder), rank, k)
        for number in range(rounds + 1):
            round_times = {}
            time_ours(bench, pipeline, files, round_times)
            time_diffusers(bench, pipeline, files, round_times)
            if number == 0:
                continue  # the first round warms up
            for name, seconds in round_times.items():
                times.setdefault(name, []).append(seconds)
    for who in ("ours", "diffusers"):
        both = zip(times[f"load: {who}"], times[f"merge: {who}"], strict=True)
        times[f"load + merge: {who}"] = [load + merge for load, merge in both]
    found = {}
    for what in ("load", "merge", "load + merge", "unmerge", "strength", "swap"):
        row = dict(ratio=ratio(times, f"{what}: ours", f"{what}: diffusers"))
        for who in ("ours", "diffusers"):
            row[who] = milliseconds(times[f"{what}: {who}"])
        found[what] = row
        print(f"  {what:<14}ours {row['ours']:9.1f}  diffusers {row['diffusers']:9.1f}", end="  ")
        print(f"ratio {ratio_text(row['ratio'])}", flush=True)
    return found


def time_ours(bench: Bench, pipeline, files: dict[str, Path], times: dict[str, float]) -> None:
    def swap() -> None:
        remove(pipeline, "one")
        load_adapter(pipeline, files["gralora 2"], name="two")

    times["load: ours"] = bench.timed(lambda: load_adapter(pipeline, files["gralora 1"], name="one"))
    times["strength: ours"] = bench.timed(lambda: set_strength(pipeline, 0.5))
    times["merge: ours"] = bench.timed(lambda: merge(pipeline.unet))
    times["unmerge: ours"] = bench.timed(lambda: unmerge(pipeline.unet))
    times["swap: ours"] = bench.timed(swap)
    remove(pipeline)


def time_diffusers(bench: Bench, pipeline, files: dict[str, Path], times: dict[str, float]) -> None:
    def load(file: str, name: str) -> None:
        pipeline.load_lora_weights(files[file], adapter_name=name)

    def swap() -> None:
        pipeline.delete_adapters("one")
        load("lora 2", "two")

    times["load: diffusers"] = bench.timed(lambda: load("lora 1", "one"))
    times["strength: diffusers"] = bench.timed(lambda: pipeline.set_adapters("one", 0.5))
    times["merge: diffusers"] = bench.timed(lambda: pipeline.fuse_lora(components=["unet"]))
    times["unmerge: diffusers"] = bench.timed(lambda: pipeline.unfuse_lora(components=["unet"]))
    times["swap: diffusers"] = bench.timed(swap)
    pipeline.unload_lora_weights()


@torch.no_grad()
def sampling(
    bench: Bench, size: str = "tiny", rank: int = 64, k: int = 4, images: int = 2, side: int | None = None
) -> dict:
    """One denoising step of the UNet, each on a pipeline of its own.

    The base, a merged adapter, adapters that are not merged, and PEFT's LoRA.
    """
    pixels = "" if side is None else f" of {8 * side} pixels"
    what = f"one step of a UNet of size {size}, {counted(images, 'image')}{pixels}"
    print(f"\nsampling: {what}, rank {rank};", end=" ")
    print("as a ratio to the base: median (quartiles)")
    logging.set_verbosity_error()
    pipelines = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        files = write_adapters(base_of(size, "cpu"), Path(folder), rank, k)
        for name in ("base", "merged", "GraLoRA", "LoRA", "PEFT LoRA"):
            torch.manual_seed(0)
            pipelines[name] = base_of(size, bench.device, side)
        load_adapter(pipelines["merged"], files["gralora 1"])
        merge(pipelines["merged"].unet)
        remove(pipelines["merged"])
        load_adapter(pipelines["GraLoRA"], files["gralora 1"])
        load_adapter(pipelines["LoRA"], files["lora 1"])
        pipelines["PEFT LoRA"].load_lora_weights(files["lora 1"])
    inputs = unet_inputs(pipelines["base"], images)
    steps = {name: functools.partial(predict, p.unet, *inputs) for name, p in pipelines.items()}
    times = bench.in_turns(steps)
    found = {name: ratio(times, name, "base") for name in pipelines if name != "base"}
    for name in ("GraLoRA", "LoRA"):
        found[f"{name} / PEFT LoRA"] = ratio(times, name, "PEFT LoRA")
    for name, value in found.items():
        print(f"  {name:<22}{ratio_text(value)}", flush=True)
    return found | dict(ms=milliseconds_of(times))
