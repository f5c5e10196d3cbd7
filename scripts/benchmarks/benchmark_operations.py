"""How many operations GraLoRA takes compared with LoRA: counted, and by theory."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gralora_diffusion import GraLoRALinear, LoRALinear


def operations(
    tokens: int = 64, n: int = 320, m: int = 640, rank: int = 64, blocks=(1, 2, 4, 8)
) -> list[dict]:
    """GraLoRA's operations less LoRA's, and what theory says, of the forward pass and of both passes.

    Each of the tokens * rank dot products over N becomes k of them over N/k, which saves k - 1 additions; and
    so over M in the backward pass.  torch's own count, 2 n for n terms, does not see it.
    """
    rows = []
    linear = nn.Linear(n, m, bias=False)
    for k in blocks:
        row = dict(tokens=tokens, n=n, m=m, rank=rank, k=k)
        for name, passes in (("forward", 1), ("both", 2)):
            x = torch.randn(tokens, n, requires_grad=True)
            lora = count_operations(LoRALinear.from_linear(copy.deepcopy(linear), rank), x, passes)
            gralora = count_operations(GraLoRALinear.from_linear(copy.deepcopy(linear), rank, k), x, passes)
            theory = -passes * (k - 1) * rank * tokens
            row[name] = dict(torch=gralora[0] - lora[0], exact=gralora[1] - lora[1], theory=theory)
        rows.append(row)
    return rows


def count_operations(layer: nn.Module, x: torch.Tensor, passes: int = 1) -> tuple[int, int]:
    """(torch's own count, multiplications and additions) of the matrix products.

    torch counts 2 n for a dot product of n terms, which takes 2 n - 1.  passes: 1 forward, 2 backward too.
    """
    counts = [0, 0]

    def count(a_shape, b_shape, adds_to_result: bool) -> int:
        terms = a_shape[-1]
        results = torch.Size(a_shape[:-1]).numel() * b_shape[-1]
        counts[0] += 2 * terms * results
        counts[1] += (2 * terms - 1) * results
        if adds_to_result:
            counts[1] += results
        return 2 * terms * results

    def product(a, b, *rest, out_shape=None, **kwargs) -> int:
        return count(a, b, adds_to_result=False)

    def product_and_sum(y, a, b, *rest, out_shape=None, beta=1, **kwargs) -> int:
        return count(a, b, adds_to_result=beta != 0)

    aten = torch.ops.aten
    counters = dict.fromkeys((aten.mm, aten.bmm), product)
    counters |= dict.fromkeys((aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_), product_and_sum)
    with FlopCounterMode(display=False, custom_mapping=counters):
        out = layer(x)
        if passes == 2:
            out.backward(torch.ones_like(out))
    return counts[0], counts[1]
