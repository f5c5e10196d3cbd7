"""Memory of the gradient pass at SDXL's shapes: an estimate for the UNet, and measurements on some blocks.

    python scripts/benchmarks/gradient_memory.py --rank 32 --targets attention+ff --blocks 12

Only the shapes are SDXL's: the weights are random bf16.  Each measurement is the peak of resident memory of a
process of its own, less that of a process without a gradient pass.  It is made twice: with the C library's
allocator as it is, which keeps freed blocks of up to 32 MiB, and with one that returns every large block
(glibc's MALLOC_MMAP_THRESHOLD_).
"""

import argparse
import os
import resource
import subprocess
import sys

ALLOCATORS = {"as it is": {}, "returned": {"MALLOC_MMAP_THRESHOLD_": "65536"}}
KINDS = ("storing", "streaming")
BATCHES = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=32, help="default: 32")
    parser.add_argument("--targets", default="attention+ff", help="default: attention+ff")
    about = "transformer blocks to measure on, of 60 of this width in the UNet (default: 12)"
    parser.add_argument("--blocks", type=int, default=12, help=about)
    parser.add_argument("--kind", choices=(*KINDS, "none"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        print(*measure(args.kind, args.blocks, args.rank, args.targets))
        return
    print(f"MiB of gradients, {args.targets}, rank {args.rank}{'':>12}{'storing':>10}{'streaming':>10}")
    print_forecasts(args)
    for number, (name, environment) in enumerate(ALLOCATORS.items()):
        found = {kind: measure_apart(kind, args, environment) for kind in ("none", *KINDS)}
        if number == 0:
            print_row("counted by the pass", {kind: found[kind][1] for kind in KINDS})
        extra = {kind: found[kind][0] - found["none"][0] for kind in KINDS}
        print_row(f"measured, resident memory, {name}", extra)


def print_forecasts(args: argparse.Namespace) -> None:
    from diffusers import UNet2DConditionModel
    from torch import device

    from gralora_diffusion import AdapterConfig, inject
    from gralora_diffusion.adapters.allocation import gradient_bytes
    from gralora_diffusion.console import counted
    from gralora_diffusion.sdxl.single_file import SDXL_UNET

    config = AdapterConfig(method="lora", rank=args.rank, targets=args.targets)
    with device("meta"):
        models = {
            "estimated, SDXL's whole UNet": UNet2DConditionModel.from_config(SDXL_UNET),
            f"estimated, {counted(args.blocks, 'block')}": transformer_blocks(args.blocks),
        }
    for name, model in models.items():
        sizes = {}
        for path, layer in inject(model, config).items():
            sizes[path] = dict(shape=tuple(layer.weight.shape), rank=args.rank)
        print_row(name, gradient_bytes(sizes, itemsize=2))


def measure_apart(kind: str, args: argparse.Namespace, environment: dict[str, str]) -> list[int]:
    """measure() in a process of its own, with these environment variables."""
    options = ["--kind", kind, "--blocks", str(args.blocks), "--rank", str(args.rank)]
    command = [sys.executable, __file__, *options, "--targets", args.targets]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return [int(number) for number in done.stdout.split()]


def measure(kind: str, number: int, rank: int, targets: str) -> tuple[int, int]:
    """(peak of resident memory, peak that the gradient pass counts itself), in bytes"""
    import torch
    from accelerate import Accelerator

    from gralora_diffusion import AdapterConfig, inject
    from gralora_diffusion.adapters.control import enable
    from gralora_diffusion.adapters.gradients import Gradients

    model = transformer_blocks(number)
    layers = inject(model, AdapterConfig(method="lora", rank=rank, targets=targets))
    enable(model, False)

    def loss_of(index: int) -> torch.Tensor:
        # 64 tokens: an image of 256 x 256 pixels
        x = torch.full((1, 64, 1280), 0.1, dtype=torch.bfloat16, requires_grad=True)
        context = torch.ones(1, 77, 2048, dtype=torch.bfloat16)
        for block in model["blocks"]:
            x = torch.utils.checkpoint.checkpoint(block, x, None, context, use_reentrant=False)
        return x.float().square().mean()

    gradients = Gradients(layers, loss_of, Accelerator(cpu=True), BATCHES)
    if kind == "storing":
        for _ in gradients:
            pass
    elif kind == "streaming":
        gradients.projected(
            {path: layer.adapter.lora_A.detach()[None, None] for path, layer in layers.items()}
        )
    else:
        for index in range(BATCHES):
            loss_of(index).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, gradients.peak


def transformer_blocks(number: int):
    """A model of this many of SDXL's transformer blocks of width 1280."""
    import torch
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    with torch.device("meta"):
        blocks = [BasicTransformerBlock(1280, 20, 64, cross_attention_dim=2048) for _ in range(number)]
        model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(blocks)})
    model = model.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
    for p in model.parameters():
        p.data.normal_(std=0.02)
    return model


def print_row(name: str, sizes: dict[str, int]) -> None:
    """sizes: bytes"""
    print(f"{name:<44}{sizes['storing'] / 2**20:>10.1f}{sizes['streaming'] / 2**20:>10.1f}")


if __name__ == "__main__":
    main()
