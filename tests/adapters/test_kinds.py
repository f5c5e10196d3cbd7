"""A kind of adapter from outside the package: one class and one line, and everything works with it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import MODELS
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_adapter, load_sdxl, save_adapter
from gralora_diffusion.adapters import kinds
from gralora_diffusion.adapters.control import merge, remove, set_strength, unmerge
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.writers import WRITERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.optim import parameter_groups
from gralora_diffusion.training.train import train

QUICK = dict(max_train_steps=3, train_batch_size=2, skip_final_inference=True)


class ScaledDiagonal(LayerAdapter):
    """delta = scale * diag(diagonal), which has no low rank: [M, N] with zeros beside the diagonal."""

    LEAVES = ({"diagonal"},)

    def __init__(self, linear, rank, alpha=None, dropout=0.0, rslora=False):
        super().__init__(linear, rank, alpha, dropout, rslora)
        self.diagonal = nn.Parameter(torch.zeros(min(self.in_features, self.out_features)))

    def delta(self):
        square = torch.diag(self.diagonal * self.scale)
        return F.pad(square, (0, self.in_features - len(square), 0, self.out_features - len(square)))


class OneRow(LayerAdapter):
    """delta = scale * ones(M, 1) @ row, a pair of rank 1."""

    LEAVES = ({"row", "one"},)

    def __init__(self, linear, rank, alpha=None, dropout=0.0, rslora=False):
        super().__init__(linear, rank, alpha, dropout, rslora)
        self.row = nn.Parameter(torch.zeros(1, self.in_features))
        self.one = nn.Parameter(torch.ones(self.out_features, 1))

    @staticmethod
    def low_rank_of(factors, scale):
        return factors["row"], factors["one"] * scale


@pytest.fixture(autouse=True)
def registered():
    before = list(kinds.METHODS)
    kinds.register("diagonal", ScaledDiagonal)
    kinds.register("row", OneRow)
    yield
    kinds.METHODS[:] = before
    for name in ("diagonal", "row"):
        del kinds.KINDS[name]


def output(pipeline) -> torch.Tensor:
    """The UNet's prediction for one fixed input, [2, c, 8, 8]."""
    random = torch.Generator().manual_seed(0)
    unet = pipeline.unet
    sample = torch.randn(2, unet.config.in_channels, 8, 8, generator=random)
    text = torch.randn(2, 4, unet.config.cross_attention_dim, generator=random)
    pooled = torch.randn(2, pipeline.text_encoder_2.config.projection_dim, generator=random)
    added = dict(text_embeds=pooled, time_ids=torch.full((2, 6), 64.0))
    with torch.no_grad():
        return unet(sample, torch.tensor([10, 900]), text, added_cond_kwargs=added).sample


@pytest.mark.parametrize("method", ["diagonal", "row"])
def test_it_trains_and_its_file_gives_the_same_output(method, tmp_path):
    adapter = AdapterConfig(method=method, rank=4, alpha=8.0, targets="attn1")
    run = train(TrainConfig(adapter=adapter, output_dir=str(tmp_path / "run"), learning_rate=0.01, **QUICK))
    assert (run / f"{run.name}.safetensors").exists() == (method == "row")
    pipeline = load_sdxl()
    base = output(pipeline)
    load_adapter(pipeline, run, name="trained")
    trained = output(pipeline)
    assert (trained - base).abs().max() > 1e-3
    save_adapter(tmp_path / "again.safetensors", {"unet": pipeline.unet})
    again = load_sdxl()
    load_adapter(again, tmp_path / "again.safetensors")
    assert torch.equal(output(again), trained)
    assert torch.equal(output(copy.deepcopy(again)), trained)
    merge(again.unet)
    torch.testing.assert_close(output(again), trained, rtol=0, atol=1e-4)
    unmerge(again.unet)
    set_strength(again, 0.0)
    assert torch.equal(output(again), base)
    remove(again)
    assert not adapted_layers(again.unet)


@pytest.mark.parametrize("method", ["diagonal", "row"])
def test_forward_is_the_weight_plus_delta(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4)).double()
    layer = inject(model, AdapterConfig(method=method, rank=2, alpha=3.0, targets="all-linear"))["0"].double()
    assert type(layer) is AdaptedLinear
    for p in layer.adapter.parameters():
        p.data.normal_()
    x = torch.randn(5, 6, dtype=torch.float64)
    assert layer.delta().abs().sum() > 0
    expected = F.linear(x, layer.weight + layer.delta(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
    layer(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.adapter.parameters())


def test_a_low_rank_kind_is_exported_and_another_refused(tmp_path):
    for method in ("row", "diagonal"):
        pipeline = load_sdxl()
        models = {name: getattr(pipeline, name) for name in MODELS}
        for layer in inject(models["unet"], AdapterConfig(method=method, rank=4, alpha=8.0)).values():
            for p in layer.adapter.parameters():
                p.data.normal_(std=0.1)
        adapter = Adapter.from_models(models)
        for name in ("comfyui", "diffusers", "peft"):
            path = tmp_path / f"{method}-{name}{WRITERS[name].suffixes[0]}"
            if method == "diagonal":
                with pytest.raises(
                    ConfigError, match="of the kind diagonal has no low-rank form: only the native"
                ):
                    WRITERS[name].write(path, adapter, "fp32")
                assert not path.exists()
                continue
            WRITERS[name].write(path, adapter, "fp32")
            written = read_adapter(path)
            for path, layer in adapted_layers(models["unet"]).items():
                down, up = written.low_rank("unet", path)
                torch.testing.assert_close(up @ down, layer.adapter.delta().detach(), rtol=0, atol=1e-6)


def test_what_does_not_fit_a_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="already a kind of adapter named 'lora'"):
        kinds.register("lora", ScaledDiagonal)
    with pytest.raises(ConfigError, match="one of gralora, lora, ortholora, diagonal, row"):
        AdapterConfig(method="unknown")
    start = dict(allocate="gora", gora_init="svd", gora_batches=1)
    config = TrainConfig(
        adapter=AdapterConfig(method="diagonal", rank=4), output_dir=str(tmp_path / "x"), **start
    )
    with pytest.raises(ConfigError, match="needs a LoRA or a GraLoRA, not ScaledDiagonal"):
        train(TrainConfig(**vars(config) | QUICK))
    with pytest.raises(ValueError, match="T-LoRA masks ranks"):
        inject(load_sdxl().unet, AdapterConfig(method="diagonal", rank=4, tlora=True))


@pytest.mark.parametrize("method", ["diagonal", "row"])
def test_loraplus_trains_every_parameter_of_any_kind(method):
    unet = load_sdxl().unet
    config = TrainConfig(
        adapter=AdapterConfig(method=method, rank=4), learning_rate=1e-3, loraplus_lr_ratio=4
    )
    inject(unet, config.adapter)
    groups = parameter_groups(dict(unet=unet), config)
    trained = sum(len(group["params"]) for group in groups)
    assert trained == sum(p.requires_grad for p in unet.parameters()) > 0
