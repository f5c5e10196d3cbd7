"""T-LoRA's timestep-dependent rank: the paper's formula, sample by sample, in every kind of adapter."""

import pytest
import torch
from helpers import adapted_pipeline
from torch import nn
from torch.utils.checkpoint import checkpoint

from gralora_diffusion import AdapterConfig, inject, load_adapter, load_sdxl, save_adapter
from gralora_diffusion.adapters.control import remove
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.adapters.tlora import active_ranks

N, M = 24, 16
KINDS = [
    (AdapterConfig(method="lora", rank=8, tlora=True, tlora_min_rank=3, targets="all-linear"), {8: 3}),
    (AdapterConfig(rank=8, k=2, tlora=True, tlora_min_rank=3, targets="all-linear"), {4: 2}),
    (AdapterConfig(rank=8, k=1, tlora=True, targets="all-linear"), {8: 4}),
    (
        AdapterConfig(rank=12, k=4, hybrid_rank=4, tlora=True, tlora_min_rank=6, targets="all-linear"),
        {2: 1, 4: 2},
    ),
    (
        AdapterConfig(rank=12, k=2, hybrid_rank=6, tlora=True, tlora_min_rank=1, targets="all-linear"),
        {3: 1, 6: 1},
    ),
]
TIMESTEPS = torch.tensor([999, 0, 500, 1, 321])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N, M)

    def forward(self, sample, timestep):
        return self.linear(sample)


def rank_at(t: int, ranks: int, least: int) -> int:
    """arXiv 2507.05964, section 3.1, word by word."""
    return int((ranks - least) * (1000 - t) / 1000 + 1e-9) + least


def delta_at(layer, t: int, least: dict) -> torch.Tensor:
    """B M_t A, term by term."""
    delta = torch.zeros(M, N, dtype=torch.float64)
    if hasattr(layer.adapter, "gralora_A"):
        k, g = layer.adapter.k, layer.adapter.gralora_A.shape[2] // layer.adapter.k
        for i in range(k):
            for j in range(k):
                for s in range(rank_at(t, g, least[g])):
                    block = torch.outer(
                        layer.adapter.gralora_B[i, j * g + s], layer.adapter.gralora_A[j, :, i * g + s]
                    )
                    delta[i * M // k : (i + 1) * M // k, j * N // k : (j + 1) * N // k] += block
    if hasattr(layer.adapter, "lora_A"):
        for s in range(rank_at(t, len(layer.adapter.lora_A), least[len(layer.adapter.lora_A)])):
            delta += torch.outer(layer.adapter.lora_B[:, s], layer.adapter.lora_A[s])
    return layer.adapter.scale * delta


def masked_model(config):
    torch.manual_seed(0)
    model = Model().double()
    layer = inject(model, config)["linear"]
    for p in layer.adapter.parameters():
        p.data = torch.randn_like(p, dtype=torch.float64)
    return model, layer


def test_the_rank_falls_from_all_to_the_least():
    counts = active_ranks(torch.arange(1000), 64, 32).sum(1)
    assert counts[[0, 1, 32, 500, 969, 999]].tolist() == [64, 63, 62, 48, 32, 32]
    assert counts.tolist() == [rank_at(t, 64, 32) for t in range(1000)]
    assert active_ranks(torch.tensor([999]), 5, 2).tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize(("config", "least"), KINDS)
@pytest.mark.parametrize("tokens", [(), (3,), (2, 3)])
def test_each_sample_has_the_rank_of_its_own_timestep(config, least, tokens):
    model, layer = masked_model(config)
    x = torch.randn(len(TIMESTEPS), *tokens, N, dtype=torch.float64)
    out = model(x, TIMESTEPS)
    for i, t in enumerate(TIMESTEPS.tolist()):
        expected = x[i] @ (layer.weight + delta_at(layer, t, least)).T + layer.bias
        torch.testing.assert_close(out[i], expected, rtol=0, atol=1e-10)
    for one in (500, torch.tensor(500), torch.tensor(500.0)):  # as a pipeline gives it, for the whole batch
        expected = x @ (layer.weight + delta_at(layer, 500, least)).T + layer.bias
        torch.testing.assert_close(model(x, timestep=one), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        model(x, 0), x @ (layer.weight + layer.delta()).T + layer.bias, rtol=0, atol=1e-10
    )


class Checkpointed(nn.Module):
    """Recomputes its layer's forward pass in the backward pass, as a UNet's blocks do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=False)


@pytest.mark.parametrize(("config", "least"), KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_idle_ranks_get_no_gradient_and_recomputation_has_the_same_mask(config, least, autocast):
    model, layer = masked_model(config)
    model.float()
    x, gradients = torch.randn(2, 3, N), []
    for module in (layer, Checkpointed(layer)):
        model.linear = module
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(x, torch.tensor([999, 750]))
        out.float().square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in layer.adapter.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    for name, gradient in gradients[0].items():
        if name.startswith("gralora"):
            groups = gradient.transpose(1, 2) if name == "gralora_A" else gradient  # [k, r, ...]
            groups = groups.unflatten(1, (layer.adapter.k, -1)).abs().sum((0, 1, 3))
        else:
            groups = gradient.abs().sum(1 if name == "lora_A" else 0)
        most = rank_at(750, len(groups), least[len(groups)])
        assert (groups[:most] > 0).all()
        assert (groups[most:] == 0).all()


def test_masks_in_the_unet_follow_every_forward_and_go_with_the_adapter(tmp_path):
    config = AdapterConfig(rank=8, k=2, tlora=True, targets="all-linear")
    pipeline, models = adapted_pipeline(config)
    unet = pipeline.unet
    inputs = dict(
        encoder_hidden_states=torch.randn(2, 32, 192),
        added_cond_kwargs=dict(text_embeds=torch.randn(2, 128), time_ids=torch.zeros(2, 6)),
    )
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        both = unet(x, torch.tensor([900, 10]), **inputs).sample
        for i, t in enumerate((900, 10)):
            assert not torch.equal(unet(x, 500, **inputs).sample[i], both[i])
            torch.testing.assert_close(unet(x, t, **inputs).sample[i], both[i], rtol=0, atol=1e-5)
        assert all(layer.adapter.active_ranks is not None for layer in adapted_layers(unet).values())
        assert all(
            layer.adapter.active_ranks is None for layer in adapted_layers(pipeline.text_encoder).values()
        ), "encoders see no timestep"
        save_adapter(tmp_path / "tlora.safetensors", models)
        other = load_sdxl()
        plain = other.unet(x, 900, **inputs).sample
        load_adapter(other, tmp_path / "tlora.safetensors", strength=1.0)
        torch.testing.assert_close(
            other.unet(x, torch.tensor([900, 10]), **inputs).sample, both, rtol=0, atol=1e-5
        )
        remove(other)
        assert torch.equal(other.unet(x, 900, **inputs).sample, plain)
        assert not other.unet._forward_pre_hooks
