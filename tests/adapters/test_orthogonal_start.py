"""--orthogonal_start: ranks at right angles, the base's least used directions, and a delta of zero."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_sdxl
from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.orthogonal_start import start_orthogonal
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.train import train

CONFIGS = [
    AdapterConfig(rank=8, method="lora"),
    AdapterConfig(rank=8, k=2),
    AdapterConfig(rank=8, k=2, hybrid_rank=4),
    AdapterConfig(rank=8, k=2, targets="attention+ff+conv"),
]


def started(config: AdapterConfig, source: str, seed: int = 0) -> dict[str, AdaptedLayer]:
    unet = load_sdxl().unet
    inject(unet, config)
    layers = adapted_layers(unet)
    start_orthogonal(layers, source, seed)
    return layers


@pytest.mark.parametrize("source", ["random", "base"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_ranks_of_each_slice_are_orthogonal_with_the_usual_norm_and_the_delta_is_zero(config, source):
    for layer in started(config, source).values():
        assert not layer.delta().any()
        for A, _ in layer.adapter.factors:
            for part in A.detach() if A.ndim == 3 else A.detach().T[None]:
                torch.testing.assert_close(part.T @ part, torch.eye(part.shape[1]) / 3, rtol=0, atol=1e-5)


def test_base_takes_what_the_base_uses_least():
    """|W a| is that of the smallest singular values, and far below that of random directions."""
    layers = started(AdapterConfig(rank=8, method="lora"), "base")
    layer = next(iter(layers.values()))
    weight = layer.weight.detach()
    values = torch.linalg.svdvals(weight)
    used = (weight @ layer.adapter.lora_A.detach().T).norm(dim=0) * 3**0.5
    torch.testing.assert_close(used, values[-8:], rtol=1e-3, atol=1e-5)


def test_random_follows_from_the_seed():
    config = AdapterConfig(rank=4, method="lora")
    first, again, other = (
        next(iter(started(config, "random", s).values())).adapter.lora_A for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("source", ["random", "base"])
def test_runs_train_and_differ_from_the_usual_start(tmp_path, source):
    config = TrainConfig(max_train_steps=2, train_batch_size=2, skip_final_inference=True)
    found = []
    for name, origin in (("a", source), ("b", source), ("c", None)):
        adapter = AdapterConfig(rank=8, k=2, tlora=True, orthogonal_start=origin)
        run = train(dataclasses.replace(config, adapter=adapter, output_dir=str(tmp_path / name)))
        found.append(load_file(run / "adapter.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_ranks_that_do_not_fit_in_a_slice_are_refused():
    unet = load_sdxl().unet
    inject(unet, AdapterConfig(rank=48, k=4))
    with pytest.raises(ConfigError, match="needs ranks of at most 32") as caught:
        start_orthogonal(adapted_layers(unet), "random", 0)
    assert caught.value.option == "orthogonal_start"


@pytest.mark.parametrize(
    "options",
    [
        dict(adapter=AdapterConfig(orthogonal_start="base"), base_model_precision="int8-torchao"),
        dict(adapter=AdapterConfig(orthogonal_start="random"), allocate="gora"),
    ],
    ids=["quantized", "allocated"],
)
def test_contradictions_are_refused(options):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**options)
    assert caught.value.option == "orthogonal_start"
