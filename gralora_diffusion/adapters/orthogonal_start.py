"""Orthogonal starts: of A alone in LoRA and GraLoRA, of both sides in Ortho-LoRA (after arXiv 2507.05964)."""

import functools
import math

import torch

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.adapters.ortholora import OrthoLoRA
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

ORTHOGONAL = 29  # in a generator's key: it draws the random matrices
VALUES = 30  # the same, of the random matrices whose singular values are taken


def origin_of(config: AdapterConfig) -> str | None:
    """config.orthogonal_start, which an Ortho-LoRA always has; None for the usual start."""
    return config.orthogonal_start or ("random" if config.method == "ortholora" else None)


@torch.no_grad()
def start_orthogonal(layers: dict[str, AdaptedLayer], source: str, seed: int) -> None:
    """Set the factors of every adapter to orthogonal ones, with a delta of zero.

    source: "random", of a Gaussian matrix, or "base", of the layer's own weight, whose last singular vectors
    are taken, which the base uses least (arXiv 2507.05964, section "Orthogonal weight initialization"). Of
    LoRA and GraLoRA A is set, in the norm that the random start has, and B stays zero; of GraLoRA each slice
    of the input is a matrix of its own. Raises ConfigError for a kind without such an A, or ranks that do not
    fit in a slice.
    """
    for number, (path, layer) in enumerate(layers.items()):
        adapter, random = layer.adapter, generator(seed, ORTHOGONAL, number)
        weight = None
        if source == "base":
            weight = layer.weight.detach().float().reshape(layer.matrix_shape)
        if isinstance(adapter, OrthoLoRA):
            if weight is None:
                adapter.put(*random_triplets(adapter, random, seed))
            else:
                adapter.put(*last(weight, adapter.rank))
        elif isinstance(adapter, LoRA | GraLoRA):
            start_A(adapter, weight, random, path)
        else:
            problem = f"{path} has an adapter without A: drop --orthogonal_start"
            raise ConfigError(problem, option="orthogonal_start")


def start_A(adapter: LayerAdapter, weight: torch.Tensor | None, random: torch.Generator, path: str) -> None:
    """Orthogonal ranks of each A; weight [M, N]: whose last right singular vectors they are, or None."""
    for A, _ in adapter.factors:
        slices = A if A.ndim == 3 else A.T[None]  # [k, N/k, r]
        k, width, ranks = slices.shape
        if ranks > width or (weight is not None and ranks > min(width, weight.shape[0])):
            problem = f"--orthogonal_start needs ranks of at most {width} in {path}, not {ranks}"
            raise ConfigError(f"{problem}: lower --rank or --gralora_k", option="orthogonal_start")
        for index in range(k):
            if weight is None:
                matrix = torch.randn(ranks, width, generator=random)
            else:
                matrix = weight[:, index * width : (index + 1) * width]
            right = torch.linalg.svd(matrix, full_matrices=False).Vh[-ranks:].T
            slices[index].copy_(right / math.sqrt(3))  # a row of Kaiming-uniform(a = sqrt 5) has this norm


def last(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The singular triplets of the smallest values: A [r, N], S [r], B [M, r]."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return vh[-rank:], s[-rank:], u[:, -rank:]


def random_triplets(
    adapter: OrthoLoRA, random: torch.Generator, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """last() of a matrix [M, N] of N(0, 1/r^2), without its SVD.

    The singular vectors of a Gaussian matrix are uniform, and independent of its singular values: they are
    drawn by QR of thin matrices, and the values are those of one matrix for all layers of a shape.
    """
    sizes = adapter.out_features, adapter.in_features, adapter.rank
    A = uniform_columns(adapter.in_features, adapter.rank, random).T
    B = uniform_columns(adapter.out_features, adapter.rank, random)
    return A, last_values(*sizes, seed), B


def uniform_columns(rows: int, columns: int, random: torch.Generator) -> torch.Tensor:
    """Orthonormal columns, uniformly distributed (Mezzadri, math-ph/0609050)."""
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=random))
    return q * r.diagonal().sign()


@functools.lru_cache(maxsize=64)
def last_values(m: int, n: int, rank: int, seed: int) -> torch.Tensor:
    """The last singular values, [r], of a matrix [M, N] of N(0, 1/r^2)."""
    matrix = torch.randn(m, n, generator=generator(seed, VALUES, m, n)) / rank
    return torch.linalg.svdvals(matrix)[-rank:]
