"""Layers of one input that compute together give what each gives alone, and their gradients."""

import copy

import pytest
import torch
from torch import nn

from gralora_diffusion import AdapterConfig, inject
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.adapters.shared_input import layers_of_one_input
from gralora_diffusion.adapters.tlora import active_ranks
from gralora_diffusion.training.flat_factors import FlatFactors

N = 32
KINDS = {
    "GraLoRA": AdapterConfig(rank=8, k=2, targets="to_"),
    "Hybrid GraLoRA": AdapterConfig(rank=8, k=2, hybrid_rank=4, targets="to_"),
    "LoRA": AdapterConfig(method="lora", rank=8, targets="to_"),
}


class Attention(nn.Module):
    """Three projections; with is_cross_attention the last two read another input."""

    def __init__(self, cross: bool):
        super().__init__()
        self.is_cross_attention = cross
        self.to_q, self.to_k, self.to_v = nn.Linear(N, N), nn.Linear(N, 2 * N), nn.Linear(N, 2 * N)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        other = other if self.is_cross_attention else x
        q, k, v = self.to_q(x), self.to_k(other), self.to_v(other)
        return q.sin() + k.cos()[..., :N] + v.sin()[..., N:]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(False), Attention(True)
        self.third = Attention(False)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.second(self.third(self.first(x, other), other), other)


def adapted(kind: str) -> Model:
    torch.manual_seed(0)
    model = Model().bfloat16()
    inject(model, KINDS[kind])
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter, std=0.2)
    return model.train()


def flat(model: nn.Module, shared: bool, unswapped: bool = False) -> FlatFactors:
    groups = [dict(params=list(adapter_parameters(model).values()))]
    if shared:
        return FlatFactors.of_models(groups, [model], torch.bfloat16, unswapped)
    factors = FlatFactors(groups, torch.bfloat16)
    factors.connect(layer.adapter for layer in adapted_layers(model).values())
    return factors


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the rounding of bf16 of the largest number."""
    assert (found - expected).abs().max() <= 0.03 * expected.abs().max() + 1e-6


@pytest.mark.parametrize("unswapped", [False, True], ids=["as on CPUs", "as on GPUs"])
@pytest.mark.parametrize("masked", [False, True], ids=["all ranks", "T-LoRA"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_each_layer_alone(kind, masked, unswapped):
    alone, together = adapted(kind), adapted(kind)
    factors = flat(alone, False), flat(together, True, unswapped)
    assert [len(layers) for layers in layers_of_one_input(together)] == [3, 2, 3]
    assert all(layer.shared is None for layer in adapted_layers(alone).values())
    if masked:
        for model in (alone, together):
            for layer in adapted_layers(model).values():
                adapter = layer.adapter
                timesteps = torch.tensor([900, 100])
                adapter.active_ranks = {n: active_ranks(timesteps, n, 1) for n in adapter.part_ranks}
    for number in range(2):
        random = torch.Generator().manual_seed(number)
        x, other = (torch.randn(2, 5, N, generator=random).bfloat16().requires_grad_() for _ in range(2))
        found = []
        for model, own in zip((alone, together), factors, strict=True):
            x.grad = other.grad = None
            y = model(x, other)
            y.float().square().sum().backward()
            own.collect()
            found.append((y.detach().clone(), x.grad.clone(), other.grad.clone()))
        for expected, same in zip(*found, strict=True):
            close(same, expected)
    expected = adapter_parameters(alone)
    for name, parameter in adapter_parameters(together).items():
        assert expected[name].grad.any()
        close(parameter.grad, expected[name].grad)


@pytest.mark.parametrize("unswapped", [False, True], ids=["as on CPUs", "as on GPUs"])
def test_fp64_gradients_equal_autograds(monkeypatch, unswapped):
    """The same function in float64, so that only a wrong formula could differ."""
    for kind in KINDS:
        plain = adapted(kind).double()
        own = copy.deepcopy(plain)
        for name, parameter in adapter_parameters(own).items():
            parameter.data = adapter_parameters(plain)[name].detach().clone()
        monkeypatch.setattr(torch, "zeros", as_double(torch.zeros))
        groups = [dict(params=list(adapter_parameters(own).values()))]
        factors = FlatFactors.of_models(groups, [own], torch.float64, unswapped)
        monkeypatch.undo()
        random = torch.Generator().manual_seed(1)
        x, other = (torch.randn(4, N, generator=random, dtype=torch.float64) for _ in range(2))
        plain(x, other).square().sum().backward()
        own(x, other).square().sum().backward()
        factors.collect()
        expected = adapter_parameters(plain)
        for name, parameter in adapter_parameters(own).items():
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-10, atol=1e-10)


def test_in_fp32_the_parameters_keep_their_order():
    """As on a GPU without mixed precision."""
    plain = adapted("GraLoRA").float()
    own = copy.deepcopy(plain)
    groups = [dict(params=list(adapter_parameters(own).values()))]
    FlatFactors.of_models(groups, [own], torch.float32, unswapped=True)
    x, other = torch.randn(2, 4, N, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(own(x, other), plain(x, other))


def as_double(zeros):
    return lambda size, dtype=torch.float64, **options: zeros(size, dtype=torch.float64, **options)


@pytest.mark.parametrize("unswapped", [False, True], ids=["as on CPUs", "as on GPUs"])
def test_checkpointing_recomputes_the_same(unswapped):
    from torch.utils.checkpoint import checkpoint

    plain, recomputed = adapted("GraLoRA"), adapted("GraLoRA")
    factors = flat(plain, True, unswapped), flat(recomputed, True, unswapped)
    x = torch.randn(3, N, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    plain(x, x).float().sum().backward()
    checkpoint(recomputed, x, x, use_reentrant=False).float().sum().backward()
    for own in factors:
        own.collect()
    assert torch.equal(factors[0].gradients, factors[1].gradients)


def test_layers_that_differ_or_drop_out_compute_alone():
    config = AdapterConfig(rank=8, k=2, targets="to_", rank_pattern={"to_v": 4})
    model = Model().bfloat16()
    inject(model, config)
    assert not list(layers_of_one_input(model))
    model = Model().bfloat16()
    inject(model, AdapterConfig(rank=8, k=2, targets="to_", dropout=0.1))
    assert not list(layers_of_one_input(model))


def test_without_gradients_each_layer_computes_alone():
    model = adapted("GraLoRA")
    flat(model, True)
    x = torch.randn(3, N).bfloat16()
    with torch.no_grad():
        assert model(x, x).shape == (3, N)
    assert all(not layers[0].shared.outputs for layers in layers_of_one_input(model))
