"""The entanglement report on planted problems, and its command on the embedded base."""

import json
import os
import subprocess

import pytest
import torch
from accelerate import Accelerator
from helpers import GRALORA
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig, inject
from gralora_diffusion.adapters.gora import as_gralora
from gralora_diffusion.adapters.inject import first_match
from gralora_diffusion.command_line import parse
from gralora_diffusion.experiments.entanglement import (
    Channels,
    align_all,
    alignment,
    fused_update,
    kaiming_blocks,
    measure_layers,
    outlier_of,
    recommend,
)
from gralora_diffusion.experiments.entanglement_report import options_of

OUTLIER = 100


def planted(seed: int, tokens: int = 8, width: int = 256, factor: float = 30) -> torch.Tensor:
    """The gradient of a layer of `width` x `width` over a few tokens, one of its input channels x30."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=random)
    x[:, OUTLIER] *= factor
    return torch.randn(tokens, width, generator=random).T @ x


def mean_cosine(found: list[dict], rank: int, k: int, where: str = "mean") -> float:
    return sum(one[rank][k][where] for one in found) / len(found)


def test_the_published_table_of_entanglement():
    """Mean cosines of fused update and gradient for LoRA and k = 2, 4, 8; with k = 8, outside the strip."""
    expected = {
        16: (0.144, 0.182, 0.202, 0.214, 0.235),
        64: (0.271, 0.310, 0.361, 0.393, 0.433),
        128: (0.373, 0.433, 0.469, 0.516, 0.564),
    }
    found = [align_all(planted(seed), expected, (1, 2, 4, 8), OUTLIER, seed) for seed in range(24)]
    for rank, cells in expected.items():
        means = [mean_cosine(found, rank, k) for k in (1, 2, 4, 8)]
        outside = mean_cosine(found, rank, 8, "outside")
        inside = mean_cosine(found, rank, 8, "inside")
        assert [*means, outside] == pytest.approx(cells, abs=0.02)
        assert inside < 0.5 * outside
        assert means == sorted(means)


def test_without_an_outlier_k_changes_nothing():
    found = [align_all(planted(seed, factor=1), (64,), (1, 2, 4, 8), OUTLIER, seed) for seed in range(8)]
    means = [mean_cosine(found, 64, k) for k in (1, 2, 4, 8)]
    assert max(means) - min(means) < 0.02
    assert means[0] == pytest.approx((1 + 256 / 64) ** -0.5, abs=0.03)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_fused_update_is_what_a_step_of_sgd_does(k):
    """lr -> 0: the change of delta after a step of B and A, with a loss whose gradient is G everywhere."""
    from gralora_diffusion.adapters.linear import GraLoRALinear

    layer = GraLoRALinear.from_linear(nn.Linear(32, 16), 8, k).double()
    G, random = torch.randn(16, 32, dtype=torch.float64), torch.Generator().manual_seed(0)
    A = kaiming_blocks(8, k, 32, random).double()
    B = torch.randn(k, k, 16 // k, 8 // k, dtype=torch.float64, generator=random)
    layer.adapter.gralora_A.data, layer.adapter.gralora_B.data = as_gralora(A, B)
    before = layer.delta()
    (
        layer.weight.new_tensor(0) + (layer(torch.eye(32, dtype=torch.float64)) - layer.bias).T.mul(G).sum()
    ).backward()
    lr = 1e-6
    for p in (layer.adapter.gralora_A, layer.adapter.gralora_B):
        p.data -= lr * p.grad
    torch.testing.assert_close((before - layer.delta()) / lr, fused_update(G, A, B), rtol=1e-4, atol=1e-3)


class Planted(nn.Module):
    """Two layers; the input of the second has one channel x40, always the same."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.calm, self.loud = nn.Linear(64, 32), nn.Linear(64, 32)

    def loss(self, index):
        random = torch.Generator().manual_seed(index)
        x, y = torch.randn(6, 64, generator=random), torch.randn(6, 32, generator=random)
        loud = x.clone()
        loud[:, 17] *= 40
        return ((self.calm(x) + self.loud(loud)) * y).sum()


def test_the_planted_outlier_is_found_and_named():
    model = Planted()
    layers = inject(model, AdapterConfig(method="lora", rank=8, targets="calm|loud"))
    sizes = dict(batches=5, ranks=[8, 16], ks=[1, 2, 4], seed=0, deltas={"loud": torch.eye(32, 64)})
    rows = measure_layers(layers, [model.loss, model.loss], Accelerator(cpu=True), **sizes)
    loud, calm = rows["loud"], rows["calm"]
    ratio = pytest.approx(40 / (1 + 39 / 64), rel=0.2)
    assert loud["outlier"] == dict(channel=17, ratio=ratio, share=1.0, stable=True)
    assert not calm["outlier"]["stable"]
    assert "channel 17" in loud["recommended"]["reason"]
    assert "no stable outlier" in calm["recommended"]["reason"]
    assert loud["alignment"][8][4]["outside"] > 2 * loud["alignment"][8][4]["inside"]
    assert loud["delta_effective_rank"] == pytest.approx(32)
    assert "delta_effective_rank" not in calm
    assert loud["energy_raw"][8][1] > 0.9 > loud["energy_whitened"][8][1]


def test_an_outlier_that_wanders_is_not_stable():
    def batch(channel):
        c = torch.ones(64)
        c[channel] = 90
        return c

    assert outlier_of([batch(3) for _ in range(9)] + [batch(5)]) == dict(
        channel=3, ratio=pytest.approx(32.1, abs=2), share=0.9, stable=True
    )
    assert not outlier_of([batch(i) for i in range(10)])["stable"]
    assert not outlier_of([torch.ones(64)] * 10)["stable"]


def test_the_reason_for_k():
    outlier = dict(channel=3, ratio=30.0, share=1.0, stable=True)
    row = dict(outlier=outlier, energy_whitened={8: {1: 0.50, 2: 0.49, 4: 0.46, 8: 0.30}})
    assert recommend(row, 8)[0] == 4
    assert recommend(row | dict(outlier=outlier | dict(stable=False)), 8)[0] == 1
    assert recommend(row | dict(energy_whitened={8: {1: 0.50, 2: 0.2}}), 8) == (
        1,
        "channel 3 is 30.0 x the mean and the largest in 100% of the batches, "
        "but blocks would give up 60% of the energy",
    )
    assert recommend(row | dict(energy_whitened={8: {1: 0.50}}), 8)[1].endswith("; no larger k was measured")


def test_channels_are_recorded_only_inside_the_block():
    layer = nn.Linear(4, 4)
    with Channels({"a": layer}) as seen:
        layer(torch.tensor([[1.0, -2, 0, 4], [3.0, 2, 0, 4]]))
    layer(torch.ones(1, 4))
    assert [c.tolist() for c in seen["a"]] == [[2.0, 2.0, 0.0, 4.0]]


def recommended(values: dict[str, tuple[int, int]]) -> dict:
    """Rows of layers with these ranks and ks."""
    return {name: dict(recommended=dict(rank=rank, k=k)) for name, (rank, k) in values.items()}


def test_the_options_give_each_layer_its_recommended_k():
    values = {"calm": (16, 1), "loud.0": (16, 4), "louder": (8, 2), "quiet": (16, 1)}
    rows = recommended({f"unet.{path}": value for path, value in values.items()})
    adapter = parse("", options_of(rows, TrainConfig())).adapter
    assert (adapter.method, adapter.rank, adapter.k, adapter.targets) == ("gralora", 16, 1, "attention")
    for path, value in (values | {"loud-0": (16, 1)}).items():
        ranks, ks = adapter.rank_pattern, adapter.k_pattern
        assert (first_match(ranks, path, adapter.rank), first_match(ks, path, adapter.k)) == value
    plain = recommended({"unet.calm": (16, 1)})
    assert options_of(plain, TrainConfig()) == ["--gralora_rank", "16", "--gralora_k", "1"]


def test_the_options_cover_the_layers_that_were_measured_and_suit_both_text_encoders():
    config = TrainConfig(adapter=AdapterConfig(targets="attention+ff"), train_text_encoder=True)
    rows = recommended({"unet.a": (16, 8), "text_encoder.b": (16, 4), "text_encoder_2.b": (16, 6)})
    found = parse("", options_of(rows, config))
    assert found.train_text_encoder
    assert found.adapter.targets == "attention+ff"
    assert first_match(found.adapter.k_pattern, "b", found.adapter.k) == 2


def test_columns_without_gradient_are_left_out():
    G = torch.zeros(8, 8)
    G[:, 2] = 1
    found = alignment(G, kaiming_blocks(4, 2, 8, torch.Generator().manual_seed(0)), 2)
    assert found["outside"] is None
    assert found["inside"] == found["mean"] > 0


def test_convolutions_are_refused(tmp_path, capsys):
    from gralora_diffusion.cli.entanglement import main

    with pytest.raises(SystemExit):
        main(["--targets", "attention+ff+conv", "--output", str(tmp_path / "out")])
    assert "includes convolutions, but the report covers linear layers only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path, finished_run):
    command = [*GRALORA, "entanglement", "--ranks", 8, "--ks", 1, 2, "--bins", 2, "--batches", 1]
    command += ["--train_batch_size", 2, "--targets", r"mid_block.*attn1\.to_q", "--output", tmp_path / "out"]
    command += ["--trained", finished_run]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = list(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    plots = {"alignment.png", "timesteps.png", "outliers.png", "effective_rank.png"}
    names = plots | {"report.json", "report.html", "train-options.txt"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    (row,) = found["layers"].values()
    assert row["delta_effective_rank"] > 1
    assert len(row["by_bin"]["8"]["2"]) == found["bins"] == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert row["recommended"]["reason"] in page
    assert page.count('src="data:image/png') == len(plots)
    assert "://" not in page
