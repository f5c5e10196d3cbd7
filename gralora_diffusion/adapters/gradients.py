"""Gradients of the adapted layers' frozen weights under the training loss.

They are summed in fp32, with one layer's gradient in memory at a time.
"""

import functools
import math
from collections.abc import Callable, Iterator

import torch

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.frozen_weight import quantized
from gralora_diffusion.adapters.gora import project
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

# the first batches of the gradient pass and of the line search: no run trains on so many
GRADIENTS = 2**30
HELD_OUT = 2**31
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: any number of its multiples, modulo 2^64, is spread evenly
SAMPLED = 256  # entries of each weight whose gradient is kept batch by batch


def stratified(draw: Callable, low: float = 0.0, high: float = 1.0) -> Callable:
    """`draw` with less noise in the mean of a few batches.

    The VAE's posterior is at its mean, and timesteps cover [low, high) of the schedule evenly in place of at
    random.
    """

    def even(shape, num_train_timesteps: int, seed: int, positions, *options):
        posterior, noise, timesteps = draw(shape, num_train_timesteps, seed, positions, *options)
        start = int(torch.randint(2**62, (1,), generator=generator(seed, 6))) * 4
        first = round(low * num_train_timesteps)
        last = round(high * num_train_timesteps)
        places = [(start + position * GOLDEN) % 2**64 for position in positions]
        even_timesteps = [first + ((last - first) * place >> 64) for place in places]
        return torch.zeros_like(posterior), noise, torch.tensor(even_timesteps, dtype=timesteps.dtype)

    return even


class Gradients:
    """The mean over `batches` batches of each layer's weight gradient.

    The sums are kept and iterated again at no cost if they all fit in `memory` bytes; else as many layers as
    fit are summed in one pass over the batches, given out, freed, and the same batches are run again for the
    next ones.  Processes share the batches.
    """

    def __init__(
        self,
        layers: dict[str, AdaptedLayer],
        loss_of: Callable,
        accelerator,
        batches: int,
        memory: float = math.inf,
    ):
        self.layers = layers
        self.loss_of = loss_of
        self.accelerator = accelerator
        self.batches = batches
        self.groups = grouped(layers, memory)
        self.kept = None  # the sums, if those of all layers fit
        self.peak = 0  # bytes of gradients and sums at once
        self.passes = 0
        self.ran = 0  # batches, over all passes
        for path, layer in layers.items():
            if quantized(layer.weight):
                problem = "GoRA needs the gradient of the base's weights, and this base is quantized"
                raise ConfigError(f"{path}: {problem}: load it in bf16")

    def settle(self, settled: Callable[[dict], bool]) -> None:
        """Sum the first group's gradients over 8, 16, 32, ... batches until settled(samples) or all are used.

        samples: {path: (weights [entries], gradients [n, entries])}, the same random entries of each weight
        in every batch.
        """
        picks = {}
        for i, (path, layer) in enumerate(self.layers.items()):
            picks[path] = sampled_entries(layer.weight, i)
        samples = {path: torch.zeros(self.batches, len(pick)) for path, pick in picks.items()}
        sums = self.empty(self.groups[0])
        done = 0
        most = self.batches

        def take(path, batch, gradient):
            samples[path][batch] = gradient.flatten()[picks[path].to(gradient.device)].cpu()
            if path in sums:
                sums[path] += gradient

        while done < most:
            until = min(most, max(8, 2 * done))
            self.run(self.layers, range(done, until), take, sums)
            done = until
            found = {}
            for path, pick in picks.items():
                weights = self.layers[path].weight.flatten()[pick].float().cpu()
                gradients = self.total(samples[path][:done].to(self.accelerator.device)).cpu()
                found[path] = (weights, gradients)
            if settled(found):
                break
        self.batches = done
        self.kept = sums

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for group in self.groups:
            if self.kept is not None and set(self.kept) == set(group):
                sums = self.kept
            else:
                sums = self.empty(group)
                self.run(group, range(self.batches), functools.partial(add_to, sums), sums)
            self.kept = sums if len(self.groups) == 1 else None
            for path in group:
                G = self.total(sums[path] if self.kept else sums.pop(path)) / self.batches
                if not G.isfinite().all():
                    problem = "the gradient of the base's weight is not finite"
                    raise ConfigError(f"{path}: {problem}: use --mixed_precision bf16 or no")
                yield path, G

    def projected(self, A: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{path: project(G, A)} without any G: only these sums, [k, k, M/k, g] each, are kept.

        One pass over the batches is enough.
        """
        if self.kept is not None:
            return {path: project(G, A[path]) for path, G in self}
        sums = {}
        for path, layer in self.layers.items():
            k, _, g, _ = A[path].shape
            sums[path] = torch.zeros(k, k, layer.out_features // k, g, device=layer.weight.device)

        def take(path, _, gradient):
            sums[path] = sums[path] + project(gradient, A[path])

        self.run(self.layers, range(self.batches), take, sums)
        return {path: self.total(s) / self.batches for path, s in sums.items()}

    def run(self, layers: dict[str, AdaptedLayer], batches: range, take: Callable, sums: dict) -> None:
        """take(path, batch, gradient [M, N] in fp32) for each of these layers and of this process's batches.

        The gradient is then freed.
        """
        scale = 1024.0 if self.accelerator.scaler else 1.0  # fp16 has no digits for small gradients
        mine = [b for b in batches if b % self.accelerator.num_processes == self.accelerator.process_index]
        self.passes += 1
        self.ran += len(batches)

        def hand_over(path, weight):
            gradient = weight.grad.flatten(1).float().div_(scale)
            copied = 0 if gradient.dtype == weight.dtype else weight.grad.nbytes
            self.peak = max(self.peak, sum(s.nbytes for s in sums.values()) + gradient.nbytes + copied)
            weight.grad = None
            take(path, batch, gradient)

        hooks = []
        try:
            for path, layer in layers.items():
                layer.weight.requires_grad_(True)
                hook = functools.partial(hand_over, path)
                hooks.append(layer.weight.register_post_accumulate_grad_hook(hook))
            for batch in mine:
                loss = self.loss_of(GRADIENTS + batch) * scale
                # SDXL reads the text encoders' penultimate states: a last layer has no part in the loss
                if loss.requires_grad:
                    loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
            for layer in layers.values():
                layer.weight.requires_grad_(False)

    def empty(self, group: dict[str, AdaptedLayer]) -> dict[str, torch.Tensor]:
        sums = {}
        for path, layer in group.items():
            sums[path] = torch.zeros(layer.matrix_shape, device=layer.weight.device)
        return sums

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return tensor if self.accelerator.num_processes == 1 else self.accelerator.reduce(tensor, "sum")


def grouped(layers: dict[str, AdaptedLayer], memory: float) -> list[dict[str, AdaptedLayer]]:
    """Layers in order, in as few groups as fit in `memory` bytes of fp32 sums each.

    A layer that does not fit is a group of its own.
    """
    groups = []
    used = 0
    for path, layer in layers.items():
        size = 4 * layer.weight.numel()
        if not groups or used + size > memory:
            groups.append({})
            used = 0
        groups[-1][path] = layer
        used += size
    return groups


def sampled_entries(weight: torch.Tensor, key: int) -> torch.Tensor:
    """The same random entries of this weight on every machine; all of a small one."""
    if weight.numel() <= SAMPLED:
        return torch.arange(weight.numel())
    return torch.randint(weight.numel(), (SAMPLED,), generator=generator(7, key))


def add_to(sums: dict[str, torch.Tensor], path: str, _, gradient: torch.Tensor) -> None:
    sums[path].add_(gradient)
