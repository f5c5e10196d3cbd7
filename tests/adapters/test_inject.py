"""Which layers are adapted: full-size SDXL on the meta device, and models that are not SDXL at all."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from gralora_diffusion import AdapterConfig, inject
from gralora_diffusion.adapters.control import enable, merge, remove, set_strength, unmerge
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.sdxl.load import shapes


@pytest.fixture
def sdxl(tmp_path):
    """SDXL's three models on the meta device, as a single-file checkpoint is assumed to hold them."""
    path = tmp_path / "sd_xl_base_1.0.safetensors"
    path.write_bytes(b"")
    return shapes(path)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def count(model):
    return sum(p.numel() for p in adapter_parameters(model).values())


@pytest.mark.parametrize("method", ["gralora", "lora"])
def test_full_size_sdxl(method, sdxl):
    unet = sdxl["unet"]
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    layers = inject(unet, AdapterConfig(method=method, rank=64))
    assert len(layers) == 560
    assert count(unet) == 92_897_280
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 92_897_280


def test_full_size_text_encoders(sdxl):
    assert sum(p.numel() for p in sdxl["text_encoder"].parameters()) == 123_060_480
    assert sum(p.numel() for p in sdxl["text_encoder_2"].parameters()) == 694_659_840
    assert len(inject(sdxl["text_encoder"], AdapterConfig())) == 48
    assert len(inject(sdxl["text_encoder_2"], AdapterConfig())) == 128


@pytest.mark.parametrize(
    ("targets", "count"), [("attention+ff", 560 + 140), ("all-linear", 743), (r"attn2\.to_[kv]$", 140)]
)
def test_other_targets(targets, count, sdxl):
    assert len(inject(sdxl["unet"], AdapterConfig(rank=16, targets=targets))) == count


def test_ranks_and_k_per_target(sdxl):
    config = AdapterConfig(
        rank=16, rank_pattern={r"mid_block.*attn2": 64, "attn2": 32}, k_pattern={"attn2": 4, "attn1": 1}
    )
    layers = inject(sdxl["unet"], config)
    for path, layer in layers.items():
        assert layer.adapter.k == (4 if "attn2" in path else 1)
        wanted = 16
        if "attn2" in path:
            wanted = 64 if path.startswith("mid_block") else 32
        assert layer.adapter.rank == wanted


def test_any_torch_model():
    model = llama()
    ids = torch.arange(10)[None]
    before, keys = model(ids).logits, set(model.state_dict())
    layers = inject(model, AdapterConfig(rank=8, k=2, targets=r"(q|k|v|o)_proj$"))
    assert len(layers) == 8
    assert keys <= set(model.state_dict())
    assert torch.equal(model(ids).logits, before)
    for layer in layers.values():
        layer.adapter.gralora_B.data.normal_()
    model(ids).logits.square().sum().backward()
    assert all(p.grad is not None for p in adapter_parameters(model).values())
    trained = {id(p) for p in model.parameters() if p.grad is not None}
    assert trained == {id(p) for p in adapter_parameters(model).values()}
    roberta = RobertaModel(
        RobertaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
        )
    )
    assert (
        len(
            inject(
                roberta, AdapterConfig(method="lora", rank=4, targets=r"attention\.self\.(query|key|value)$")
            )
        )
        == 9
    )


def test_a_whole_life():
    model, ids = llama().eval(), torch.arange(10)[None]
    before = model(ids).logits
    for layer in inject(model, AdapterConfig(rank=8, k=2, targets="_proj$")).values():
        layer.adapter.gralora_B.data.normal_(std=0.1)
    on = model(ids).logits
    assert (on - before).abs().max() > 1e-3
    enable(model, False)
    assert torch.equal(model(ids).logits, before)
    enable(model)
    set_strength(model, 0)
    assert torch.equal(model(ids).logits, before)
    set_strength(model, 0.5)
    half = model(ids).logits
    merge(model)
    torch.testing.assert_close(model(ids).logits, half, rtol=0, atol=1e-5)
    set_strength(model, 1)
    torch.testing.assert_close(model(ids).logits, on, rtol=0, atol=1e-5)
    unmerge(model)
    assert torch.equal(model(ids).logits, on)
    remove(model)
    assert not adapted_layers(model)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dict(targets="bogus"), ["'bogus'", "attention+ff", "matches no linear layer"]),
        (dict(targets="(("), ["'(('", "not a regular expression"]),
        (dict(targets="proj", rank=15, k=4), ["model.layers.0.self_attn.q_proj", "rank 15", "12 and 16"]),
        (dict(targets="proj", rank=15, k=5), ["q_proj", "k 5"]),
        (dict(targets="proj", rank=24), ["k_proj", "rank is 24", "32 -> 16", "1 to 16"]),
    ],
)
def test_mistakes_change_nothing(config, words):
    model = llama()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        inject(model, AdapterConfig(**config))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not adapted_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_injecting_twice_raises():
    model = llama()
    inject(model, AdapterConfig(rank=4, targets="q_proj"))
    with pytest.raises(ValueError, match="already has adapters"):
        inject(model, AdapterConfig(rank=4, targets="k_proj"))


@pytest.mark.parametrize(("method", "kind"), [("lora", LoRA), ("gralora", GraLoRA)])
def test_the_method_is_the_kind_of_adapter(method, kind):
    layers = inject(llama(), AdapterConfig(method=method, rank=4, targets="q_proj"))
    assert {type(layer) for layer in layers.values()} == {AdaptedLinear}
    assert {type(layer.adapter) for layer in layers.values()} == {kind}


def test_config_survives_json():
    from gralora_diffusion.options import from_dict, to_dict

    config = AdapterConfig(rank=32, k=2, alpha=16.0, rank_pattern={"attn2": 64})
    assert from_dict(AdapterConfig, json.loads(json.dumps(to_dict(config)))) == config
