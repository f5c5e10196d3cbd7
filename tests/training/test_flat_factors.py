"""All trainable numbers in one buffer: the layers see them, and their gradients arrive."""

import pytest
import torch
from torch import nn

from gralora_diffusion import AdapterConfig, inject
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.training.flat_factors import FlatFactors

KINDS = {
    "GraLoRA": AdapterConfig(rank=8, k=2, targets="all-linear"),
    "Hybrid GraLoRA": AdapterConfig(rank=8, k=2, hybrid_rank=4, targets="all-linear"),
    "LoRA": AdapterConfig(method="lora", rank=4, targets="all-linear"),
}


def adapted(config: AdapterConfig, dtype=torch.float32) -> nn.Module:
    """Three layers, the first used twice, whose factors are random and not zero."""
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(a=nn.Linear(16, 16), b=nn.Linear(16, 32), c=nn.Linear(32, 16))).to(dtype)
    inject(model, config)
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    return model.train()


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model["c"](model["b"](model["a"](model["a"](x)))).float().square().mean()


def flat(model: nn.Module, dtype=torch.float32) -> FlatFactors:
    factors = FlatFactors([dict(params=list(adapter_parameters(model).values()))], dtype)
    factors.connect(layer.adapter for layer in adapted_layers(model).values())
    return factors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_autograd(kind, dtype):
    plain, own = adapted(KINDS[kind], dtype), adapted(KINDS[kind], dtype)
    factors = flat(own, dtype)
    for number in range(2):  # of two batches, which add up
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(number)).to(dtype)
        loss_of(plain, x).backward()
        loss_of(own, x).backward()
        factors.collect()
    expected = adapter_parameters(plain)
    for name, parameter in adapter_parameters(own).items():
        close = dict(rtol=1e-5, atol=1e-7) if dtype == torch.float32 else dict(rtol=0.05, atol=0.002)
        torch.testing.assert_close(parameter.grad, expected[name].grad, **close)
        assert parameter.grad.abs().sum() > 0
    factors.clear()
    assert not any(parameter.grad.any() for parameter in adapter_parameters(own).values())


def test_the_parts_of_the_buffer_are_the_parameters():
    model = adapted(KINDS["Hybrid GraLoRA"])
    before = {name: p.detach().clone() for name, p in adapter_parameters(model).items()}
    factors = flat(model)
    for name, parameter in adapter_parameters(model).items():
        assert torch.equal(parameter, before[name])
    factors.values.mul_(2)
    for name, parameter in adapter_parameters(model).items():
        assert torch.equal(parameter, 2 * before[name])


def test_layers_compute_with_copies_that_follow_the_values_when_told():
    model = adapted(KINDS["GraLoRA"], torch.bfloat16)
    factors = flat(model, torch.bfloat16)
    x = torch.ones(1, 16, dtype=torch.bfloat16)
    before = loss_of(model, x)
    factors.values.zero_()
    assert loss_of(model, x) == before
    factors.refresh()
    after = loss_of(model, x)
    assert after != before
    with torch.no_grad():  # sampling takes the values themselves
        assert loss_of(model, x) == after


def test_a_gradient_that_no_kernel_places_is_not_lost():
    model = adapted(KINDS["GraLoRA"], torch.bfloat16)
    factors = flat(model, torch.bfloat16)
    parameter = next(iter(adapter_parameters(model).values()))
    copy, _ = factors.working[parameter]
    copy.sum().backward()
    factors.collect()
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert copy.grad is None


def test_equal_shapes_are_one_tensor_and_groups_are_apart():
    shapes = [(2, 3), (4,), (2, 3), (4,), (5, 1)]
    parameters = [nn.Parameter(torch.full(shape, float(n))) for n, shape in enumerate(shapes)]
    factors = FlatFactors([dict(params=parameters[:4], lr=1.0), dict(params=parameters[4:], lr=2.0)])
    stacks, other = factors.stacked_groups()
    assert [tuple(stack.shape) for stack in stacks["params"]] == [(2, 2, 3), (2, 4)]
    assert torch.equal(stacks["params"][0][1], parameters[2])
    assert (stacks["lr"], other["lr"]) == (1.0, 2.0)
    first, second = factors.flat_groups()
    first["params"][0].data.add_(1)
    assert parameters[0].unique().tolist() == [1.0]
    assert parameters[4].unique().tolist() == [4.0]
    assert second["params"][0].numel() == 5


def test_parameters_of_two_groups_cannot_lie_side_by_side():
    A, B = (nn.Parameter(torch.zeros(2, 3, 4)) for _ in range(2))
    groups = [dict(params=[A], lr=1.0), dict(params=[B], lr=2.0)]
    FlatFactors(groups, torch.bfloat16)
    with pytest.raises(ValueError, match="in several groups"):
        FlatFactors(groups, torch.bfloat16, [[A, B]])


def test_a_model_that_was_cast_is_noticed():
    model = adapted(KINDS["LoRA"])
    factors = flat(model)
    model.double()
    with pytest.raises(RuntimeError, match="moved or cast"):
        factors.refresh()
