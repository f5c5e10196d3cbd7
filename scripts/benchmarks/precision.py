"""The error of adapters' gradients in bf16, relative to fp32, on the embedded base: autocast or none.

Autocast as CUDA does it: norms give fp32, and the products after them round to bf16.
"""

import argparse
import functools
import statistics

import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion import AdapterConfig, console, inject, load_sdxl
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.sdxl.base import Prompts, encode_prompts, predict
from gralora_diffusion.training.loss import add_noise

SIDE = 16  # of the latents
WAYS = ("autocast, norms give fp32", "all in bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--draws", type=int, default=60)
    draws = parser.parse_args().draws
    console.quiet_libraries()
    exact = adapted(torch.float32)
    models = adapted(torch.bfloat16), adapted(torch.bfloat16)
    for module in models[0].unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.forward = functools.partial(norm_in_fp32, module)
    errors = []
    for number in range(draws):
        inputs, noise = draw(exact, number)
        expected = gradient(exact, inputs, noise, torch.float32)
        found = [
            gradient(models[0], inputs, noise, torch.bfloat16, autocast=True),
            gradient(models[1], inputs, noise, torch.bfloat16),
        ]
        errors.append([float((g - expected).norm() / expected.norm()) for g in found])
    for way, values in zip(WAYS, zip(*errors, strict=True), strict=True):
        middle, mean = statistics.median(values), statistics.mean(values)
        found = f"median {middle:.4f}  mean {mean:.4f}  largest {max(values):.2f}"
        print(f"{way:<28} {found}  ({console.counted(draws, 'draw')})")
    p = scipy.stats.wilcoxon([second - first for first, second in errors]).pvalue
    print(f"Wilcoxon's test of the difference: p {p:.2f}")


def adapted(dtype: torch.dtype):
    """The embedded base with a GraLoRA whose factors are not zero."""
    pipeline = load_sdxl(dtype=dtype)
    torch.manual_seed(0)
    inject(pipeline.unet, AdapterConfig(rank=16, k=2))
    random = torch.Generator().manual_seed(1)
    for name, parameter in adapter_parameters(pipeline.unet).items():
        if name.endswith("_B"):
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    pipeline.unet.train()
    return pipeline


def norm_in_fp32(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = None if norm.weight is None else norm.weight.float()
    bias = None if norm.bias is None else norm.bias.float()
    with torch.autocast("cpu", enabled=False):
        if isinstance(norm, nn.GroupNorm):
            return F.group_norm(x.float(), norm.num_groups, weight, bias, norm.eps)
        return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)


def draw(pipeline, number: int) -> tuple[tuple, torch.Tensor]:
    """((noisy, timestep, prompts, sizes), noise) of draw `number`."""
    random = torch.Generator().manual_seed(100 + number)
    shape = 1, pipeline.unet.config.in_channels, SIDE, SIDE
    latents = 0.8 * torch.randn(shape, generator=random)
    noise = torch.randn(shape, generator=random)
    timestep = torch.randint(0, 1000, (1,), generator=random)
    noisy = add_noise(latents, noise, timestep, pipeline.scheduler.alphas_cumprod.float())
    with torch.no_grad():
        prompts = encode_prompts(pipeline, ["a photo of sks robot on a red table"])
    return (noisy, timestep, prompts, torch.tensor([[64.0, 64, 0, 0, 64, 64]])), noise


def gradient(
    pipeline, inputs: tuple, noise: torch.Tensor, dtype: torch.dtype, autocast: bool = False
) -> torch.Tensor:
    """Of the loss by all numbers of the adapters, float64 [P]."""
    noisy, timestep, prompts, sizes = inputs
    pipeline.unet.zero_grad(set_to_none=True)
    prompts = Prompts(*(part.to(dtype) for part in prompts))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        predicted = predict(pipeline.unet, noisy.to(dtype), timestep, prompts, sizes)
    (predicted.float() - noise).square().mean().backward()
    gradients = [p.grad.flatten().double() for p in adapter_parameters(pipeline.unet).values()]
    return torch.cat(gradients)


if __name__ == "__main__":
    main()
