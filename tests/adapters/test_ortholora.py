"""--adapter ortholora: the paper's formula, a start that changes nothing, and every file and resume exact."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers import adapted_pipeline
from safetensors.torch import load_file, save_file
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_adapter, load_sdxl
from gralora_diffusion.adapters.conv import AdaptedConv2d
from gralora_diffusion.adapters.orthogonal_start import last_values, random_triplets, start_orthogonal
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.adapters.tlora import active_ranks
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.writers import WRITERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.train import train

ORTHO = AdapterConfig(method="ortholora", rank=4, alpha=6.0)
LEAVES = ("ortho_A", "ortho_S", "ortho_B", "start_A", "start_S", "start_B")


def layer_of(module: nn.Module, **options):
    """(the adapted module in fp64 with random factors, its adapter)."""
    config = dataclasses.replace(ORTHO, targets=".|conv", **options)
    layer = inject(nn.Sequential(module), config)["0"].double()
    torch.manual_seed(1)
    for p in layer.adapter.parameters():
        p.data.normal_()
    return layer, layer.adapter


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_papers_formula(masked):
    """Eq. 6: W x - B_0 S_0 M_t A_0 x + B S M_t A x, by loops over samples, with all gradients."""
    torch.manual_seed(0)
    layer, a = layer_of(nn.Linear(10, 7))
    masks = active_ranks(torch.tensor([0, 990]), 4, 2)
    a.active_ranks = {4: masks} if masked else None
    x = torch.randn(2, 3, 10, dtype=torch.float64)

    def formula():
        rows = []
        for i in range(2):
            M = torch.diag(masks[i].double()) if masked else torch.eye(4, dtype=torch.float64)
            W = layer.weight + a.scale * a.ortho_B @ torch.diag(a.ortho_S) @ M @ a.ortho_A
            W = W - a.scale * a.start_B @ torch.diag(a.start_S) @ M @ a.start_A
            rows.append(x[i] @ W.T + layer.bias)
        return torch.stack(rows)

    trained = [a.ortho_A, a.ortho_S, a.ortho_B]
    target = torch.randn(2, 3, 7, dtype=torch.float64)
    wanted = torch.autograd.grad((formula() * target).sum(), trained)
    found = torch.autograd.grad((layer(x) * target).sum(), trained)
    torch.testing.assert_close(layer(x), formula(), rtol=0, atol=1e-10)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    a.active_ranks = None
    torch.testing.assert_close(F.linear(x, layer.weight + layer.delta(), layer.bias), layer(x))


def test_of_a_convolution_too():
    torch.manual_seed(0)
    layer, a = layer_of(nn.Conv2d(6, 5, 3, padding=1, stride=2))
    assert isinstance(layer, AdaptedConv2d)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    weight = layer.weight + a.delta().view(5, 6, 3, 3)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, 2, 1), rtol=0, atol=1e-10)


def started(source: str, config=ORTHO, seed=0):
    unet = load_sdxl().unet
    layers = inject(unet, config)
    start_orthogonal(layers, source, seed)
    return layers


@pytest.mark.parametrize("source", ["random", "base"])
def test_the_start_is_of_singular_triplets_and_changes_nothing(source):
    layers = started(source, dataclasses.replace(ORTHO, targets="attention+ff+conv"))
    for path, layer in layers.items():
        a = layer.adapter
        assert float(layer.delta().abs().max()) < 1e-6
        eye = torch.eye(4)
        torch.testing.assert_close(a.ortho_A.detach() @ a.ortho_A.detach().T, eye, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.ortho_B.detach().T @ a.ortho_B.detach(), eye, rtol=0, atol=1e-5)
        assert [name for name, p in a.named_parameters() if p.requires_grad] == list(LEAVES[:3])
        if source == "base":
            weight = layer.weight.detach().flatten(1)
            torch.testing.assert_close(weight @ a.ortho_A.T, a.ortho_B * a.ortho_S, rtol=0, atol=1e-4)
        if "attn1.to_q" in path:
            x = torch.randn(2, 5, layer.in_features)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-6)


def test_random_triplets_are_those_of_a_gaussian_matrix():
    """By their moments: entries of uniform columns, the values of an SVD; and they follow from the seed."""
    adapter = layer_of(nn.Linear(24, 16))[1]
    A, S, B = random_triplets(adapter, generator(0), 0)
    again = random_triplets(adapter, generator(0), 0)
    assert all(torch.equal(x, y) for x, y in zip((A, S, B), again, strict=True))
    draws = torch.stack([random_triplets(adapter, generator(n), 0)[0] for n in range(2000)])
    assert draws.mean().abs() < 0.01
    torch.testing.assert_close(draws.square().mean(0), torch.full((4, 24), 1 / 24), rtol=0, atol=0.01)
    values = torch.stack([last_values(16, 24, 4, seed) for seed in range(400)]).mean(0)
    random = torch.randn(400, 16, 24, generator=torch.Generator().manual_seed(0)) / 4
    torch.testing.assert_close(values, torch.linalg.svdvals(random)[:, -4:].mean(0), rtol=0.05, atol=0)


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    adapter = AdapterConfig(method="ortholora", rank=4, tlora=True, orthogonal_start="base")
    options = dict(max_train_steps=4, train_batch_size=2, skip_final_inference=True, learning_rate=0.01)
    return TrainConfig(adapter=adapter, checkpointing_steps=2, **options)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    return train(dataclasses.replace(config, output_dir=str(tmp_path_factory.mktemp("runs") / "ortho")))


def test_a_run_trains_three_factors_and_keeps_the_start(run):
    first = load_file(run / "checkpoint-2" / "adapter.safetensors")
    last = load_file(run / "adapter.safetensors")
    for name, tensor in last.items():
        assert torch.equal(tensor, first[name]) == (".start_" in name), name


def test_it_resumes_bit_by_bit(run, config, tmp_path):
    path = tmp_path / "again"
    stopped = dataclasses.replace(config, output_dir=str(path), max_train_steps=2)
    train(stopped)
    train(dataclasses.replace(stopped, max_train_steps=4))
    found, wanted = (load_file(folder / "adapter.safetensors") for folder in (path, run))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", ["native", "comfyui", "diffusers", "peft"])
def test_every_file_holds_its_delta(name, tmp_path):
    """Of other tools it is a LoRA of rank 2r."""
    config = dataclasses.replace(ORTHO, targets="attention+ff+conv")
    models = adapted_pipeline(config, ["unet"])[1]
    adapter = Adapter.from_models(models)
    path = tmp_path / f"x{WRITERS[name].suffixes[0]}"
    WRITERS[name].write(path, adapter, "fp32")
    written = read_adapter(path)
    for own, layer in adapted_layers(models["unet"]).items():
        down, up = written.low_rank("unet", own)
        torch.testing.assert_close(up @ down, layer.adapter.delta().detach(), rtol=1e-5, atol=1e-6)
        assert len(down) == 8


def lightly_trained(change: float) -> Adapter:
    """An adapter whose factors are those of the start but for a small change of each."""
    pipeline = load_sdxl()
    layers = inject(pipeline.unet, dataclasses.replace(ORTHO, targets="attention+ff+conv"))
    start_orthogonal(layers, "random", 0)
    random = torch.Generator().manual_seed(0)
    for layer in layers.values():
        for name in LEAVES[:3]:
            p = getattr(layer.adapter, name).data
            p += change * p.square().mean().sqrt() * torch.randn(p.shape, generator=random)
    return Adapter.from_models(dict(unet=pipeline.unet))


def worst_error(written: Adapter, adapter: Adapter) -> float:
    """The largest relative error of a layer's delta."""
    errors = []
    for component, path, _ in adapter.items():
        wanted, found = (x.low_rank(component, path) for x in (adapter, written))
        wanted, found = (up.double() @ down.double() for down, up in (wanted, found))
        errors.append(float((found - wanted).norm() / wanted.norm()))
    return max(errors)


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        ("comfyui", "fp16", 1e-3),
        ("comfyui", "bf16", 5e-3),
        ("comfyui", "fp8", 8e-2),
        ("diffusers", "fp16", 1e-3),
        ("diffusers", "bf16", 5e-3),
        ("peft", "fp16", 1e-3),
        ("peft", "bf16", 5e-3),
    ],
)
@pytest.mark.parametrize("change", [1e-2, 1e-3])
def test_half_precision_does_not_lose_a_small_difference_from_the_start(name, dtype, limit, change, tmp_path):
    """The errors are those of a LoRA's file: relative to delta, which is far smaller than the products."""
    adapter = lightly_trained(change)
    path = tmp_path / f"x{WRITERS[name].suffixes[0]}"
    WRITERS[name].write(path, adapter, dtype)
    assert worst_error(read_adapter(path), adapter) < limit


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8"])
def test_a_native_file_in_half_precision_is_refused(dtype, tmp_path):
    with pytest.raises(ConfigError, match=r"ortholora cannot be in half precision.*: use fp32 or another"):
        WRITERS["native"].write(tmp_path / "x.safetensors", lightly_trained(0.01), dtype)
    assert not list(tmp_path.iterdir())


def test_a_loaded_file_is_masked_at_timesteps(run):
    pipeline = load_sdxl()
    load_adapter(pipeline, run)
    unet = pipeline.unet
    text = torch.zeros(1, 4, unet.config.cross_attention_dim)
    added = dict(
        text_embeds=torch.zeros(1, pipeline.text_encoder_2.config.projection_dim), time_ids=torch.ones(1, 6)
    )
    unet(torch.zeros(1, unet.config.in_channels, 8, 8), torch.tensor([999]), text, added_cond_kwargs=added)
    masks = [layer.adapter.active_ranks[4] for layer in adapted_layers(unet).values()]
    assert all(mask.sum() == 2 for mask in masks)


def test_start_from_another_kind_is_refused_and_from_its_own_is_exact(run, config, tmp_path):
    adapter = AdapterConfig(method="lora", rank=8)
    child = dataclasses.replace(
        config, start_from=str(run), max_train_steps=1, output_dir=str(tmp_path / "c")
    )
    train(dataclasses.replace(child, learning_rate=1e-30, adam_weight_decay=0.0))
    same, parent = (read_adapter(folder) for folder in (tmp_path / "c", run))
    plain = dataclasses.replace(child, adapter=adapter, output_dir=str(tmp_path / "lora"))
    train(dataclasses.replace(plain, learning_rate=1e-30, adam_weight_decay=0.0))
    lora = read_adapter(tmp_path / "lora")
    for component, path, _ in parent.items():
        wanted = torch.mm(*reversed(parent.low_rank(component, path)))
        for found in (same, lora):
            delta = torch.mm(*reversed(found.low_rank(component, path)))
            torch.testing.assert_close(delta, wanted, rtol=1e-4, atol=1e-6)
    other = dataclasses.replace(child, start_from=str(tmp_path / "lora"), output_dir=str(tmp_path / "no"))
    with pytest.raises(ConfigError, match="starts only from one of the same kind and sizes"):
        train(other)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("leaf", LEAVES)
def test_tensors_that_do_not_fit_are_one_sentence(run, leaf, tmp_path):
    tensors = load_file(run / "adapter.safetensors")
    name = next(name for name in tensors if name.endswith(leaf))
    tensors[name] = tensors[name][..., :-1].contiguous()
    from safetensors import safe_open

    with safe_open(run / "adapter.safetensors", "pt") as file:
        save_file(tensors, tmp_path / "x.safetensors", file.metadata())
    with pytest.raises(ConfigError, match="do not fit"):
        read_adapter(tmp_path / "x.safetensors")


def test_ranks_from_gradients_are_refused():
    with pytest.raises(ConfigError, match="use --adapter lora or gralora"):
        TrainConfig(adapter=AdapterConfig(method="ortholora"), allocate="energy")


def test_a_header_with_another_rank_is_refused(tmp_path, monkeypatch):
    adapter = lightly_trained(0.01)
    config = dataclasses.replace(adapter.config, rank=8)
    WRITERS["native"].write(tmp_path / "x.safetensors", dataclasses.replace(adapter, config=config))
    with pytest.raises(ConfigError, match="the header says rank 8, and the tensors have 4"):
        read_adapter(tmp_path / "x.safetensors")
    WRITERS["native"].write(tmp_path / "y.safetensors", adapter)
    monkeypatch.setattr("gralora_diffusion.formats.check.LARGEST_RANK", 3)
    with pytest.raises(ConfigError, match="its tensors do not fit each other"):
        read_adapter(tmp_path / "y.safetensors")
