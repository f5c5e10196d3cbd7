"""Adapters of convolutions, in float64, against loops, linear layers of unfolded inputs, PEFT and LyCORIS."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from gralora_diffusion import AdapterConfig, inject
from gralora_diffusion.adapters import kinds
from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.control import bake_in, merge, remove, set_strength, unmerge
from gralora_diffusion.adapters.conv import AdaptedConv2d, matrix_of
from gralora_diffusion.adapters.kinds import new_adapter
from gralora_diffusion.adapters.layer_adapter import LayerAdapter, WorkingFactors
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.adapters.tlora import active_ranks
from gralora_diffusion.training.flat_factors import FlatFactors

C, M = 12, 8
CONFIGS = {
    "lora": AdapterConfig(method="lora", rank=6, alpha=9.0),
    "rslora": AdapterConfig(method="lora", rank=4, rslora=True),
    "gralora 1": AdapterConfig(rank=4, k=1, alpha=5.0),
    "gralora 2": AdapterConfig(rank=4, k=2),
    "gralora 4": AdapterConfig(rank=8, k=4, alpha=24.0),
    "hybrid": AdapterConfig(rank=7, k=2, hybrid_rank=3, alpha=2.0),
}
SHAPES = {
    "3x3": dict(kernel_size=3, padding=1),
    "downsampler": dict(kernel_size=3, stride=2, padding=0),
    "1x1": dict(kernel_size=1),
    "uneven": dict(kernel_size=(2, 3), stride=(1, 2), padding=(0, 2), dilation=(2, 1), bias=False),
    "same": dict(kernel_size=3, padding="same"),
}


def make(config, dtype=torch.float64, **shape):
    """A layer with random non-zero factors."""
    torch.manual_seed(0)
    conv = nn.Conv2d(C, M, dtype=dtype, **(shape or SHAPES["3x3"]))
    adapter = new_adapter(conv, config, config.rank, config.k)
    layer = AdaptedConv2d(conv)
    layer.add("default", adapter)
    for p in adapter.parameters():
        p.data = torch.randn_like(p, dtype=dtype)
    return layer


def by_blocks(adapter) -> torch.Tensor:
    """Channel by channel and block by block: delta [M, C, kh, kw]."""
    kh, kw = adapter.kernel
    delta = torch.zeros(M, C, kh, kw, dtype=torch.float64)
    if hasattr(adapter, "gralora_A"):
        k, r = adapter.k, adapter.rank - adapter.hybrid_rank
        m, c, g = M // k, C // k, r // k
        A = adapter.gralora_A.view(k, c, kh, kw, r)
        for i in range(k):  # output block
            for j in range(k):  # block of input channels
                for s in range(g):
                    up = adapter.gralora_B[i, j * g + s]
                    down = A[j, ..., i * g + s]
                    block = torch.einsum("m,cyx->mcyx", up, down)
                    delta[i * m : (i + 1) * m, j * c : (j + 1) * c] += block
    if hasattr(adapter, "lora_A"):
        A = adapter.lora_A.view(-1, C, kh, kw)
        for s in range(len(A)):
            delta += torch.einsum("m,cyx->mcyx", adapter.lora_B[:, s], A[s])
    return adapter.scale * delta


def image(requires_grad=False):
    return torch.randn(3, C, 7, 6, dtype=torch.float64, requires_grad=requires_grad)


def convolved(layer, x, weight):
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)


def unfolded(layer, x) -> torch.Tensor:
    """x [T, C, H, W] -> [T, pixels, C*kh*kw]"""
    padding = 1 if layer.padding == "same" else layer.padding
    return F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride).transpose(1, 2)


def as_linear(layer) -> AdaptedLinear:
    """The linear layer of the same matrix with the same adapter."""
    linear = nn.Linear(layer.in_features, M, layer.bias is not None, dtype=torch.float64)
    linear.weight.data = layer.weight.detach().flatten(1)
    linear.bias = layer.bias
    twin = AdaptedLinear(linear)
    twin.add("default", layer.adapter)
    return twin


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks(name, shape):
    layer, x = make(CONFIGS[name], **SHAPES[shape]), image()
    delta = by_blocks(layer.adapter)
    torch.testing.assert_close(layer.delta(), delta.flatten(1), rtol=0, atol=1e-10)
    down, up = layer.low_rank()
    torch.testing.assert_close(up @ down, delta.flatten(1), rtol=0, atol=1e-10)
    y = layer(x)
    torch.testing.assert_close(y, convolved(layer, x, layer.weight + delta), rtol=0, atol=1e-10)
    layer.merge()
    torch.testing.assert_close(layer(x), y, rtol=0, atol=1e-10)
    plain = layer.to_plain()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True], ids=["", "T-LoRA"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_linear_layer_of_unfolded_inputs(name, shape, masked):
    """Outputs and all gradients, also where T-LoRA masks ranks by image."""
    layer, x = make(CONFIGS[name], **SHAPES[shape]), image(True)
    if masked:
        times = torch.tensor([900, 20, 500])
        layer.adapter.active_ranks = {r: active_ranks(times, r, 1) for r in layer.adapter.part_ranks}
    wanted = [x, *layer.adapter.parameters()]
    y = layer(x)
    rows = as_linear(layer)(unfolded(layer, x))
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), rows, rtol=0, atol=1e-10)
    weights = torch.randn_like(y)
    got = torch.autograd.grad((y * weights).sum(), wanted)
    linear = torch.autograd.grad((rows * weights.flatten(2).transpose(1, 2)).sum(), wanted)
    for one, other in zip(got, linear, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradcheck(name):
    layer = make(CONFIGS[name], **SHAPES["downsampler"])
    x = torch.randn(1, C, 4, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.adapter.named_parameters()]

    def output(x, *factors):
        given = dict(zip((f"adapters.default.{name}" for name in names), factors, strict=True))
        return torch.func.functional_call(layer, given, (x,))

    assert torch.autograd.gradcheck(output, (x, *layer.adapter.parameters()))


def test_against_peft():
    layer, x = make(CONFIGS["lora"]), image()
    model = nn.ModuleDict(dict(conv=nn.Conv2d(C, M, 3, padding=1, dtype=torch.float64)))
    model["conv"].load_state_dict(dict(weight=layer.weight, bias=layer.bias))
    peft = get_peft_model(model, LoraConfig(r=6, lora_alpha=9, target_modules=["conv"]))
    theirs = peft.base_model.model["conv"].double()
    theirs.lora_A["default"].weight.data = layer.adapter.lora_A.detach().view(6, C, 3, 3)
    theirs.lora_B["default"].weight.data = layer.adapter.lora_B.detach()[:, :, None, None]
    torch.testing.assert_close(layer(x), theirs(x), rtol=0, atol=1e-10)
    delta = theirs.get_delta_weight("default")
    torch.testing.assert_close(layer.delta(), delta.flatten(1), rtol=0, atol=1e-10)


def test_against_lycoris():
    locon = pytest.importorskip("lycoris.modules.locon")
    layer, x = make(CONFIGS["lora"]), image()
    conv = nn.Conv2d(C, M, 3, padding=1, dtype=torch.float64)
    conv.load_state_dict(dict(weight=layer.weight, bias=layer.bias))
    theirs = locon.LoConModule("conv", conv, 1.0, lora_dim=6, alpha=9).double()
    theirs.lora_down.weight.data = layer.adapter.lora_A.detach().view(6, C, 3, 3)
    theirs.lora_up.weight.data = layer.adapter.lora_B.detach()[:, :, None, None]
    theirs.apply_to()
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_collected_in_flat_buffers(name, dtype):
    """A trainer's buffers hold what autograd gives, exactly in fp32, within rounding for copies in bf16."""
    layer = make(CONFIGS[name], dtype=torch.float32).to(dtype)
    layer.adapter.float()
    parameters = list(layer.adapter.parameters())
    x = torch.randn(2, C, 5, 5, dtype=dtype)
    weights = torch.randn(2, M, 5, 5, dtype=dtype)
    plain = torch.autograd.grad((layer(x) * weights).sum(), parameters)
    factors = FlatFactors([dict(params=parameters)], dtype)
    factors.connect([layer.adapter])
    (layer(x) * weights).sum().backward()
    (layer(x) * weights).sum().backward()
    if dtype == torch.bfloat16:
        assert all(working.A.grad is None for working in layer.adapter.working)
    factors.collect()
    for parameter, gradient in zip(parameters, plain, strict=True):
        error = (parameter.grad - 2 * gradient).norm() / gradient.norm()
        assert float(error) < (1e-6 if dtype == torch.float32 else 0.02)


def test_copies_without_buffers():
    """As a forecast of memory uses them."""
    layer, x = make(CONFIGS["hybrid"]), image()
    y = layer(x)
    pairs = layer.adapter.factors
    copies = [[factor.detach().clone().requires_grad_() for factor in pair] for pair in pairs]
    layer.adapter.working = [WorkingFactors(*pair) for pair in copies]
    layer(x).sum().backward()
    assert all(p.grad is None for p in layer.adapter.parameters())
    assert all(copy.grad is not None for pair in copies for copy in pair)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)


def test_dropout_acts_in_training_only():
    layer, x = make(AdapterConfig(method="lora", rank=4, dropout=0.9)), image()
    layer.train()
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(
        layer(x), convolved(layer, x, layer.weight + by_blocks(layer.adapter)), rtol=0, atol=1e-10
    )


def test_autocast_and_a_zero_start():
    conv = nn.Conv2d(C, M, 3, padding=1)
    config = CONFIGS["gralora 2"]
    layer = AdaptedConv2d(conv)
    layer.add("default", new_adapter(conv, config, config.rank, config.k))
    x = torch.randn(2, C, 5, 5)
    assert torch.equal(layer(x), conv(x))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, conv(x))
    y.float().sum().backward()
    assert layer.adapter.gralora_B.grad.dtype == torch.float32
    assert layer.adapter.gralora_B.grad.abs().sum() > 0


class Model(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.conv = nn.Conv2d(C, M, 3, padding=1, **how)
        self.linear = nn.Linear(M, M)

    def forward(self, x):
        return self.linear(self.conv(x).transpose(1, 3).contiguous())


@pytest.mark.parametrize("targets", ["all-linear", "", "."])
def test_older_targets_stay_linear(targets):
    model = Model()
    assert list(inject(model, AdapterConfig(rank=4, k=2, targets=targets))) == ["linear"]
    assert type(model.conv) is nn.Conv2d


def test_a_whole_life():
    model = Model().eval()
    x = torch.randn(2, C, 5, 5)
    plain, keys = model(x), list(model.state_dict())
    layers = inject(model, AdapterConfig(rank=4, k=2, targets="^conv$|linear"))
    assert [type(layer) for layer in layers.values()] == [AdaptedConv2d, AdaptedLinear]
    assert set(keys) <= set(model.state_dict())
    assert torch.equal(model(x), plain)
    for layer in layers.values():
        layer.adapter.gralora_B.data.normal_()
    on = model(x)
    assert (on - plain).abs().max() > 0.01
    set_strength(model, 0.5)
    half = model(x)
    merge(model)
    torch.testing.assert_close(model(x), half, rtol=0, atol=1e-5)
    unmerge(model)
    set_strength(model, 1)
    assert torch.equal(model(x), on)
    bake_in(model)
    assert type(model.conv) is nn.Conv2d
    assert not adapted_layers(model)
    torch.testing.assert_close(model(x), on, rtol=0, atol=1e-5)
    model = Model().eval()
    plain = model(x)
    inject(model, AdapterConfig(rank=4, k=2, targets="conv"))["conv"].adapter.gralora_B.data.normal_()
    remove(model)
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(
    ("how", "config", "words"),
    [
        (dict(groups=2), dict(rank=4, k=2), ["conv: ", "2 groups"]),
        (dict(padding_mode="reflect"), dict(rank=4, k=2), ["conv: ", "'reflect' padding"]),
        ({}, dict(rank=6, k=3), ["k 3 does not divide", "convolution's channels 12 -> 8", "1, 2, 4"]),
        ({}, dict(rank=9), ["rank is 9", "108 -> 8", "from 1 to 8"]),
    ],
)
def test_mistakes_change_nothing(how, config, words):
    model = Model(**how)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        inject(model, AdapterConfig(targets="conv", **config))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not any(isinstance(layer, AdaptedLayer) for layer in model.modules())


def test_k_divides_channels_by_its_rule():
    """9 * 6 rows of the matrix could be cut into 9 blocks, and 6 channels into 2 at most here."""
    conv = nn.Conv2d(6, 12, 3)
    assert new_adapter(conv, AdapterConfig(rank=12), 12, None).k in (1, 2)
    adapter = new_adapter(nn.Conv2d(64, 64, 3), AdapterConfig(rank=64), 64, None)
    assert adapter.k == 4
    assert adapter.gralora_A.shape == (4, 16 * 9, 64)
    assert adapter.gralora_B.shape == (4, 64, 16)


class Diagonal(LayerAdapter):
    """A kind without factors: delta alone."""

    LEAVES = ({"diagonal"},)

    def __init__(self, linear, rank, alpha=None, dropout=0.0, rslora=False):
        super().__init__(linear, rank, alpha, dropout, rslora)
        self.diagonal = nn.Parameter(torch.randn(self.out_features, dtype=torch.float64))

    def delta(self):
        square = torch.diag(self.diagonal * self.scale)
        return F.pad(square, (0, self.in_features - len(square)))


def test_a_kind_of_adapter_without_factors(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "diagonal", Diagonal)
    conv = nn.Conv2d(C, M, 3, padding=1, dtype=torch.float64)
    layer, x = AdaptedConv2d(conv), image()
    layer.add("default", Diagonal(matrix_of(conv), 2, 3.0))
    layer.strength = 0.5
    weight = layer.weight + 0.5 * layer.adapter.delta().view_as(layer.weight)
    y = layer(x)
    torch.testing.assert_close(y, convolved(layer, x, weight), rtol=0, atol=1e-10)
    y.sum().backward()
    assert layer.adapter.diagonal.grad.abs().sum() > 0
