"""A base in 8 or 4 bits: adapters train over it, and nothing but the base's memory changes."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_adapter, load_sdxl
from gralora_diffusion.adapters.control import merge, remove
from gralora_diffusion.adapters.frozen_weight import numbers, quantized
from gralora_diffusion.adapters.quantization import BYTES, QuantizedLinear, quantize
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.train import train

KINDS = list(BYTES)
QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2), max_train_steps=3, train_batch_size=2, skip_final_inference=True
)


@pytest.fixture(scope="module")
def torchao():
    return pytest.importorskip("torchao")


def adapted(kind, method):
    """(a layer over a quantized weight, its adapter not zero; the weight before)"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128))
    weight = model[0].weight.detach().clone()
    quantize(model, kind)
    layer = inject(model, AdapterConfig(method=method, rank=8, targets="all-linear"))["0"]
    for p in layer.adapter.parameters():
        p.data.normal_(std=0.1)
    return model, layer, weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "gralora"])
def test_the_layer_is_the_dequantized_weight_plus_the_delta(torchao, kind, method):
    model, layer, weight = adapted(kind, method)
    held = numbers(layer.weight)
    assert (
        0 < (held - weight).abs().max() < (0.002 if kind == "int8-torchao" else 0.03)
    )  # of weights within 0.125
    x = torch.randn(2, 5, 64, requires_grad=True)
    y = layer(x)
    whole = held + layer.delta()
    torch.testing.assert_close(y, F.linear(x, whole, layer.bias), rtol=0, atol=1e-5)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ whole, rtol=0, atol=1e-4)
    assert all(p.grad.abs().sum() > 0 for p in layer.adapter.parameters())
    with pytest.raises(ValueError, match="cannot be merged into it"):
        merge(model)
    remove(model)
    assert type(model[0]) is QuantizedLinear
    torch.testing.assert_close(model(x), F.linear(x, held, layer.bias))


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_no_numbers_of_the_weights_size(torchao, kind):
    _, layer, _ = adapted(kind, "gralora")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(0 if quantized(t) else t.numel()) or t, lambda t: t
    ):
        layer(torch.randn(1, 2, 64, requires_grad=True))
    assert max(kept) < layer.weight.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_computes_in_its_dtype(torchao, kind):
    _, layer, _ = adapted(kind, "lora")
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(3, 64, requires_grad=True))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.adapter.lora_B.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_resumes_bit_by_bit_and_exports(torchao, kind, tmp_path):
    options = dict(base_model_precision=kind, skip_final_inference=False, num_inference_steps=1)
    whole = load_file(
        train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "whole"), **options))
        / "adapter.safetensors"
    )
    assert all(t.isfinite().all() and t.abs().sum() > 0 for t in whole.values())
    for steps in (1, 3):
        run = train(
            dataclasses.replace(QUICK, output_dir=str(tmp_path / "parts"), max_train_steps=steps, **options)
        )
    parts = load_file(run / "adapter.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    plain = load_file(
        train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "plain"))) / "adapter.safetensors"
    )
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)
    assert load_adapter(load_sdxl(), run)["config"]["rank"] == 8  # without a warning: it knows its base
    assert json.loads((run / "config.json").read_text())["base_model_precision"] == kind
    with pytest.raises(ConfigError, match=f"--base_model_precision {kind}, not without it"):
        train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "parts")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_weight_of_the_base_is_in_few_bits_and_the_image_stays(torchao, kind):
    base, unet = load_sdxl().unet, load_sdxl().unet
    quantize(unet, kind)
    inject(unet, QUICK.adapter)
    linears = [m for m in unet.modules() if isinstance(m, nn.Linear)]
    assert all(quantized(m.weight) for m in linears)
    assert len(adapted_layers(unet)) == len(adapter_parameters(unet)) // 2
    inputs = torch.randn(2, 16, 8, 8), torch.tensor([500, 10]), torch.randn(2, 32, 192)
    conditions = dict(text_embeds=torch.randn(2, 128), time_ids=torch.full((2, 6), 64.0))
    with torch.no_grad():
        first, second = (model(*inputs, added_cond_kwargs=conditions).sample for model in (base, unet))
    assert 0 < (first - second).norm() / first.norm() < (0.03 if kind == "int8-torchao" else 0.4)


def test_without_the_package_or_with_gradients_of_the_base_it_is_one_sentence(monkeypatch, tmp_path):
    import importlib.util

    with pytest.raises(ConfigError, match="leaves no weights whose gradients can be taken"):
        TrainConfig(base_model_precision="int8-torchao", allocate="gora")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package torchao: pip install"):
        train(
            dataclasses.replace(QUICK, output_dir=str(tmp_path / "run"), base_model_precision="int8-torchao")
        )
    assert not list(tmp_path.iterdir())


def test_the_forecast_knows_how_few():
    from gralora_diffusion.sdxl.single_file import SDXL_UNET
    from gralora_diffusion.training.step_cost import step_memory

    config = TrainConfig(pretrained_model_name_or_path="x", train_batch_size=1, gradient_checkpointing=True)
    sizes = [
        step_memory(SDXL_UNET, dataclasses.replace(config, base_model_precision=kind), 256, torch.bfloat16)[
            "weights"
        ]
        / 2**30
        for kind in (None, *KINDS)
    ]
    assert sizes == pytest.approx([4.78, 2.70, 1.70], abs=0.01)
