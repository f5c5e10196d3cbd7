"""scripts/benchmark.py's sections of single layers: time and memory beside PEFT's, and how cost grows with rank, k, tokens, images and adapters."""

import copy

import torch
from benchmark_turns import Bench, milliseconds, profiled, ratio, shown
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gralora_diffusion import GraLoRALinear, LoRALinear

SHAPES = [
    (4096, 640, 640),
    (1024, 1280, 1280),
    (77, 2048, 1280),
]  # tokens, in, out: SDXL's attention at 1024 pixels, and its text
SIZES = [(32, 2), (64, 4), (128, 4)]  # rank, k
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS, GRALORA, PEFT, PEFT_GRALORA, FROZEN = "LoRA", "GraLoRA", "PEFT LoRA", "PEFT GraLoRA", "frozen"


def contestants(n: int, m: int, rank: int, k: int, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """The same frozen linear layer with each adapter, and without."""
    import peft

    linear = nn.Linear(n, m, device=device, dtype=dtype).requires_grad_(False)

    def wrapped(config):
        return peft.get_peft_model(
            nn.ModuleDict(dict(linear=copy.deepcopy(linear))), config
        ).base_model.model["linear"]

    return {
        FROZEN: linear,
        OURS: LoRALinear.from_linear(copy.deepcopy(linear), rank),
        GRALORA: GraLoRALinear.from_linear(copy.deepcopy(linear), rank, k),
        PEFT: wrapped(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["linear"])),
        PEFT_GRALORA: wrapped(
            peft.GraloraConfig(r=rank, alpha=rank, gralora_k=k, hybrid_r=0, target_modules=["linear"])
        ),
    }


def step(layer: nn.Module, x: torch.Tensor, g: torch.Tensor):
    """Forward and backward, under autocast where the layer is in half precision, as trainers run it; text needs no gradient of its own."""

    def run() -> None:
        given = x.detach().requires_grad_(x.requires_grad)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            out = layer(given)
        if out.requires_grad:
            out.backward(g)
        for p in layer.parameters():
            p.grad = None

    return run


def kept(layer: nn.Module, x: torch.Tensor) -> float:
    """Bytes per token that a forward pass keeps for the backward pass, x included, parameters and their casts not."""
    shapes = {tuple(s) for p in layer.parameters() for s in (p.shape, p.T.shape if p.ndim == 2 else p.shape)}
    storages, held = {}, []

    def keep(tensor):
        if tuple(tensor.shape) not in shapes:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)  # so that no address is used twice
        return tensor

    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast:
        layer(x)
    return sum(storages.values()) / (x.numel() / x.shape[-1])


def layers(bench: Bench, shapes=SHAPES, sizes=SIZES, dtypes=tuple(DTYPES)) -> list[dict]:
    print(
        "\nlayer: forward + backward beyond the frozen layer's, as a ratio: median (quartiles); kept: bytes per token for the backward pass"
    )
    print(
        f"{'tokens in -> out':<19}{'rank':>5}{'k':>3}{'':>6}{'frozen ms':>10}  {'GraLoRA / PEFT LoRA':<20}{'GraLoRA / PEFT GraLoRA':<23}",
        end="",
    )
    print(f"{'LoRA / PEFT LoRA':<20}{'kept: GraLoRA':>13}{'PEFT LoRA':>10}{'PEFT GraLoRA':>13}")
    found = []
    for tokens, n, m in shapes:
        for rank, k in sizes:
            for name in dtypes:
                made = contestants(n, m, rank, k, DTYPES[name], bench.device)
                common = dict(device=bench.device, dtype=DTYPES[name])
                x, g = (
                    torch.randn(1, tokens, n, **common).requires_grad_(tokens != 77),
                    torch.randn(1, tokens, m, **common),
                )
                times = bench.in_turns({kind: step(layer, x, g) for kind, layer in made.items()})
                pairs = {
                    "PEFT LoRA": (GRALORA, PEFT),
                    "PEFT GraLoRA": (GRALORA, PEFT_GRALORA),
                    "LoRA to LoRA": (OURS, PEFT),
                }
                ratios = {label: ratio(times, *pair, FROZEN) for label, pair in pairs.items()}
                memory = {kind: kept(made[kind], x) for kind in (GRALORA, OURS, PEFT, PEFT_GRALORA)}
                per_kind = {kind: milliseconds(t) for kind, t in times.items()}
                found.append(
                    dict(
                        tokens=tokens,
                        n=n,
                        m=m,
                        rank=rank,
                        k=k,
                        dtype=name,
                        ms=per_kind,
                        ratios=ratios,
                        kept=memory,
                    )
                )
                first, second, third = (shown(r) for r in ratios.values())
                print(
                    f"{tokens:>5} {f'{n} -> {m}':<13}{rank:>5}{k:>3}{name:>6}{per_kind[FROZEN]:>10.2f}  {first:<20}{second:<23}{third:<20}",
                    end="",
                )
                print(
                    f"{memory[GRALORA]:>13.0f}{memory[PEFT]:>10.0f}{memory[PEFT_GRALORA]:>13.0f}", flush=True
                )
    return found


PROFILES = [
    (77, 2048, 1280, 64, 4, "bf16", (GRALORA, PEFT)),
    (4096, 640, 640, 128, 4, "fp32", (GRALORA, PEFT_GRALORA)),
]


def profile(bench: Bench) -> None:
    """torch.profiler's tables of a step of our GraLoRA and of what it is compared with, where a goal is missed: text, and a large rank in fp32."""
    for tokens, n, m, rank, k, dtype, kinds in PROFILES:
        made = contestants(n, m, rank, k, DTYPES[dtype], bench.device)
        common = dict(device=bench.device, dtype=DTYPES[dtype])
        x, g = (
            torch.randn(1, tokens, n, **common).requires_grad_(tokens != 77),
            torch.randn(1, tokens, m, **common),
        )
        for kind in kinds:
            profiled(
                f"{kind}, {tokens} tokens, {n} -> {m}, rank {rank}, k {k}, {dtype}",
                step(made[kind], x, g),
                bench.device,
            )


def sums(forward_only: bool, layer: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """(operations by torch's own count, where a dot product of n terms is 2 n; multiplications and additions, 2 n - 1) of one pass."""
    counts = [0, 0]

    def product(a_shape, b_shape, *_, into: bool, **__):
        terms, results = a_shape[-1], torch.Size(a_shape[:-1]).numel() * b_shape[-1]
        counts[0] += 2 * terms * results
        counts[1] += (2 * terms - 1) * results + (results if into else 0)
        return 2 * terms * results

    def plain(a, b, *rest, out_shape=None, **kwargs):
        return product(a, b, into=False)

    def added(y, a, b, *rest, out_shape=None, beta=1, **kwargs):
        return product(a, b, into=beta != 0)

    aten = torch.ops.aten
    mapping = dict.fromkeys((aten.mm, aten.bmm), plain) | dict.fromkeys(
        (aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_), added
    )
    with FlopCounterMode(display=False, custom_mapping=mapping):
        out = layer(x)
        if not forward_only:
            out.backward(torch.ones_like(out))
    return counts[0], counts[1]


def operations(
    tokens: int = 64, n: int = 320, m: int = 640, rank: int = 64, blocks=(1, 2, 4, 8)
) -> list[dict]:
    """GraLoRA's operations less LoRA's, and what theory says: each of the tokens * rank dot products over N becomes k of them over N/k, which
    saves k - 1 additions; and so in the backward pass, over M.  torch's own count, 2 n for n terms, cannot see it."""
    found, linear = [], nn.Linear(n, m, bias=False)
    for k in blocks:
        row = dict(tokens=tokens, n=n, m=m, rank=rank, k=k)
        for name, forward_only, passes in (("forward", True, 1), ("both", False, 2)):
            x = torch.randn(tokens, n, requires_grad=True)
            theirs = sums(forward_only, LoRALinear.from_linear(copy.deepcopy(linear), rank), x)
            ours = sums(forward_only, GraLoRALinear.from_linear(copy.deepcopy(linear), rank, k), x)
            row[name] = dict(
                torch=ours[0] - theirs[0], exact=ours[1] - theirs[1], theory=-passes * (k - 1) * rank * tokens
            )
        found.append(row)
    return found


def scaling(bench: Bench, plot: str, tokens: int = 1024, width: int = 1280) -> dict:
    """Forward + backward of one layer, beyond the frozen one's, with one size growing at a time."""
    ranks = [r for r in (8, 16, 32, 64, 128, 256) if r <= width // 2]
    series = {
        "rank": [(r, dict(rank=r)) for r in ranks],
        "k": [(k, dict(k=k)) for k in (1, 2, 4, 8)],
        "tokens": [(t, dict(tokens=t)) for t in (tokens // 8, tokens // 4, tokens // 2, tokens)],
        "images": [(i, dict(images=i)) for i in (1, 2, 3, 4)],
        "adapters": [(a, dict(adapters=a)) for a in (1, 2, 3, 4)],
    }
    found = {}
    print("\nscaling: ms beyond the frozen layer's")
    for axis, points in series.items():
        made = {}
        for value, change in points:
            for kind in ("lora", "gralora"):
                for frozen in (True, False):
                    made[value, kind, frozen] = scaled(
                        bench.device, kind, frozen, **dict(tokens=tokens, width=width) | change
                    )
        times = bench.in_turns(made)
        found[axis] = {
            kind: [
                (
                    value,
                    milliseconds(
                        [
                            a - b
                            for a, b in zip(times[value, kind, False], times[value, kind, True], strict=True)
                        ]
                    ),
                )
                for value, _ in points
            ]
            for kind in ("lora", "gralora")
        }
        print(
            f"{axis:<9}"
            + "; ".join(
                f"{kind}: " + ", ".join(f"{v}: {ms:.2f}" for v, ms in line)
                for kind, line in found[axis].items()
            ),
            flush=True,
        )
    found["operations"] = operations()
    for row in found["operations"]:
        print(
            f"operations, k {row['k']}: {row['forward']['exact']:+,} to LoRA's forward (theory {row['forward']['theory']:+,}), ",
            end="",
        )
        print(
            f"{row['both']['exact']:+,} to forward + backward (theory {row['both']['theory']:+,}); by torch's count {row['both']['torch']:+,}"
        )
    draw(found, plot)
    return found


def scaled(
    device: str,
    kind: str,
    frozen: bool,
    tokens: int,
    width: int,
    rank: int = 32,
    k: int = 2,
    images: int = 1,
    adapters: int = 1,
):
    x = torch.randn(images, tokens, width, device=device, requires_grad=True)
    layer = nn.Linear(width, width, device=device).requires_grad_(False)
    if not frozen:

        def make(linear):
            return (
                GraLoRALinear.from_linear(linear, rank, k)
                if kind == "gralora"
                else LoRALinear.from_linear(linear, rank)
            )

        layer, others = (
            make(layer),
            [make(nn.Linear(width, width, device=device)) for _ in range(adapters - 1)],
        )
        for other in others:
            layer.add(f"other {len(layer.adapters)}", other.adapter)
    return step(layer, x, torch.randn_like(x))


def draw(found: dict, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = [axis for axis in found if axis != "operations"]
    figure, plots = pyplot.subplots(1, len(axes), figsize=(4 * len(axes), 3.4), layout="constrained")
    for plot, axis in zip(plots, axes, strict=True):
        for kind, line in found[axis].items():
            plot.plot(
                *zip(*line, strict=True), marker="o", label={"lora": "LoRA", "gralora": "GraLoRA"}[kind]
            )
        plot.set(xlabel=axis, ylabel="ms beyond the frozen layer", ylim=(0, None), xlim=(0, None))
        plot.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"plots: {path}")
