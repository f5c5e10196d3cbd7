"""Memory of the gradient pass at SDXL's shapes: what is forecast for the whole UNet, and what is measured on some of its blocks.

    python scripts/gradient_memory.py --rank 32 --targets attention+ff --blocks 12

Only the shapes are SDXL's: the weights are random bf16.  Each measurement runs in a process of its own, and counts its peak of resident
memory above that of the same process without a gradient pass; once as the C library's allocator is set up, which keeps freed blocks of up
to 32 MiB, and once with one that gives every large block back (MALLOC_MMAP_THRESHOLD_, of glibc).
"""

import argparse
import os
import resource
import subprocess
import sys

ALLOCATORS = {"as it is": {}, "given back": {"MALLOC_MMAP_THRESHOLD_": "65536"}}


def blocks(number: int):
    """SDXL's transformer blocks of width 1280, as many as fit in memory here."""
    import torch
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    with torch.device("meta"):
        made = torch.nn.ModuleDict(
            {
                "blocks": torch.nn.ModuleList(
                    BasicTransformerBlock(1280, 20, 64, cross_attention_dim=2048) for _ in range(number)
                )
            }
        )
    made = made.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
    for p in made.parameters():
        p.data.normal_(std=0.02)
    return made


def measure(kind: str, number: int, rank: int, targets: str) -> tuple[int, int]:
    """(peak of resident memory, bytes counted by the gradient pass itself)"""
    import torch
    from accelerate import Accelerator

    from gralora_diffusion import AdapterConfig, inject
    from gralora_diffusion.adapters.control import enable
    from gralora_diffusion.adapters.gradients import Gradients

    model = blocks(number)
    layers = inject(model, AdapterConfig(method="lora", rank=rank, targets=targets))
    enable(model, False)

    def loss_of(index):
        x = torch.full(
            (1, 64, 1280), 0.1, dtype=torch.bfloat16, requires_grad=True
        )  # 64 tokens: an image of 256 x 256
        for block in model["blocks"]:
            x = torch.utils.checkpoint.checkpoint(
                block, x, None, torch.ones(1, 77, 2048, dtype=torch.bfloat16), use_reentrant=False
            )
        return x.float().square().mean()

    gradients = Gradients(layers, loss_of, Accelerator(cpu=True), 2)
    if kind == "storing":
        for _ in gradients:
            pass
    elif kind == "streaming":
        gradients.projected(
            {path: layer.adapter.lora_A.detach()[None, None] for path, layer in layers.items()}
        )
    else:
        for index in range(2):
            loss_of(index).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, gradients.peak


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--targets", default="attention+ff")
    parser.add_argument(
        "--blocks",
        type=int,
        default=12,
        help="transformer blocks to measure on (the UNet has 60 of this width)",
    )
    parser.add_argument("--kind", choices=("storing", "streaming", "none"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        print(*measure(args.kind, args.blocks, args.rank, args.targets))
        return
    from diffusers import UNet2DConditionModel
    from torch import device

    from gralora_diffusion import AdapterConfig, inject
    from gralora_diffusion.adapters.allocation import gradient_bytes
    from gralora_diffusion.sdxl.single_file import SDXL_UNET

    with device("meta"):
        whole, some = UNet2DConditionModel.from_config(SDXL_UNET), blocks(args.blocks)
    expected = []
    for model in (whole, some):
        layers = inject(model, AdapterConfig(method="lora", rank=args.rank, targets=args.targets))
        expected.append(
            gradient_bytes(
                {path: dict(shape=tuple(x.weight.shape), rank=args.rank) for path, x in layers.items()}, 2
            )
        )
    print(f"MiB of gradients, {args.targets}, rank {args.rank}{'':>12}{'storing':>10}{'streaming':>10}")
    print_row("forecast for SDXL's UNet", expected[0])
    print_row(f"forecast for {args.blocks} blocks", expected[1])
    for number, (name, setting) in enumerate(ALLOCATORS.items()):
        found = {}
        for kind in ("none", "storing", "streaming"):
            command = [
                sys.executable,
                __file__,
                "--kind",
                kind,
                "--blocks",
                str(args.blocks),
                "--rank",
                str(args.rank),
                "--targets",
                args.targets,
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | setting
            )
            found[kind] = [int(n) for n in done.stdout.split()]
        if number == 0:
            print_row("counted by the pass", {kind: found[kind][1] for kind in expected[1]})
        print_row(
            f"measured, resident memory, {name}",
            {kind: found[kind][0] - found["none"][0] for kind in expected[1]},
        )


def print_row(name: str, sizes: dict) -> None:
    print(f"{name:<44}{sizes['storing'] / 2**20:>10.1f}{sizes['streaming'] / 2**20:>10.1f}")


if __name__ == "__main__":
    main()
