"""Every method in the embedded base's UNet: its start, merge and file, and its size from a budget."""

import copy

import pytest
import torch

from gralora_diffusion import load_sdxl
from gralora_diffusion.adapters.gora import GAMMA
from gralora_diffusion.experiments.adapt import adapt, load_adapted, shapes_of
from gralora_diffusion.experiments.adapted import Spec
from gralora_diffusion.experiments.budget import fit
from gralora_diffusion.experiments.methods import LORAPLUS_RATIO, METHODS, PUBLISHED_GAMMA, tuned_as
from gralora_diffusion.experiments.sizes import mora_side
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

SOME = r"up_blocks\.0\.attentions\.1.*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$"  # layers of two shapes
SIZE = dict(fourierft=200, vera=32, full=0)


@pytest.fixture(scope="module")
def plain():
    return load_sdxl().unet


def spec(method):
    return Spec(method, SIZE.get(method, 8), targets=SOME, seed=3)


def count(method, size, shapes):
    return METHODS[method].count(size, shapes)


def test_the_table_of_methods():
    assert PUBLISHED_GAMMA == GAMMA
    assert tuned_as("lora") == "lora"
    assert {tuned_as(name) for name in METHODS if name.startswith("gralora-")} == {"gralora-gora"}
    assert [name for name, about in METHODS.items() if about.has_k] == ["gralora", "hybrid", "t-gralora"]


def draw(unet, times=(10, 700)):
    random = generator(7)
    shapes = ((2, 16, 8, 8), (2, 32, 192), (2, 128), (2, 6))
    noisy, embeds, pooled, ids = (torch.randn(shape, generator=random).to(unet.dtype) for shape in shapes)
    with torch.no_grad():
        return unet(
            noisy, torch.tensor(times), embeds, added_cond_kwargs=dict(text_embeds=pooled, time_ids=ids)
        ).sample


def disturb(adapted):
    random = generator(8)
    for p in adapted.parameters.values():
        p.data += 0.1 * torch.randn(p.shape, generator=random)


@pytest.mark.parametrize("method", METHODS)
def test_identity_merge_and_file(method, plain, tmp_path):
    unet, base = copy.deepcopy(plain), draw(plain)
    adapted = adapt(unet, spec(method))
    torch.testing.assert_close(draw(unet), base, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in adapted.parameters.values()) == count(
        method, spec(method).size, shapes_of(plain, SOME)
    )
    assert {id(p) for p in adapted.parameters.values()} == {
        id(p) for p in unet.parameters() if p.requires_grad
    }
    disturb(adapted)
    changed = draw(unet)
    assert (changed - base).abs().max() > 2e-4
    adapted.save(tmp_path / "adapter.safetensors")
    again = copy.deepcopy(plain)
    load_adapted(again, tmp_path / "adapter.safetensors")
    torch.testing.assert_close(draw(again), changed, rtol=0, atol=1e-6)
    whole = (
        draw(unet, (0, 0)) if method.startswith("t-") else changed
    )  # all of T-LoRA's ranks take part at timestep 0 alone
    adapted.merge()
    torch.testing.assert_close(
        draw(unet, (0, 0)) if method.startswith("t-") else draw(unet), whole, rtol=0, atol=2e-5
    )
    assert {path: type(m) for path, m in unet.named_modules()} == {
        path: type(m) for path, m in plain.named_modules()
    }
    assert not [p for p in unet.parameters() if p.requires_grad]


@pytest.mark.parametrize("method", METHODS)
def test_on_a_base_in_half_precision_what_trains_is_fp32(method, plain):
    """As a gradient scaler asks; it generates without autocast, and merges into the base's precision."""
    unet = copy.deepcopy(plain).to(torch.bfloat16)
    base = draw(unet)
    adapted = adapt(unet, spec(method))
    assert {p.dtype for p in adapted.parameters.values()} == {torch.float32}
    assert base.dtype == draw(unet).dtype == torch.bfloat16
    torch.testing.assert_close(
        draw(unet), base, rtol=0, atol=0.1
    )  # PiSSA and OLoRA round what they leave in the base
    adapted.merge()
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(draw(unet), base, rtol=0, atol=0.1)


def test_eva_starts_from_what_the_layers_see(plain):
    """A's rows are orthonormal directions of the layer's inputs; the start is still the base."""
    unet, base = copy.deepcopy(plain), draw(plain)
    adapted = adapt(unet, spec("eva"), batches=lambda index: draw(unet))
    torch.testing.assert_close(draw(unet), base, rtol=0, atol=1e-5)
    a = next(p for name, p in adapted.parameters.items() if "lora_A" in name)
    torch.testing.assert_close(a @ a.T, torch.eye(8), rtol=0, atol=1e-4)


def test_eva_needs_as_many_inputs_as_ranks(plain):
    """The middle of the UNet sees four tokens of an image; PEFT would run batch after batch for ever."""
    unet = copy.deepcopy(plain)
    with pytest.raises(ConfigError, match="eva of rank 40 needs 40 inputs of each layer in a batch"):
        adapt(unet, Spec("eva", 40, targets="mid_block.*attn1.*to_"), batches=lambda index: draw(unet))


def test_loraplus_gives_b_its_own_rate(plain):
    adapted = adapt(copy.deepcopy(plain), spec("lora+"))
    slow, fast = adapted.groups(1e-3, 0.0)
    assert fast["lr"] == LORAPLUS_RATIO * slow["lr"] == pytest.approx(0.016)
    assert {p.shape[1] for p in fast["params"]} == {8} == {p.shape[0] for p in slow["params"]}


def test_tlora_takes_fewer_ranks_where_there_is_more_noise(plain):
    both = [copy.deepcopy(plain), copy.deepcopy(plain)]
    for unet, method in zip(both, ("our-lora", "t-lora"), strict=True):
        disturb(adapt(unet, spec(method)))
    full, masked = (draw(unet, (0, 700)) for unet in both)
    torch.testing.assert_close(full[0], masked[0], rtol=0, atol=1e-6)
    assert (full[1] - masked[1]).abs().max() > 1e-5


def test_rasa_shares_its_pool(plain):
    unet = copy.deepcopy(plain)
    adapt(unet, spec("rasa"))
    q, k = (
        unet.up_blocks[0].attentions[1].transformer_blocks[0].attn1.get_submodule(name)
        for name in ("to_q", "to_k")
    )
    assert q.pool_A is k.pool_A
    assert q.rasa_A is not k.rasa_A


def test_mora_is_one_square_matrix_of_high_rank(plain):
    """Piece by piece, by hand; and its delta has a rank that a LoRA of as many parameters has not."""
    unet = copy.deepcopy(plain)
    disturb(adapt(unet, Spec("mora", 40, targets=SOME)))
    layer = unet.up_blocks[0].attentions[1].transformer_blocks[0].attn1.to_q
    before, side = layer.base.weight.clone(), mora_side(40, 160, 160)
    x = torch.randn(1, 160, generator=generator(1))
    first = x[0, :side]
    second = torch.cat([x[0, side:], x[0, : 2 * side - 160]])  # filled up from the start
    angles = (10000.0 ** (-torch.arange(0, side, 2) / side)).repeat(2)  # of position 1
    half = side // 2
    turned = second * angles.cos() + torch.cat([-second[half:], second[:half]]) * angles.sin()
    expected = torch.cat([layer.square.detach() @ first, layer.square.detach() @ turned])[:160]
    torch.testing.assert_close(layer.added(x)[0].detach(), expected, rtol=0, atol=1e-5)
    assert side == 112
    assert torch.linalg.matrix_rank(layer.merged().weight - before) > 40


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("full", "vera", "oft")])
def test_a_budget_is_met(method, plain):
    shapes, budget = shapes_of(plain, "attention"), 16 * sum(m + n for m, n in shapes_of(plain, "attention"))
    size, parameters = fit(method, budget, shapes)
    assert 0.9 * budget <= parameters <= budget
    larger = [s for s in METHODS[method].sizes_for(shapes, None) if count(method, s, shapes) > parameters]
    assert all(count(method, s, shapes) > budget for s in larger)
    assert parameters == count(method, size, shapes)


def test_a_budget_that_cannot_be_met_is_said(plain):
    shapes = shapes_of(plain, "attention")
    for method in ("vera", "oft"):
        with pytest.raises(
            ConfigError, match=f"{method} cannot have 300,000 parameters here: its sizes give"
        ):
            fit(method, 300_000, shapes)


def test_a_method_of_few_sizes_may_exceed_a_budget_by_a_fiftieth(plain):
    """OFT's blocks of 16 would leave half of rank 8's budget unused, those of 32 take 0.5 % more."""
    shapes = shapes_of(plain, "attention")
    budget = count("lora", 8, shapes)
    assert fit("oft", budget, shapes) == (32, 136_896)
    assert 136_896 / budget == pytest.approx(1.005, abs=1e-3)
    with pytest.raises(ConfigError, match="oft cannot have 134,000"):
        fit("oft", 134_000, shapes)
    assert fit("rasa", budget, shapes)[0] == 8
    assert fit("full", budget, shapes) == (0, sum(m * n for m, n in shapes))  # which has no other size


def test_mistakes(plain, tmp_path):
    with pytest.raises(ConfigError, match="method is 'lorra'"):
        Spec("lorra", 8)
    with pytest.raises(ConfigError, match="k is an option of gralora"):
        Spec("lora", 8, k=2)
    with pytest.raises(ConfigError, match="gralora of rank 7"):
        adapt(copy.deepcopy(plain), Spec("gralora", 7, k=2))
    with pytest.raises(ConfigError, match="includes convolutions, but methods are compared on linear layers"):
        adapt(copy.deepcopy(plain), Spec("gralora", 8, targets="attention+ff+conv"))
    (tmp_path / "x").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="damaged"):
        load_adapted(plain, tmp_path / "x")
