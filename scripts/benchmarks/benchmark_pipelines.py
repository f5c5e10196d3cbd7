"""scripts/benchmark.py's sections of whole pipelines: export, loading, merging and swapping adapters, and what they cost when images are drawn."""

import tempfile
import warnings
from pathlib import Path

import torch
from benchmark_turns import Bench, milliseconds, profiled, ratio, shown
from diffusers.utils import logging
from torch import nn

from gralora_diffusion import AdapterConfig, GraLoRALinear, inject, load_adapter, load_sdxl, save_adapter
from gralora_diffusion.adapters.control import merge, remove, set_strength, unmerge
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.formats.load import save_diffusers
from gralora_diffusion.sdxl.base import Prompts, blank_inputs, predict
from gralora_diffusion.sdxl.single_file import SDXL_UNET

SDXL_LAYERS = {
    (1280, 1280): 360 + 128,
    (2048, 1280): 120,
    (640, 640): 60,
    (2048, 640): 20,
    (768, 768): 48,
}  # UNet 560, text encoders 176
PEFT = "PEFT's convert_to_lora"


def export(bench: Bench, rank: int = 64, k: int = 4, layers: dict = SDXL_LAYERS) -> dict:
    """Every attention layer of SDXL as a plain LoRA, beside PEFT's convert_to_lora: one of each shape is timed, and counted as often as it occurs."""
    import peft

    print(
        f"\nexport: {sum(layers.values())} layers, rank {rank}, k {k}, to a LoRA of rank {k * rank}; one of each shape timed, times their number"
    )
    seconds = {"ours": 0.0, PEFT: 0.0}
    errors = []
    for (n, m), number in layers.items():
        layer = GraLoRALinear.from_linear(nn.Linear(n, m, bias=False, device=bench.device), rank, k)
        layer.adapter.gralora_B.data.normal_()
        config = peft.GraloraConfig(r=rank, alpha=rank, gralora_k=k, hybrid_r=0, target_modules=["linear"])
        twin = peft.get_peft_model(
            nn.ModuleDict(dict(linear=nn.Linear(n, m, bias=False, device=bench.device))), config
        )
        for name in ("gralora_A", "gralora_B"):
            getattr(twin.base_model.model["linear"], name)["default"].data.copy_(getattr(layer.adapter, name))
        few = Bench(bench.device, bench.clock, rounds=3, seconds=0)
        times = few.in_turns(
            {"ours": layer.low_rank, PEFT: lambda model=twin: peft.convert_to_lora(model, rank=k * rank)},
            warm_up=1,
        )
        exact = twin.base_model.model["linear"].get_delta_weight("default").detach()
        per_layer = {name: milliseconds(t) for name, t in times.items()}
        seconds = {name: s + number * per_layer[name] / 1e3 for name, s in seconds.items()}
        down, up = layer.low_rank()
        error = float((up @ down - exact).norm() / exact.norm())
        errors.append(error)
        print(
            f"  {f'{n} -> {m}':<14}{number:>4} layers: ours {per_layer['ours']:7.2f} ms, relative error {error:.0e}; ",
            end="",
        )
        print(f"{PEFT} {per_layer[PEFT]:8.1f} ms", flush=True)
    faster = seconds[PEFT] / seconds["ours"]
    print(
        f"  all: ours {seconds['ours']:.2f} s, {PEFT} {seconds[PEFT]:.1f} s: {faster:.0f} times faster (goal: 100)"
    )
    return dict(seconds=seconds, faster=faster, error=max(errors))


def base_of(size: str, device: str, side: int | None = None):
    """tiny: the embedded base; half and sdxl: the same with a random bf16 UNet of half of SDXL's width, or of SDXL's own.

    side: of the latents that such a UNet draws; by default that of the embedded base's.
    """
    from diffusers import UNet2DConditionModel

    pipeline = load_sdxl()
    if size != "tiny":
        own = pipeline.unet.config
        scale = 2 if size == "half" else 1
        changes = dict(
            block_out_channels=[c // scale for c in SDXL_UNET["block_out_channels"]],
            sample_size=side or own.sample_size,
        )
        changes |= dict(
            in_channels=own.in_channels,
            out_channels=own.out_channels,
            cross_attention_dim=own.cross_attention_dim,
        )
        pooled = pipeline.text_encoder_2.config.projection_dim
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(
                SDXL_UNET | changes | dict(projection_class_embeddings_input_dim=6 * 256 + pooled)
            )
        unet = unet.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
        for p in unet.parameters():
            p.data.uniform_(-0.02, 0.02)
        pipeline.register_modules(unet=unet)
    return pipeline.to(device)


def write_adapters(pipeline, folder: Path, rank: int, k: int) -> dict[str, Path]:
    """Two GraLoRA and two LoRA files of equal rank, all random, and the LoRA ones in diffusers' format: {name: path}."""
    files = {}
    for method in ("gralora", "lora"):
        config = AdapterConfig(method=method, rank=rank, k=k if method == "gralora" else None)
        inject(pipeline.unet, config)
        for number in (1, 2):
            for name, p in adapter_parameters(pipeline.unet).items():
                p.data.normal_(std=0.01 if name.endswith("B") else 0.02)
            path = files[f"{method} {number}"] = folder / f"{method}{number}.safetensors"
            (save_adapter if method == "gralora" else save_diffusers)(path, {"unet": pipeline.unet})
        remove(pipeline)
    return files


def pipelines(bench: Bench, size: str = "half", rank: int = 64, k: int = 4, rounds: int = 5) -> dict:
    """Load + merge, another strength, and a swap: ours with GraLoRA, diffusers with a LoRA of equal rank, on the same pipeline in turns."""
    logging.set_verbosity_error()  # diffusers says each time that an adapter holds nothing for the text encoders
    pipeline = base_of(size, bench.device)
    print(
        f"\nload: a UNet of size {size}, GraLoRA of rank {rank}, k {k}, beside diffusers with a LoRA of rank {rank}; ms, median"
    )
    times = {}

    def clocked(row, /, action, *arguments, **options) -> None:
        before = bench.now()
        action(*arguments, **options)
        times.setdefault(row, []).append(bench.now() - before)

    def ours(files) -> None:
        clocked("load: ours", load_adapter, pipeline, files["gralora 1"], name="one")
        clocked("strength: ours", set_strength, pipeline, 0.5)
        clocked("merge: ours", merge, pipeline.unet)
        clocked("unmerge: ours", unmerge, pipeline.unet)
        before = bench.now()
        remove(pipeline, "one")
        load_adapter(pipeline, files["gralora 2"], name="two")
        times.setdefault("swap: ours", []).append(bench.now() - before)
        remove(pipeline)

    def theirs(files) -> None:
        clocked("load: diffusers", pipeline.load_lora_weights, files["lora 1"], adapter_name="one")
        clocked("strength: diffusers", pipeline.set_adapters, "one", 0.5)
        clocked("merge: diffusers", pipeline.fuse_lora, components=["unet"])
        clocked("unmerge: diffusers", pipeline.unfuse_lora, components=["unet"])
        before = bench.now()
        pipeline.delete_adapters("one")
        pipeline.load_lora_weights(files["lora 2"], adapter_name="two")
        times.setdefault("swap: diffusers", []).append(bench.now() - before)
        pipeline.unload_lora_weights()

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        files = write_adapters(pipeline, Path(folder), rank, k)
        for _ in range(rounds + 1):
            ours(files)
            theirs(files)
    times = {name: t[1:] for name, t in times.items()}  # the first round warms up
    for who in ("ours", "diffusers"):
        times[f"load + merge: {who}"] = [
            a + b for a, b in zip(times[f"load: {who}"], times[f"merge: {who}"], strict=True)
        ]
    found = {}
    for what in ("load", "merge", "load + merge", "unmerge", "strength", "swap"):
        found[what] = dict(ratio=ratio(times, f"{what}: ours", f"{what}: diffusers"))
        found[what] |= {who: milliseconds(times[f"{what}: {who}"]) for who in ("ours", "diffusers")}
        print(
            f"  {what:<14}ours {found[what]['ours']:9.1f}  diffusers {found[what]['diffusers']:9.1f}  ratio {shown(found[what]['ratio'])}",
            flush=True,
        )
    return found


def unet_steps(
    bench: Bench, size: str = "tiny", rank: int = 16, k: int = 2, images: int = 4, profile: bool = False
) -> dict:
    """A training step of the UNet alone, forward, backward and AdamW, with each adapter on a copy of the same base, in turns.

    profile: print torch.profiler's table of our two, too.
    """
    import peft

    print(
        f"\nstep of a UNet of size {size} alone, {images} images, rank {rank}, k {k}; as a ratio to our LoRA's: median (quartiles)"
    )
    common = dict(r=rank, target_modules=r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
    kinds = {
        "LoRA": lambda unet: inject(unet, AdapterConfig(method="lora", rank=rank)),
        "GraLoRA": lambda unet: inject(unet, AdapterConfig(rank=rank, k=k)),
        "PEFT LoRA": lambda unet: peft.inject_adapter_in_model(
            peft.LoraConfig(lora_alpha=rank, **common), unet
        ),
        "PEFT GraLoRA": lambda unet: peft.inject_adapter_in_model(
            peft.GraloraConfig(alpha=rank, gralora_k=k, hybrid_r=0, **common), unet
        ),
    }
    contestants = {}
    for name, adapt in kinds.items():
        pipeline = base_of(size, bench.device)
        adapt(pipeline.unet.train())
        trained = [p for p in pipeline.unet.parameters() if p.requires_grad]
        contestants[name] = training_step(pipeline, torch.optim.AdamW(trained, lr=1e-4, fused=True), images)
    times = bench.in_turns(contestants)
    for name in ("LoRA", "GraLoRA") if profile else ():
        profiled(f"a step of the UNet of size {size} with {name}", contestants[name], bench.device)
    found = {name: ratio(times, name, "LoRA") for name in kinds if name != "LoRA"} | dict(
        ms={name: milliseconds(t) for name, t in times.items()}
    )
    print(
        "  "
        + ", ".join(f"{name} {shown(found[name])}" for name in kinds if name != "LoRA")
        + f"; LoRA {found['ms']['LoRA']:.0f} ms",
        flush=True,
    )
    return found


def training_step(pipeline, optimizer, images: int):
    unet, dtype = pipeline.unet, pipeline.unet.dtype
    inputs = inputs_of(pipeline, images)

    def run() -> None:
        with torch.autocast(unet.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            predict(unet, *inputs).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def inputs_of(pipeline, images: int) -> tuple:
    """What predict() takes, random, in the UNet's dtype and on its device."""
    unet = pipeline.unet
    noisy, _, prompts, sizes = blank_inputs(unet.config, images, unet.config.sample_size, device=unet.device)
    prompts = Prompts(*(part.to(unet.dtype).normal_() for part in prompts))
    return (
        noisy.to(unet.dtype).normal_(),
        torch.tensor(500, device=unet.device),
        prompts,
        sizes.to(unet.dtype),
    )


@torch.no_grad()
def sampling(
    bench: Bench, size: str = "tiny", rank: int = 64, k: int = 4, images: int = 2, side: int | None = None
) -> dict:
    """One denoising step of the UNet: the base, an adapter merged into it, an adapter beside it, and PEFT's LoRA, each a pipeline of its own."""
    pixels = "" if side is None else f" of {8 * side} pixels"
    print(
        f"\nsampling: one step of a UNet of size {size}, {images} image(s){pixels}, rank {rank}; as a ratio to the base: median (quartiles)"
    )
    logging.set_verbosity_error()
    pipelines = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        files = write_adapters(base_of(size, "cpu"), Path(folder), rank, k)
        for name in ("base", "merged", "GraLoRA", "LoRA", "PEFT LoRA"):
            torch.manual_seed(0)
            pipelines[name] = base_of(size, bench.device, side)
            if name == "PEFT LoRA":
                pipelines[name].load_lora_weights(files["lora 1"])
            elif name != "base":
                load_adapter(pipelines[name], files["lora 1" if name == "LoRA" else "gralora 1"])
        merge(pipelines["merged"].unet)
        remove(pipelines["merged"])
    inputs = inputs_of(pipelines["base"], images)
    times = bench.in_turns(
        {name: lambda unet=p.unet: predict(unet, *inputs) for name, p in pipelines.items()}
    )
    found = {name: ratio(times, name, "base") for name in pipelines if name != "base"}
    found |= {f"{name} / PEFT LoRA": ratio(times, name, "PEFT LoRA") for name in ("GraLoRA", "LoRA")}
    found["ms"] = {name: milliseconds(t) for name, t in times.items()}
    for name, value in found.items():
        if name != "ms":
            print(f"  {name:<22}{shown(value)}", flush=True)
    return found
