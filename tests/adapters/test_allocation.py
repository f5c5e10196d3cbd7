"""The gradient pass, allocation and start, on a model with known gradients and in training runs."""

import dataclasses
import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from helpers import SCRIPTS, gora
from safetensors.torch import load_file, save_file
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_adapter, load_sdxl
from gralora_diffusion.adapters.allocation import apply, gradient_bytes
from gralora_diffusion.adapters.allocation_file import FILE
from gralora_diffusion.adapters.gora import importance, project
from gralora_diffusion.adapters.gradient_init import point_down
from gralora_diffusion.adapters.gradients import GRADIENTS, Gradients, stratified
from gralora_diffusion.adapters.rank_budget import allocate_ranks
from gralora_diffusion.adapters.rank_rules import reordered, step_of
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.single_file import SDXL_UNET
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.loss import draw_noise
from gralora_diffusion.training.train import train

SIZES = {"a": (32, 48), "b": (64, 48), "c": (48, 48)}


class Planted(nn.Module):
    """Independent layers, each with the loss <Y, W x>, so that the gradient of W is Y^T x."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: nn.Linear(n, m, bias=False) for name, (m, n) in SIZES.items()})

    @staticmethod
    def parts(name, index):
        random, (m, n) = generator(ord(name), index), SIZES[name]
        x, y = torch.randn(5, n, generator=random), torch.randn(5, m, generator=random)
        common = (
            torch.outer(torch.ones(5), torch.linspace(-1, 1, m)),
            torch.outer(torch.ones(5), torch.linspace(1, -1, n)),
        )
        return x + common[1], (y + common[0]) * {"a": 1, "b": 3, "c": 0.1}[name]

    def loss(self, index):
        return sum((self.layers[name](x) * y).sum() for name in SIZES for x, y in [self.parts(name, index)])

    def gradient(self, name, batches):
        pairs = [self.parts(name, GRADIENTS + b) for b in range(batches)]
        return sum(y.T @ x for x, y in pairs) / batches


def planted(method="lora", rank=8):
    model = Planted()
    inject(model, AdapterConfig(method=method, rank=rank, targets="layers"))
    return model, {f"layers.{name}": model.layers[name] for name in SIZES}


@pytest.mark.parametrize("memory", [float("inf"), 4 * 48 * 64, 1])
def test_gradients_are_the_known_ones_however_little_memory_there_is(memory):
    model, layers = planted()
    gradients = Gradients(layers, model.loss, Accelerator(cpu=True), 6, memory)
    found = dict(gradients)
    for name in SIZES:
        torch.testing.assert_close(found[f"layers.{name}"], model.gradient(name, 6), rtol=0, atol=1e-5)
    assert gradients.passes == {float("inf"): 1, 4 * 48 * 64: 3, 1: 3}[memory]
    biggest = max(4 * m * n for m, n in SIZES.values())
    assert (
        gradients.peak
        <= max(sum(4 * m * n for m, n in SIZES.values()) if memory == float("inf") else memory, biggest)
        + biggest
    )
    again = dict(gradients)
    assert all(torch.equal(found[path], again[path]) for path in found)
    assert not any(layer.weight.requires_grad or layer.weight.grad is not None for layer in layers.values())


def test_one_gradient_is_alive_at_a_time(monkeypatch):
    model, layers = planted()
    gradients, seen = Gradients(layers, model.loss, Accelerator(cpu=True), 3), []
    real = torch.Tensor.add_

    def spy(self, *args, **kwargs):
        seen.append(sum(layer.weight.grad is not None for layer in layers.values()))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "add_", spy)
    dict(gradients)
    assert len(seen) >= 9
    assert max(seen) == 0  # the one that is being added has left its weight already


def test_streaming_equals_storing_and_needs_less():
    model, layers = planted()
    A = {path: layer.adapter.lora_A.detach()[None, None] for path, layer in layers.items()}
    stored, streamed = (Gradients(layers, model.loss, Accelerator(cpu=True), 16) for _ in range(2))
    full = dict(stored)
    for path, S in streamed.projected(A).items():
        expected = project(full[path], A[path])
        assert float((S - expected).norm() / expected.norm()) < 1e-6
    assert streamed.peak < 0.7 * stored.peak


def test_without_the_gradients_norm_a_streamed_start_is_within_a_twentieth_of_gamma():
    """--allocation keeps no G: |G| is estimated from its projection, for a layer as wide as SDXL's."""
    model = nn.ModuleDict(dict(layers=nn.Linear(1280, 1280, bias=False)))
    random = generator(5)
    x, y = torch.randn(64, 1280, generator=random), torch.randn(64, 1280, generator=random)
    layers = inject(model, AdapterConfig(method="lora", rank=32, targets="layers"))
    point_down(
        layers,
        Gradients(layers, lambda _: (model["layers"](x) * y).sum(), Accelerator(cpu=True), 1),
        "random",
        dict(layers=None),
    )
    delta, G = model["layers"].delta(), y.T @ x
    assert float((delta * G).sum()) < 0
    assert float(delta.norm() / G.norm()) == pytest.approx(0.05, rel=0.05)


def test_bf16_gradients_are_summed_in_fp32():
    """4096 equal gradients: a bf16 sum would stop growing at 256."""
    linear = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    model = nn.ModuleDict(dict(layers=linear))
    layers = inject(model, AdapterConfig(method="lora", rank=2, targets="layers"))
    gradients = Gradients(
        layers,
        lambda _: model["layers"](torch.ones(1, 8, dtype=torch.bfloat16)).sum(),
        Accelerator(cpu=True),
        512,
    )
    assert torch.equal(dict(gradients)["layers"], torch.ones(8, 8))


def run_planted(tmp_path, method="lora", rank=8, **options):
    """An allocation on the planted model by its adapter's options, or by those of `--adapter gora`."""
    if method == "gora":
        options = gora(rank) | options
        adapter = dataclasses.replace(options.pop("adapter"), targets="layers")
    else:
        adapter = AdapterConfig(method=method, rank=rank, targets="layers")
    model, _ = planted(adapter.method, rank)
    config = TrainConfig(adapter=adapter, gora_batches=8, **options).resolved()
    apply({"unet": model}, model.loss, config, Accelerator(cpu=True), tmp_path)
    return model, json.loads((tmp_path / FILE).read_text())


def test_ranks_and_deltas_are_those_of_the_formulas(tmp_path):
    model, facts = run_planted(tmp_path, "gora", gora_tolerance=0.0, gora_gamma=0.05)
    G = {name: model.gradient(name, 8) for name in SIZES}
    expected = {name: importance(model.layers[name].weight, G[name]) for name in SIZES}
    assert {name: facts["layers"][f"unet.layers.{name}"]["importance"] for name in SIZES} == pytest.approx(
        expected, rel=1e-5
    )
    ranks = allocate_ranks(expected, SIZES, 8, 4, 32)
    assert {name: model.layers[name].adapter.rank for name in SIZES} == ranks
    assert (
        sum((m + n) * ranks[name] for name, (m, n) in SIZES.items())
        == 8 * sum(m + n for m, n in SIZES.values())
        == facts["parameters"]
    )
    assert len(set(ranks.values())) > 1
    for name in SIZES:
        layer, delta = model.layers[name], model.layers[name].delta()
        assert layer.adapter.scale == pytest.approx(16 / layer.adapter.rank**0.5)
        assert float((delta * G[name]).sum()) < 0
        assert float(delta.norm() / G[name].norm()) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("rule", ["gora", "energy", "uniform", "random", "inverse", "ralora"])
@pytest.mark.parametrize("init", ["svd", "random"])
def test_every_rule_keeps_the_budget_and_points_down(tmp_path, rule, init):
    model, facts = run_planted(tmp_path, "gralora", 16, allocate=rule, gora_init=init, gora_gamma=0.02)
    layers = adapted_layers(model)
    assert sum(p.numel() for x in layers.values() for p in x.adapter.parameters()) == 16 * sum(
        m + n for m, n in SIZES.values()
    )
    for path, layer in layers.items():
        row, G = facts["layers"][f"unet.{path}"], model.gradient(path[-1], facts["batches"])
        assert (row["rank"], row["k"]) == (layer.adapter.rank, layer.adapter.k)
        assert float((layer.delta() * G).sum()) < 0
        assert float(layer.delta().norm() / G.norm()) == pytest.approx(0.02, rel=1e-4)
        assert layer.adapter.rank == 16 or rule != "uniform"
    header = model.adapters["default"].config
    again = inject(Planted(), header)
    assert {path: (x.adapter.rank, x.adapter.k) for path, x in again.items()} == {
        path: (x.adapter.rank, x.adapter.k) for path, x in layers.items()
    }


def test_controls_have_the_same_importances_in_other_places():
    given = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 9.0}
    assert reordered(given, "inverse", 0) == {"a": 2.0, "b": 9.0, "c": 3.0, "d": 1.0}
    shuffled = [reordered(given, "random", seed) for seed in range(5)]
    assert all(sorted(x.values()) == sorted(given.values()) and list(x) == list(given) for x in shuffled)
    assert len({tuple(x.values()) for x in shuffled}) > 2


def test_the_line_search_finds_the_minimum_and_may_say_zero(tmp_path):
    """A quadratic's minimum is found; a loss that rises along the gradient on held-out batches gets none."""
    linear = nn.Linear(16, 16, bias=False)
    nn.init.zeros_(linear.weight)
    for sign, best in ((1, 0.4), (-1, 0.0)):
        model = nn.ModuleDict(dict(layers=nn.Linear(16, 16, bias=False)))
        nn.init.zeros_(model["layers"].weight)
        wanted = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))

        def loss(index, model=model, sign=sign, wanted=wanted):
            """|W - 0.4 wanted|^2 / 0.8 has the gradient -wanted at 0; held out, its mirror image."""
            aim = 0.4 * wanted if index < GRADIENTS * 2 else sign * 0.4 * wanted
            return (model["layers"](torch.eye(16)).T - aim).square().sum() / 0.8

        inject(model, AdapterConfig(method="lora", rank=16, targets="layers"))
        config = TrainConfig(
            adapter=AdapterConfig(method="lora", rank=16, targets="layers"),
            allocate="uniform",
            gora_batches=2,
        ).resolved()
        apply({"unet": model}, loss, config, Accelerator(cpu=True), tmp_path)
        assert json.loads((tmp_path / FILE).read_text())["gamma"] == pytest.approx(best)
        torch.testing.assert_close(model["layers"].delta(), best * wanted, rtol=0, atol=1e-4)


def test_the_pass_stops_when_ranks_are_settled(tmp_path):
    assert run_planted(tmp_path, "gora", gora_tolerance=1.0)[1]["bootstrap_moved"][0] < 0.5
    assert run_planted(tmp_path, "gora", gora_tolerance=0.0)[1]["batches"] == 8
    model, _ = planted()
    counts = []
    gradients = Gradients(
        {f"layers.{n}": model.layers[n] for n in SIZES}, model.loss, Accelerator(cpu=True), 40
    )
    gradients.settle(lambda samples: counts.append(len(samples["layers.a"][1])) or len(counts) == 3)
    assert (counts, gradients.batches) == ([8, 16, 32], 32)
    torch.testing.assert_close(dict(gradients)["layers.b"], model.gradient("b", 32), rtol=0, atol=1e-4)


def test_timesteps_are_stratified_and_latents_fixed():
    posterior, noise, t = stratified(draw_noise)((4, 8, 8), 1000, 0, range(2**32, 2**32 + 64))
    assert not posterior.any()
    assert torch.equal(noise, draw_noise((4, 8, 8), 1000, 0, range(2**32, 2**32 + 64))[1])
    assert (torch.histc(t.float(), 16, 0, 1000) - 4).abs().max() <= 1
    low, high = (
        stratified(draw_noise, a, b)((4, 8, 8), 1000, 0, range(32))[2] for a, b in ((0, 0.25), (0.75, 1))
    )
    assert (low.min(), low.max() < 250, high.min() >= 750, high.max() < 1000) == (low.min(), True, True, True)


QUICK = TrainConfig(
    **gora(8),
    max_train_steps=1,
    train_batch_size=2,
    skip_final_inference=True,
    gora_batches=2,
    gora_gamma=1.0,
)


def size_of(layers) -> int:
    return sum(p.numel() for layer in layers.values() for p in layer.adapter.parameters())


def test_gora_trains_saves_and_loads_like_any_other(tmp_path):
    run = train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "a")))
    facts = json.loads((run / FILE).read_text())
    pipeline = load_sdxl()
    header = load_adapter(pipeline, run)["config"]
    layers = adapted_layers(pipeline.unet)
    assert header["method"] == "lora"
    assert header["rslora"]
    assert {f"unet.{path}": layer.adapter.rank for path, layer in layers.items()} == {
        path: row["rank"] for path, row in facts["layers"].items()
    }
    uniform = inject(load_sdxl().unet, AdapterConfig(method="lora", rank=8))
    assert len(layers) == len(uniform)
    assert size_of(layers) == size_of(uniform)
    assert len({layer.adapter.rank for layer in layers.values()}) > 3
    from_file = dict(allocate=None, allocation=str(run / FILE))
    same = train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "b"), **from_file))
    again = json.loads((same / FILE).read_text())
    assert {p: r["rank"] for p, r in again["layers"].items()} == {
        p: r["rank"] for p, r in facts["layers"].items()
    }
    assert again["gradient_bytes"] < facts["gradient_bytes"]
    first, second = (load_file(r / "adapter.safetensors") for r in (run, same))
    assert all(first[name].shape == second[name].shape for name in first)


def test_a_run_that_starts_from_gradients_is_resumed_bit_by_bit(tmp_path):
    """A resumed run takes ranks from its folder and factors from the checkpoint, without a gradient pass."""
    options = dict(
        adapter=AdapterConfig(rank=8),
        allocate="ralora",
        gora_batches=2,
        gora_gamma=1.0,
        train_batch_size=2,
        skip_final_inference=True,
    )
    whole = train(TrainConfig(**options, max_train_steps=3, output_dir=str(tmp_path / "whole")))
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", FILE):
        (broken / name).write_bytes((whole / name).read_bytes().replace(b"whole", b"broken"))
    begun = train(
        TrainConfig(**options, max_train_steps=3, checkpointing_steps=1, output_dir=str(tmp_path / "steps"))
    )
    (begun / "checkpoint-1").rename(broken / "checkpoint-1")
    before = (broken / FILE).stat().st_mtime_ns
    train(TrainConfig(**options, max_train_steps=3, output_dir=str(broken)))
    assert (broken / FILE).stat().st_mtime_ns == before
    first, second = (load_file(r / "adapter.safetensors") for r in (whole, broken))
    assert len({tuple(t.shape) for t in first.values()}) > 6
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_mixed_ranks_and_k_with_both_text_encoders(tmp_path):
    config = dataclasses.replace(
        QUICK, adapter=AdapterConfig(rank=8), allocate="ralora", train_text_encoder=True, gora_init="svd"
    )
    run = train(dataclasses.replace(config, output_dir=str(tmp_path / "a")))
    pipeline, rows = load_sdxl(), json.loads((run / FILE).read_text())["layers"]
    load_adapter(pipeline, run)
    found = {
        f"{c}.{path}": (x.adapter.rank, x.adapter.k)
        for c in ("unet", "text_encoder", "text_encoder_2")
        for path, x in adapted_layers(getattr(pipeline, c)).items()
    }
    assert found == {path: (row["rank"], row["k"]) for path, row in rows.items()}
    assert len({k for _, k in found.values()}) > 1
    plain = load_sdxl()
    plain.load_lora_weights(run)  # diffusers' own reader
    made = plan(
        dataclasses.replace(
            QUICK,
            adapter=AdapterConfig(rank=8),
            allocate=None,
            train_text_encoder=True,
            allocation=str(run / FILE),
        )
    )
    total = sum((row["shape"][0] + row["shape"][1]) * row["rank"] for row in rows.values())
    assert (len(made.layers), made.parameters) == (len(rows), total)
    assert f"{len(rows)} layers, {total:,} parameters" in made.text()
    assert "memory of the gradient pass: 0.01 GiB" in made.text()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    script = SCRIPTS / "train_sdxl.py"
    common = [
        "--adapter",
        "gora",
        "--rank",
        8,
        "--max_train_steps",
        1,
        "--train_batch_size",
        2,
        "--skip_final_inference",
    ]
    common += ["--gora_batches", 4, "--gora_gamma", 1, "--adam_epsilon", 1e-3]
    here = dict(
        cwd=tmp_path,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    for name, command in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        accumulate = ["--gradient_accumulation_steps", 2] if name == "one" else []
        done = subprocess.run(
            [str(c) for c in (*command, script, *common, *accumulate, "--output_dir", tmp_path / name)],
            **here,
        )
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / FILE).read_text()) for name in ("one", "two"))
    assert {p: r["rank"] for p, r in one["layers"].items()} == {
        p: r["rank"] for p, r in two["layers"].items()
    }
    assert list(one["held_out_loss"].values()) == pytest.approx(list(two["held_out_loss"].values()), rel=1e-6)
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    assert max((first[k] - second[k]).abs().max() for k in first) < 1e-5
    assert done.stdout.count("gamma 1") == 1


def one_of_two(rank, port, folder):
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(rank)
    model, _ = planted("gralora", 16)
    config = TrainConfig(
        adapter=AdapterConfig(method="gralora", rank=16, targets="layers"), allocate="gora", gora_batches=16
    ).resolved()
    apply({"unet": model}, model.loss, config, accelerator, folder)
    sizes = {path: torch.tensor([x.adapter.rank, x.adapter.k]) for path, x in adapted_layers(model).items()}
    factors = {
        f"{path}.{name}": p.detach().clone()
        for path, x in adapted_layers(model).items()
        for name, p in x.adapter.named_parameters()
    }
    save_file(
        sizes | factors | dict(processes=torch.tensor(accelerator.num_processes)),
        folder / f"{rank}.safetensors",
    )
    torch.distributed.destroy_process_group()


def test_every_process_has_the_same_allocation_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=one_of_two, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    first, second = (load_file(tmp_path / f"{i}.safetensors") for i in (0, 1))
    assert int(first["processes"]) == 2
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = json.loads((tmp_path / FILE).read_text())["layers"]
    assert {path: first[path.removeprefix("unet.")].tolist() for path in rows} == {
        path: [row["rank"], row["k"]] for path, row in rows.items()
    }
    assert len({row["rank"] for row in rows.values()}) > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(gora_gamma=0.1), "--gora_gamma has no effect here: it needs --allocate or --allocation"),
        (dict(allocate="gora", allocation="x.json"), "give one of them"),
        (dict(allocate="gora", adapter=AdapterConfig(rank=8, hybrid_rank=4)), "--hybrid_rank"),
        (dict(allocate="ralora", adapter=AdapterConfig(method="lora")), "ralora chooses GraLoRA's k"),
        (
            dict(allocate="energy", gora_rounding="paper"),
            "--allocate energy has none: use --gora_rounding exact",
        ),
        (dict(allocate="best"), "must be one of gora, energy"),
        (
            dict(adapter=AdapterConfig(method="lora"), allocate="gora", gora_init="best"),
            "must be one of random, svd",
        ),
    ],
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not an allocation"),
        ('{"layers": {}}', "is not an allocation"),
        ('{"layers": {"unet.a": {"rank": -1, "k": 1}}}', "is not an allocation"),
        ('{"layers": {"vae.a": {"rank": 1, "k": 1}}}', "'vae.a'"),
        ('{"layers": {"unet.a": {"rank": 8, "k": 2}}}', "k above 1"),
        ('{"layers": {"unet.a": {"rank": 8, "k": 1}}}', "does not fit"),
    ],
)
def test_a_file_that_is_no_allocation_for_this_run(tmp_path, content, words):
    if content:
        (tmp_path / "x.json").write_text(content)
    from_file = dict(allocate=None, allocation=str(tmp_path / "x.json"))
    with pytest.raises(ConfigError, match=words):
        train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "run"), **from_file))
    assert not (tmp_path / "run").exists()


def test_full_size_sdxl_needs_a_thirtieth_when_streaming(tmp_path):
    """The 700 attention and feed-forward layers of SDXL's UNet at rank 32: 8.1 GiB of sums, or 195 MiB."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL_UNET)
    layers = inject(unet, AdapterConfig(method="lora", rank=32, targets="attention+ff"))
    rows = {path: dict(shape=tuple(layer.weight.shape), rank=32) for path, layer in layers.items()}
    needed = gradient_bytes(rows, itemsize=2)
    one = 10240 * 1280 * 6
    assert needed["storing"] - one == 4 * sum(math.prod(row["shape"]) for row in rows.values())
    assert (needed["storing"] - one) / 2**30 == pytest.approx(8.1, abs=0.1)
    assert needed["streaming"] - one < (needed["storing"] - one) / 30


def test_steps_of_the_grid():
    assert [step_of(AdapterConfig(rank=r)) for r in (8, 16, 64, 18, 7)] == [2, 4, 8, 2, 1]
    assert step_of(AdapterConfig(rank=64, k=2)) == 2
    assert step_of(AdapterConfig(method="lora")) == 1
