"""An orthogonal start of LoRA and GraLoRA: the ranks of A begin at right angles (after arXiv 2507.05964)."""

import math

import torch

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

ORTHOGONAL = 29  # in a generator's key: it draws the random matrices


@torch.no_grad()
def start_orthogonal(layers: dict[str, AdaptedLayer], source: str, seed: int) -> None:
    """Set A of each part to orthogonal ranks of the norm that the random start has; B stays zero.

    source: "random", the right singular vectors of a Gaussian matrix, or "base", the last right singular
    vectors of the layer's own weight, which the base uses least (arXiv 2507.05964, section "Orthogonal weight
    initialization"). T-LoRA's B begins at the left ones, and their product is subtracted in each step; here B
    begins at zero, so that files of other tools hold the adapter. Of GraLoRA each slice of the input is a
    matrix of its own. Raises ConfigError for a kind without such an A, or ranks that do not fit in a slice.
    """
    for number, (path, layer) in enumerate(layers.items()):
        adapter, random = layer.adapter, generator(seed, ORTHOGONAL, number)
        if not isinstance(adapter, LoRA | GraLoRA):
            problem = f"{path} has an adapter without A: drop --orthogonal_start"
            raise ConfigError(problem, option="orthogonal_start")
        weight = None
        if source == "base":
            weight = layer.weight.detach().float().reshape(layer.matrix_shape)
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
                slices[index].copy_(
                    right / math.sqrt(3)
                )  # a row of Kaiming-uniform(a = sqrt 5) has this norm
