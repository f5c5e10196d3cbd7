"""The benchmark's section of single layers: time and memory, compared with PEFT's."""

import copy
import itertools
from collections.abc import Callable

import torch
from benchmark_turns import Bench, milliseconds_of, print_profile, ratio, ratio_text
from torch import nn

from gralora_diffusion import GraLoRALinear, LoRALinear

# Tokens, in, out: SDXL's attention at 1024 pixels, and its projection of text.
TEXT_TOKENS = 77
SHAPES = [(4096, 640, 640), (1024, 1280, 1280), (TEXT_TOKENS, 2048, 1280)]
SIZES = [(32, 2), (64, 4), (128, 4)]  # rank, k
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LORA, GRALORA, PEFT_LORA, PEFT_GRALORA, FROZEN = "LoRA", "GraLoRA", "PEFT LoRA", "PEFT GraLoRA", "frozen"
RATIOS = {  # of the times of two contestants
    "PEFT LoRA": (GRALORA, PEFT_LORA),
    "PEFT GraLoRA": (GRALORA, PEFT_GRALORA),
    "LoRA to LoRA": (LORA, PEFT_LORA),
}
# Tokens, in, out, rank, k, dtype, contestants: layers that miss a goal, text and a large rank in fp32.
PROFILES = [
    (TEXT_TOKENS, 2048, 1280, 64, 4, "bf16", (GRALORA, PEFT_LORA)),
    (4096, 640, 640, 128, 4, "fp32", (GRALORA, PEFT_GRALORA)),
]


def contestants(n: int, m: int, rank: int, k: int, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """The same frozen linear layer with each adapter, and without one."""
    import peft

    linear = nn.Linear(n, m, device=device, dtype=dtype).requires_grad_(False)
    lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["linear"])
    return {
        FROZEN: linear,
        LORA: LoRALinear.from_linear(copy.deepcopy(linear), rank),
        GRALORA: GraLoRALinear.from_linear(copy.deepcopy(linear), rank, k),
        PEFT_LORA: with_peft(copy.deepcopy(linear), lora),
        PEFT_GRALORA: with_peft(copy.deepcopy(linear), peft_gralora(rank, k)),
    }


def peft_gralora(rank: int, k: int):
    import peft

    return peft.GraloraConfig(r=rank, alpha=rank, gralora_k=k, hybrid_r=0, target_modules=["linear"])


def with_peft(linear: nn.Linear, config) -> nn.Module:
    """The layer with PEFT's adapter of this config."""
    import peft

    model = peft.get_peft_model(nn.ModuleDict(dict(linear=linear)), config)
    return model.base_model.model["linear"]


def inputs(bench: Bench, shape: tuple[int, int, int], dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(x [1, tokens, in], the gradient of the output [1, tokens, out]); text needs no gradient of x."""
    tokens, n, m = shape
    common = dict(device=bench.device, dtype=DTYPES[dtype])
    x = torch.randn(1, tokens, n, **common).requires_grad_(tokens != TEXT_TOKENS)
    return x, torch.randn(1, tokens, m, **common)


def autocast(x: torch.Tensor):
    """Under autocast where the layer is in half precision, as trainers run it."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16)


def training_step(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> Callable[[], None]:
    """A function that runs the layer forward and backward."""

    def run() -> None:
        own = x.detach().requires_grad_(x.requires_grad)
        with autocast(own):
            out = layer(own)
        if out.requires_grad:
            out.backward(gradient)
        for p in layer.parameters():
            p.grad = None

    return run


def kept(layer: nn.Module, x: torch.Tensor) -> float:
    """Bytes per token that forward keeps for backward: x is counted, parameters and their casts are not."""
    shapes = set()
    for p in layer.parameters():
        shapes.add(tuple(p.shape))
        if p.ndim == 2:
            shapes.add(tuple(p.T.shape))
    sizes = {}  # by address
    alive = []  # so that no address is used twice

    def keep(tensor):
        if tuple(tensor.shape) not in shapes:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(x):
        layer(x)
    return sum(sizes.values()) / (x.numel() / x.shape[-1])


def layers(bench: Bench, shapes=SHAPES, sizes=SIZES, dtypes=tuple(DTYPES)) -> list[dict]:
    print("\nlayer: forward + backward beyond the frozen layer's, as a ratio: median (quartiles);", end=" ")
    print("kept: bytes per token for the backward pass")
    print(f"{'tokens in -> out':<19}{'rank':>5}{'k':>3}{'':>6}{'frozen ms':>10}", end="  ")
    print(f"{'GraLoRA / PEFT LoRA':<20}{'GraLoRA / PEFT GraLoRA':<23}{'LoRA / PEFT LoRA':<20}", end="")
    print(f"{'kept: GraLoRA':>13}{'PEFT LoRA':>10}{'PEFT GraLoRA':>13}")
    rows = []
    for shape, (rank, k), dtype in itertools.product(shapes, sizes, dtypes):
        rows.append(compare(bench, shape, rank, k, dtype))
        print_row(rows[-1])
    return rows


def compare(bench: Bench, shape: tuple[int, int, int], rank: int, k: int, dtype: str) -> dict:
    """One row of the table."""
    tokens, n, m = shape
    made = contestants(n, m, rank, k, DTYPES[dtype], bench.device)
    x, gradient = inputs(bench, shape, dtype)
    times = bench.in_turns({name: training_step(layer, x, gradient) for name, layer in made.items()})
    return dict(
        tokens=tokens,
        n=n,
        m=m,
        rank=rank,
        k=k,
        dtype=dtype,
        ms=milliseconds_of(times),
        ratios={label: ratio(times, *pair, FROZEN) for label, pair in RATIOS.items()},
        kept={name: kept(made[name], x) for name in (GRALORA, LORA, PEFT_LORA, PEFT_GRALORA)},
    )


def print_row(row: dict) -> None:
    size = f"{row['n']} -> {row['m']}"
    first, second, third = (ratio_text(found) for found in row["ratios"].values())
    memory = row["kept"]
    print(f"{row['tokens']:>5} {size:<13}{row['rank']:>5}{row['k']:>3}{row['dtype']:>6}", end="")
    print(f"{row['ms'][FROZEN]:>10.2f}  {first:<20}{second:<23}{third:<20}", end="")
    print(f"{memory[GRALORA]:>13.0f}{memory[PEFT_LORA]:>10.0f}{memory[PEFT_GRALORA]:>13.0f}", flush=True)


def profile(bench: Bench) -> None:
    """torch.profiler's tables of layers that miss a goal, and of what they are compared with."""
    for tokens, n, m, rank, k, dtype, names in PROFILES:
        made = contestants(n, m, rank, k, DTYPES[dtype], bench.device)
        x, gradient = inputs(bench, (tokens, n, m), dtype)
        for name in names:
            title = f"{name}, {tokens} tokens, {n} -> {m}, rank {rank}, k {k}, {dtype}"
            print_profile(title, training_step(made[name], x, gradient), bench.device)
