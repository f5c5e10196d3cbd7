"""The adapter mathematics, in float64, against PEFT and against the papers' formulas written as loops."""

import pytest
import torch
import torch.nn.functional as F
from peft import GraloraConfig, LoraConfig, get_peft_model
from torch import nn

from gralora_diffusion import GraLoRALinear, LoRALinear
from gralora_diffusion.adapters.gralora import GraLoRA, choose_k

N, M, RANK = 48, 32, 16
KINDS = [("lora", 1, 0)] + [("gralora", k, h) for k in (1, 2, 4, 8) for h in (0, 8)]
SHAPES = [(5, N), (2, 5, N), (2, 3, 4, N)]


def make(kind, k, hybrid, alpha=24.0, dtype=torch.float64, **kwargs):
    """A layer with random non-zero factors."""
    torch.manual_seed(0)
    linear = nn.Linear(N, M, dtype=dtype)
    if kind == "lora":
        layer = LoRALinear.from_linear(linear, RANK, alpha, **kwargs)
    else:
        layer = GraLoRALinear.from_linear(linear, RANK, k, alpha, hybrid, **kwargs)
    for p in layer.adapter.parameters():
        p.data = torch.randn_like(p, dtype=dtype)
    return layer


def by_blocks(layer) -> torch.Tensor:
    """Block (i, j) of delta is scale * B_ij A_ij^T with factors of rank r/k (arXiv 2505.20355, eq. 5)."""
    delta = torch.zeros(M, N, dtype=torch.float64)
    if isinstance(layer.adapter, GraLoRA):
        k, r = layer.adapter.k, RANK - layer.adapter.hybrid_rank
        m, n, g = M // k, N // k, r // k
        for i in range(k):  # output block
            for j in range(k):  # input block
                for s in range(g):
                    up = layer.adapter.gralora_B[i, j * g + s]
                    down = layer.adapter.gralora_A[j, :, i * g + s]
                    delta[i * m : (i + 1) * m, j * n : (j + 1) * n] += torch.outer(up, down)
    if hasattr(layer.adapter, "lora_A"):
        for s in range(layer.adapter.lora_A.shape[0]):
            delta += torch.outer(layer.adapter.lora_B[:, s], layer.adapter.lora_A[s])
    return layer.adapter.alpha / RANK * delta


def peft_twin(layer):
    """PEFT's own layer with the same base weight and factors."""
    model = nn.ModuleDict(dict(linear=nn.Linear(N, M, dtype=torch.float64)))
    model["linear"].load_state_dict(dict(weight=layer.weight, bias=layer.bias))
    if isinstance(layer.adapter, GraLoRA):
        config = GraloraConfig(
            r=RANK - layer.adapter.hybrid_rank,
            alpha=layer.adapter.alpha,
            gralora_k=layer.adapter.k,
            hybrid_r=layer.adapter.hybrid_rank,
            target_modules=["linear"],
            gralora_dropout=0.0,
        )
    else:
        config = LoraConfig(r=RANK, lora_alpha=layer.adapter.alpha, target_modules=["linear"])
    twin = get_peft_model(model, config, autocast_adapter_dtype=False).base_model.model["linear"].double()
    names = dict(
        gralora_A="gralora_A", gralora_B="gralora_B", lora_A="gralora_A_general", lora_B="gralora_B_general"
    )
    for name, p in layer.adapter.named_parameters():
        theirs = getattr(twin, name if isinstance(layer.adapter, GraLoRA) is False else names[name])[
            "default"
        ]
        theirs = theirs if isinstance(theirs, nn.Parameter) else theirs.weight
        theirs.data.copy_(p.data)
    return twin


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients_equal_peft_and_the_formula(kind, k, hybrid, shape):
    layer = make(kind, k, hybrid)
    twin = peft_twin(layer)
    x = torch.randn(shape, dtype=torch.float64)
    ours, theirs, formula = x.clone().requires_grad_(), x.clone().requires_grad_(), x.clone().requires_grad_()
    flat = (
        theirs.reshape(-1, *shape[-2:]) if len(shape) > 3 else theirs
    )  # PEFT's GraLoRA takes 2-D and 3-D only
    out, reference = layer(ours), twin(flat).reshape(*shape[:-1], M)
    written = F.linear(formula, layer.weight + by_blocks(layer), layer.bias)
    torch.testing.assert_close(out, reference, rtol=0, atol=1e-10)
    torch.testing.assert_close(out, written, rtol=0, atol=1e-10)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    mine = {name: p.grad.clone() for name, p in layer.adapter.named_parameters()}
    layer.zero_grad()
    (written * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    trained = [p.grad for p in twin.parameters() if p.requires_grad and p.grad is not None]
    assert len(trained) == len(mine)
    for name, p in layer.adapter.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=0, atol=1e-10)  # the loop's own
        assert any(
            g.shape == p.shape and torch.allclose(mine[name], g, rtol=0, atol=1e-10) for g in trained
        )  # PEFT's


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
def test_delta_equals_peft_the_formula_and_low_rank(kind, k, hybrid):
    layer = make(kind, k, hybrid)
    for (
        p
    ) in layer.adapter.parameters():  # small dyadic numbers: float64 sums are exact, so that error 0 means 0
        p.data = torch.randint(-8, 9, p.shape).double() / 8
    twin = peft_twin(layer)
    down, up = layer.low_rank()
    assert down.shape == (k * (RANK - hybrid) + hybrid, N)
    assert up.shape == (M, down.shape[0])
    assert torch.equal(up @ down, by_blocks(layer))
    assert torch.equal(layer.delta(), up @ down)
    assert torch.equal(layer.delta(), twin.get_delta_weight("default"))


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_as_the_base_bit_for_bit(kind, k, hybrid, dtype):
    linear = nn.Linear(N, M, dtype=dtype)
    x = torch.randn(7, N, dtype=dtype)
    expected = linear(x)
    layer = (
        GraLoRALinear.from_linear(linear, RANK, k, None, hybrid)
        if kind == "gralora"
        else LoRALinear.from_linear(linear, RANK)
    )
    assert torch.equal(layer(x), expected)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert set(linear.state_dict()) <= set(layer.state_dict())
    assert all(p.dtype == torch.float32 for p in layer.adapter.parameters())
    assert all(p.abs().sum() > 0 for name, p in layer.adapter.named_parameters() if name.endswith("A"))


def test_a_layer_with_one_adapter_has_its_strength_and_switch():
    layer = LoRALinear.from_linear(nn.Linear(8, 8), 2)
    layer.adapter.lora_B.data.normal_()
    x = torch.randn(2, 8)
    full = layer(x)
    layer.strength = 0.0
    base = layer(x)
    layer.strength = 1.0
    assert not torch.equal(full, base)
    assert torch.equal(layer(x), full)
    layer.enabled = False
    assert not layer.adapter.enabled
    assert torch.equal(layer(x), base)


def test_a_strength_set_after_merging_is_in_the_weight_that_stays():
    layer = LoRALinear.from_linear(nn.Linear(8, 8), 2)
    layer.adapter.lora_B.data.normal_()
    base, delta = layer.weight.clone(), layer.adapter.delta().detach()
    layer.merge()
    layer.strength = 0.5
    torch.testing.assert_close(layer.to_plain().weight, base + 0.5 * delta)
    layer.unmerge()
    assert torch.equal(layer.weight, base)


@pytest.mark.parametrize(("kind", "k", "hybrid"), KINDS)
def test_strength_off_merge_and_unmerge(kind, k, hybrid):
    layer = make(kind, k, hybrid).eval()
    x, base = torch.randn(7, N, dtype=torch.float64), layer.weight.clone()
    for strength in (0.0, 0.5, 1.0, 2.0):
        layer.adapter.strength = strength
        expected = F.linear(x, base + strength * by_blocks(layer), layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
        layer.merge()
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
        layer.unmerge()
        assert torch.equal(layer.weight, base)
    layer.adapter.enabled = False
    assert torch.equal(layer(x), F.linear(x, base, layer.bias))
    layer.adapter.enabled = True
    layer.adapter.strength = 1.0
    layer.merge()
    plain = layer.to_plain()
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=0)


def test_a_merged_layer_keeps_its_promises():
    layer = make("gralora", 4, 0).eval()
    x, base = torch.randn(7, N, dtype=torch.float64), layer.weight.clone()
    layer.merge()
    layer.adapter.enabled = False
    assert torch.equal(layer(x), F.linear(x, base, layer.bias))
    layer.adapter.enabled, layer.adapter.strength = True, 0.5
    torch.testing.assert_close(
        layer(x), F.linear(x, base + 0.5 * by_blocks(layer), layer.bias), rtol=0, atol=1e-10
    )
    assert "unmerged_weight" not in layer.state_dict()
    layer.float()
    layer.unmerge()
    assert torch.equal(layer.weight, base.float())


def test_merging_in_half_precision_can_be_undone_exactly():
    layer = GraLoRALinear.from_linear(nn.Linear(N, M, dtype=torch.bfloat16), RANK, 2)
    layer.adapter.gralora_B.data.normal_()
    before = layer.weight.clone()
    layer.merge()
    assert not torch.equal(layer.weight, before)
    layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_rslora_scale():
    assert make("gralora", 2, 0, alpha=8.0, rslora=True).adapter.scale == 2.0
    assert make("lora", 1, 0, alpha=8.0).adapter.scale == 0.5
    assert LoRALinear.from_linear(nn.Linear(N, M), 4).adapter.scale == 1.0


def test_dropout_acts_in_training_only():
    layer = make("gralora", 4, 8, dropout=0.5)
    x = torch.randn(7, N, dtype=torch.float64)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_checkpointing_send_gradients_to_the_adapters_only(dtype):
    from torch.utils.checkpoint import checkpoint

    layer = GraLoRALinear.from_linear(nn.Linear(N, M, dtype=dtype), RANK, 4, hybrid_rank=8)
    for p in layer.adapter.parameters():
        p.data.normal_()
    with torch.autocast("cpu", torch.bfloat16):
        out = checkpoint(layer, torch.randn(2, 5, N, dtype=dtype), use_reentrant=False)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.weight.grad is None
    for p in layer.adapter.parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.abs().sum() > 0


@pytest.mark.parametrize(("rank", "k"), [(8, 1), (16, 2), (32, 2), (64, 4), (128, 4)])
def test_k_follows_the_papers_rule(rank, k):
    assert choose_k(rank, 1280, 1280) == k


def test_k_divides_what_it_must():
    assert choose_k(64, 6, 10) == 2
    assert choose_k(63, 1280, 1280) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(rank=31, k=4), ["rank 31", "k 4", "28 and 32"]),
        (dict(rank=30, k=5), ["k 5", "48 -> 32", "1, 2, 4, 8, 16"]),
        (dict(rank=16, hybrid_rank=16), ["hybrid_rank is 16", "0 to 15"]),
        (dict(rank=16, hybrid_rank=3, k=2), ["hybrid_rank 3", "15 and 17"]),
        (dict(rank=0), ["rank is 0"]),
        (dict(rank=10**9), ["rank is 1000000000", "48 -> 32", "1 to 32"]),
        (dict(rank=16, alpha=0.0), ["alpha is 0"]),
        (dict(rank=16, alpha=float("nan")), ["alpha is nan"]),
        (dict(rank=16, k=0), ["k is 0"]),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(options, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        GraLoRALinear.from_linear(nn.Linear(N, M), **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_rank_of_delta_grows_with_k():
    torch.manual_seed(0)
    for k in (1, 2, 4):
        layer = GraLoRALinear.from_linear(nn.Linear(128, 128), 16, k).double()
        layer.adapter.gralora_B.data.normal_()
        assert torch.linalg.matrix_rank(layer.delta()) == 16 * k
        assert sum(p.numel() for p in layer.adapter.parameters()) == 16 * 256
