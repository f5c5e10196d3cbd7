"""The operation of all adapted layers: what it keeps, and where its gradients go."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from gralora_diffusion import GraLoRALinear, LoRALinear
from gralora_diffusion.adapters.kernel import Part, adapted_linear

N, M, RANK, TOKENS = 48, 32, 16, 40
KINDS = [("lora", 1, 0), ("gralora", 1, 0), ("gralora", 2, 0), ("gralora", 4, 8)]


def make(kind, k=1, hybrid=0, dtype=torch.float64, **kwargs):
    linear = nn.Linear(N, M, dtype=dtype)
    layer = (
        LoRALinear.from_linear(linear, RANK, **kwargs)
        if kind == "lora"
        else GraLoRALinear.from_linear(linear, RANK, k, None, hybrid, **kwargs)
    )
    for p in layer.adapter.parameters():
        p.data = torch.randn_like(p, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return layer


def kept_bytes(layer, x, autocast=False) -> int:
    """What a forward pass keeps for the backward pass, beside x, the parameters and autocast's copies."""
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    shapes = {tuple(p.shape) for p in layer.parameters()} | {
        tuple(p.T.shape) for p in layer.parameters() if p.ndim == 2
    }
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tuple(tensor.shape) not in shapes:
            kept[storage.data_ptr()] = (
                tensor,
                storage.nbytes(),
            )  # the tensor too: its address must not be taken by another
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        layer(x)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_no_more_is_kept_than_by_pefts_lora_and_k_times_r_numbers_per_token(kind, k, hybrid, autocast):
    x = torch.randn(TOKENS, N, requires_grad=True)
    twin = get_peft_model(
        nn.ModuleDict(dict(linear=nn.Linear(N, M))), LoraConfig(r=RANK, target_modules=["linear"])
    ).base_model.model["linear"]
    size = 2 if autocast else 4
    theirs = kept_bytes(twin, x, autocast)
    ours = kept_bytes(make(kind, k, hybrid, torch.float32), x, autocast)
    own = TOKENS * (RANK if kind == "lora" else k * (RANK - hybrid) + hybrid) * size  # h
    assert theirs >= TOKENS * RANK * size
    assert ours == own + (TOKENS * N * size if autocast else 0)  # autocast's x
    assert ours <= theirs + TOKENS * k * RANK * size


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
def test_the_gradients_are_those_of_finite_differences_also_of_an_unfrozen_base(kind, k, hybrid):
    layer = make(kind, k, hybrid)
    layer.requires_grad_(True)
    x, own = (torch.randn(3, N, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[True, False], [True, True], [False, True]])

    def run(x, own, weight, bias, *factors):
        pairs = list(zip(factors[::2], factors[1::2], strict=True))
        return adapted_linear(
            x,
            weight,
            bias,
            [Part(0.5, *pairs[0], mask), *(Part(2.0, A, B, None, own) for A, B in pairs[1:] or pairs)],
        )

    assert torch.autograd.gradcheck(
        run,
        (x, own, layer.weight, layer.bias, *(p for pair in layer.adapter.factors for p in pair)),
        fast_mode=True,
    )


@pytest.mark.parametrize("kind", ["lora", "gralora"])
def test_inputs_of_any_layout_and_size(kind):
    layer = make(kind, 4 if kind == "gralora" else 1)
    wide = torch.randn(2, N, 5, dtype=torch.float64)
    for x in (
        wide.transpose(1, 2),
        wide[0].T,
        torch.randn(2, 5, 2 * N, dtype=torch.float64)[..., ::2],
        torch.randn(0, N).double(),
        wide[0, :, 0],
    ):
        ours, written = (
            x.clone().as_strided(x.shape, x.stride()) if x.is_contiguous() else x.detach(),
            x.clone(),
        )
        ours.requires_grad_()
        written.requires_grad_()
        reference = F.linear(written, layer.weight + layer.delta(), layer.bias)
        out = layer(ours)
        torch.testing.assert_close(out, reference, rtol=0, atol=1e-10)
        for y in (out, reference):
            y.sum().backward()  # its gradient is one number, expanded
        torch.testing.assert_close(ours.grad, written.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shapes", [((4, 12), (8, 4)), ((2, 6, 4), (2, 4, 4))], ids=["LoRA", "GraLoRA"])
def test_gradients_are_added_where_the_caller_wants_them(shapes):
    random = torch.Generator().manual_seed(0)
    A, B = (torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes)
    x = torch.randn(5, 12, generator=random, dtype=torch.float64)
    weight = torch.randn(8, 12, generator=random, dtype=torch.float64)
    totals = torch.ones_like(A), torch.ones_like(B)
    adapted_linear(x, weight, None, [Part(0.5, A, B)]).square().sum().backward()
    expected = A.grad.clone(), B.grad.clone()
    A.grad = B.grad = None
    for _ in range(2):
        adapted_linear(x, weight, None, [Part(0.5, A, B, None, None, *totals)]).square().sum().backward()
    assert A.grad is None
    assert B.grad is None
    for total, gradient in zip(totals, expected, strict=True):
        torch.testing.assert_close(total, 1 + 2 * gradient, rtol=1e-10, atol=1e-10)


def test_only_what_is_asked_for_gets_a_gradient():
    layer = make("gralora", 2, 8)
    layer.adapter.gralora_A.requires_grad_(False)
    x = torch.randn(5, N, dtype=torch.float64)
    layer(x).sum().backward()
    assert layer.adapter.gralora_A.grad is None
    assert layer.adapter.lora_A.grad is not None
    assert x.grad is None
    layer.requires_grad_(False)
    assert not layer(x).requires_grad


def test_a_second_derivative_is_refused():
    layer = make("gralora", 2)
    (gradient,) = torch.autograd.grad(
        layer(torch.randn(5, N, dtype=torch.float64)).square().sum(),
        layer.adapter.gralora_B,
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
def test_compiled_training_has_the_same_gradients(kind, k, hybrid):
    layer = make(kind, k, hybrid)
    x, gradients = torch.randn(5, N, dtype=torch.float64), []
    for forward in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        forward(given).square().sum().backward()
        gradients.append([given.grad, *(p.grad for p in layer.adapter.parameters())])
    for mine, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, compiled, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
def test_dropout_acts_on_the_adapters_input_alone(kind, k, hybrid):
    layer = make(kind, k, hybrid, dropout=0.5).train()
    x = torch.randn(7, N, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    out = layer(x)
    torch.manual_seed(3)
    dropped = F.dropout(x, 0.5)
    expected = F.linear(x, layer.weight, layer.bias) + dropped @ layer.delta().T
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    mine, theirs = (torch.autograd.grad(y.square().sum(), x)[0] for y in (out, expected))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_a_layer_of_half_precision_computes_and_answers_in_it():
    layer = make("gralora", 4, 8, torch.bfloat16)
    x = torch.randn(7, N).bfloat16().requires_grad_()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    exact = F.linear(x.float(), layer.weight.float() + layer.delta(), layer.bias.float())
    assert (out.float() - exact).norm() < 0.01 * exact.norm()
    out.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert {p.grad.dtype for p in layer.adapter.parameters()} == {torch.float32}
