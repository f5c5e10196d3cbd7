"""Runs with --targets attention+ff+conv: exact when resumed, forecast exactly, and started from gradients."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_adapter, load_sdxl
from gralora_diffusion.adapters.allocation import FILE, apply
from gralora_diffusion.adapters.conv import AdaptedConv2d
from gralora_diffusion.adapters.quantization import QuantizedLinear, quantize
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.sdxl.base import blank_inputs, predict
from gralora_diffusion.sdxl.load import shapes
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.offload import Offload
from gralora_diffusion.training.step_cost import step_memory
from gralora_diffusion.training.train import train

TARGETS = "attention+ff+conv"
QUICK = TrainConfig(
    max_train_steps=2,
    train_batch_size=2,
    checkpointing_steps=1,
    skip_final_inference=True,
    upcast_before_saving=True,
)
ADAPTERS = {
    "lora": AdapterConfig(method="lora", rank=8, dropout=0.1, targets=TARGETS),
    "gralora": AdapterConfig(rank=8, k=2, dropout=0.1, targets=TARGETS),
    "hybrid": AdapterConfig(rank=8, k=2, hybrid_rank=4, tlora=True, targets=TARGETS),
}
HOW = {
    "fp32": {},
    "bf16": dict(mixed_precision="bf16", gradient_checkpointing=True, ema_decay=0.9),
    "Prodigy": dict(optimizer="Prodigy", learning_rate=1.0, mixed_precision="bf16"),
}


def tensors_of(run) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter.safetensors")


@pytest.mark.parametrize(
    ("adapter", "how"), [("lora", "fp32"), ("gralora", "bf16"), ("hybrid", "bf16"), ("gralora", "Prodigy")]
)
def test_a_run_is_resumed_bit_by_bit(adapter, how, tmp_path):
    config = dataclasses.replace(QUICK, adapter=ADAPTERS[adapter], **HOW[how])
    whole = train(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    for steps in (1, 2):
        again = dataclasses.replace(config, output_dir=str(tmp_path / "steps"), max_train_steps=steps)
        run = train(again)
    first, second = tensors_of(whole), tensors_of(run)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    learned = [name for name, tensor in first.items() if name.endswith("_B") and tensor.abs().sum() > 0]
    assert any("conv1" in name for name in learned)
    assert len(learned) == sum(name.endswith("_B") for name in first)

    made = plan(dataclasses.replace(config, output_dir=str(tmp_path / "plan" / "whole")))
    assert made.parameters == sum(t.numel() for name, t in first.items() if not name.endswith(".alpha"))
    assert f"{len(made.layers)} layers, {made.parameters:,} parameters" in made.text()
    assert any("conv1" in line and " x 3 x 3 -> " in line for line in made.table())
    for name, size in made.files.items():
        assert (whole / name).stat().st_size == pytest.approx(size, rel=0.1)

    native, plain = load_sdxl(), load_sdxl()
    load_adapter(native, whole)
    plain.load_lora_weights(whole)  # diffusers' own reader
    layers = adapted_layers(native.unet)
    assert len(layers) == len(made.layers)
    assert sum(isinstance(layer, AdaptedConv2d) for layer in layers.values()) > 10
    for path, layer in layers.items():
        theirs = plain.unet.get_submodule(path).get_delta_weight("default_0").detach().flatten(1)
        error = (theirs - layer.delta()).norm() / layer.delta().norm()
        assert float(error) < 1e-4


@pytest.mark.parametrize("method", ["lora", "gralora"])
def test_parameters_at_full_size(method, tmp_path):
    """r (M + C kh kw) for each convolution but the outer two, beside those of the linear layers."""
    file = tmp_path / "sd_xl_base_1.0.safetensors"
    file.write_bytes(b"")
    unet = shapes(file)["unet"]
    convolutions = [m for name, m in unet.named_modules() if type(m) is nn.Conv2d]
    wanted = sum(16 * (m.out_channels + m.weight[0].numel()) for m in convolutions[1:-1])
    linear = inject(shapes(file)["unet"], AdapterConfig(method=method, rank=16, targets="attention+ff"))
    wanted += sum(p.numel() for layer in linear.values() for p in layer.adapter.parameters())
    layers = inject(unet, AdapterConfig(method=method, rank=16, targets=TARGETS))
    assert len(layers) == 700 + 17 * 2 + 11 + 2 + 2
    assert sum(p.numel() for p in adapter_parameters(unet).values()) == wanted
    assert {layer.adapter.k for layer in layers.values()} == ({2} if method == "gralora" else {1})


@pytest.mark.parametrize("adapter", ["lora", "gralora"])
def test_the_forecast_counts_what_autograd_keeps(adapter):
    """Against the real forward pass of the embedded base, tensor by tensor."""
    chosen = dataclasses.replace(ADAPTERS[adapter], dropout=0.0)
    config = TrainConfig(train_batch_size=2, adapter=chosen)
    unet = load_sdxl().unet.train()
    expected = step_memory(unet.config, config, 64, torch.float32)["activations"]
    inject(unet, chosen)
    own, kept = {p.untyped_storage().data_ptr() for p in unet.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = blank_inputs(unet.config, 2, 8, 77)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = predict(unet, *inputs)
    assert out.requires_grad
    assert sum(kept.values()) == expected


def test_an_offloaded_unet_computes_the_same_bits():
    found = []
    for offloaded in (False, True):
        unet = load_sdxl().unet
        torch.manual_seed(0)
        inject(unet, dataclasses.replace(ADAPTERS["gralora"], dropout=0.0))
        for name, parameter in adapter_parameters(unet).items():
            if name.endswith("_B"):
                nn.init.normal_(parameter, std=0.1)
        unet.train()
        unet.enable_gradient_checkpointing()
        if offloaded:
            Offload(unet, torch.device("cpu"))
        torch.manual_seed(1)
        noisy, timesteps, prompts, sizes = blank_inputs(unet.config, 2, 8)
        nn.init.normal_(noisy)
        predict(unet, noisy, timesteps + 300, prompts, sizes).square().mean().backward()
        found.append([parameter.grad for parameter in adapter_parameters(unet).values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_convolutions_stay_unquantized():
    pytest.importorskip("torchao")
    unet = load_sdxl().unet
    quantize(unet, "int8-torchao")
    layers = inject(unet, ADAPTERS["gralora"])
    for layer in layers.values():
        if isinstance(layer, AdaptedConv2d):
            layer.merge()  # which a quantized layer cannot
            assert layer.weight.dtype == torch.float32
        else:
            assert isinstance(layer.to_plain(), QuantizedLinear)


class Planted(nn.Module):
    """A convolution and a linear layer whose gradients are known."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.linear = nn.Linear(48, 32, bias=False)

    @staticmethod
    def inputs(index):
        random = generator(3, index)
        x, y = torch.randn(2, 16, 6, 6, generator=random), torch.randn(2, 32, 3, 3, generator=random)
        return x + 1, y + torch.linspace(-1, 1, 32)[:, None, None], torch.randn(5, 48, generator=random)

    def loss(self, index):
        x, y, rows = self.inputs(index)
        return (self.conv(x) * y).sum() + self.linear(rows + 0.5).sum()

    def gradient(self, batches) -> torch.Tensor:
        """Of the convolution's weight, as a matrix, from unfolded inputs."""
        total = 0
        for batch in batches:
            x, y, _ = self.inputs(batch)
            columns = F.unfold(x, 3, padding=1, stride=2)
            total = total + torch.einsum("tmp,tnp->mn", y.flatten(2), columns)
        return total / len(batches)


@pytest.mark.parametrize("method", ["lora", "gralora"])
@pytest.mark.parametrize("rule", ["gora", "energy", "uniform"])
@pytest.mark.parametrize("init", ["svd", "random"])
def test_ranks_and_starts_come_from_the_gradient_of_the_matrix(method, rule, init, tmp_path):
    model = Planted()
    adapter = AdapterConfig(method=method, rank=8, targets="conv|linear")
    inject(model, adapter)
    config = TrainConfig(
        adapter=adapter, allocate=rule, gora_init=init, gora_batches=8, gora_gamma=0.02
    ).resolved()
    apply({"unet": model}, model.loss, config, Accelerator(cpu=True), tmp_path)
    facts = json.loads((tmp_path / FILE).read_text())
    row = facts["layers"]["unet.conv"]
    assert row["shape"] == [32, 16 * 9]
    assert row["kernel"] == [3, 3]
    assert (row["rank"], row["k"]) == (model.conv.adapter.rank, model.conv.adapter.k)
    G = model.gradient(range(2**30, 2**30 + facts["batches"]))
    delta = model.conv.delta()
    assert float((delta * G).sum()) < 0
    assert float(delta.norm() / G.norm()) == pytest.approx(0.02, rel=1e-3)
    assert row["gradient_norm"] == pytest.approx(float(G.norm()), rel=1e-4)
    total = sum(p.numel() for p in adapter_parameters(model).values())
    assert total == 8 * (32 + 16 * 9 + 48 + 32)


def test_a_run_with_allocated_ranks_is_resumed(tmp_path):
    adapter = AdapterConfig(rank=8, targets=TARGETS)
    config = dataclasses.replace(QUICK, adapter=adapter, allocate="energy", gora_batches=2, gora_gamma=1.0)
    whole = train(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    for steps in (1, 2):
        run = train(dataclasses.replace(config, output_dir=str(tmp_path / "steps"), max_train_steps=steps))
    first, second = tensors_of(whole), tensors_of(run)
    assert all(torch.equal(first[name], second[name]) for name in first)
    pipeline = load_sdxl()
    load_adapter(pipeline, whole)
    kernels = {layer.adapter.kernel for layer in adapted_layers(pipeline.unet).values()}
    assert kernels == {None, (1, 1), (3, 3)}
