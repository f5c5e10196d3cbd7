"""The factors of convolutions: flat matrices in models, with the kernel's dimensions in files.

So files describe themselves: lora_A [r, C, kh, kw] in the place of [r, C*kh*kw], and gralora_A
[k, C/k, kh, kw, r] in the place of [k, C/k*kh*kw, r], for kernels of 1 x 1 too.
"""

import torch

Kernel = tuple[int, int]
# Of the factors that have a kernel, as matrices.
DIMENSIONS = {"lora_A": 2, "gralora_A": 3, "ortho_A": 2, "start_A": 2}


def kernel_of(factors: dict[str, torch.Tensor]) -> Kernel | None:
    """(kh, kw) of a layer's factors as files have them; None for those of a linear layer."""
    for leaf, dimensions in DIMENSIONS.items():
        if leaf in factors and factors[leaf].ndim == dimensions + 2:
            kh, kw = factors[leaf].shape[2:4]
            return kh, kw
    return None


def with_kernel(factors: dict[str, torch.Tensor], kernel: Kernel | None) -> dict[str, torch.Tensor]:
    """Factors as models have them -> as files do, the same memory."""
    if kernel is None:
        return factors
    return {leaf: t.unflatten(1, (-1, *kernel)) if leaf in DIMENSIONS else t for leaf, t in factors.items()}


def as_matrix(leaf: str, factor: torch.Tensor) -> torch.Tensor:
    """One factor as files have it -> as models do."""
    return factor.flatten(1, 3) if factor.ndim == DIMENSIONS.get(leaf, factor.ndim) + 2 else factor


def as_matrices(factors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """with_kernel() backwards."""
    return {leaf: as_matrix(leaf, factor) for leaf, factor in factors.items()}


def with_kernels(
    down: torch.Tensor, up: torch.Tensor, kernel: Kernel | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [R, N], up [M, R]) as two convolutions, [R, C, kh, kw] and [M, R, 1, 1], if it is a kernel's."""
    return (down, up) if kernel is None else (down.unflatten(1, (-1, *kernel)), up[:, :, None, None])
