"""One run of a sweep: it trains as the trainer does, and scores what it generates."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.data.dataset import EXAMPLE, EXAMPLE_PROMPT
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.experiments.adapt import load_adapted, shapes_of
from gralora_diffusion.experiments.experiment import Experiment
from gralora_diffusion.experiments.methods import METHODS
from gralora_diffusion.experiments.queue import run_name
from gralora_diffusion.experiments.run import run_experiment
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS
from gralora_diffusion.training.signals import Interrupts
from gralora_diffusion.training.train import train

LAST = r"up_blocks\.1\.attentions\.1.*attn"  # where gradients are largest
RUN = dict(rank=4, size=4, k=None, lr=1e-3, seed=0, steps=2, part="test")


@pytest.fixture
def make_experiment(tmp_path):
    def make(prompts=(), **more) -> Experiment:
        adapter = AdapterConfig(method="lora", rank=4)
        size = dict(train_batch_size=2, num_inference_steps=2, resolution=64)
        images = find_images(EXAMPLE, EXAMPLE_PROMPT)
        training, held_out = (images, []) if prompts else (images[:4], images[4:])
        return Experiment(
            folder=tmp_path,
            config=TrainConfig(adapter=adapter, **size).resolved(),
            images=training,
            held_out=held_out,
            prompts=list(prompts),
            features=partial(image_features, cache=tmp_path / "features"),
            accelerator=Accelerator(),
            encoders=(load_encoder("embedded"),),
            **more,
        )

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The trainer must encode here too: what other tests encoded, in other batches, has other last bits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run_of(experiment: Experiment, run: dict) -> dict:
    return run_experiment(run, experiment, Interrupts(lambda: None))


def adapter_of(tmp_path, run: dict):
    return tmp_path / "runs" / run_name(run) / "adapter.safetensors"


def score_of(experiment: Experiment, metric: str, strength: float = 1.0) -> Score:
    return Score(METRICS[metric], experiment.encoders[0].name, strength)


@pytest.mark.parametrize("method", ["lora", "our-lora", "mora", "full"])
def test_in_bf16_every_method_computes_in_bf16(make_experiment, method, monkeypatch):
    """Or one would be compared with others of twice its cost."""
    experiment = make_experiment(["a photo of sks robot"])
    half = dataclasses.replace(experiment.config, mixed_precision="bf16")
    products = []
    linear = torch.nn.functional.linear

    def recorded(x, weight, bias=None):
        y = linear(x, weight, bias)
        if torch.is_grad_enabled():
            products.append(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    found = run_of(dataclasses.replace(experiment, config=half), RUN | dict(method=method))
    assert "failed" not in found
    assert set(products) == {torch.bfloat16}


def test_a_run_of_the_sweep_is_a_run_of_the_trainer(tmp_path, make_experiment):
    """Our own LoRA is trained, step by step and bit for bit, as by train(): one trainer, one data order."""
    experiment, run = make_experiment(["a photo of sks robot"]), RUN | dict(method="our-lora", seed=3)
    found = run_of(experiment, run)
    options = dict(seed=3, learning_rate=1e-3, max_train_steps=2, skip_final_inference=True)
    config = dataclasses.replace(experiment.config, output_dir=str(tmp_path / "t"), **options)
    theirs = load_file(train(config) / "adapter.safetensors")
    ours = load_file(adapter_of(tmp_path, run))
    assert len(ours) == len(theirs)
    assert all(torch.equal(tensor, theirs[f"unet.{name}"]) for name, tensor in ours.items())
    lines = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert found["losses"] == [round(line["loss"], 5) for line in lines]
    expected = set()
    for metric in ("subject", "prompt", "copy"):
        expected |= {score_of(experiment, metric), score_of(experiment, metric, 0.0)}
    assert set(found["scores"]) == expected


GRADIENT_RUNS = {  # {method: (adapter, options of TrainConfig), as docs/experiments/README.md names them}
    "gora": (
        dict(method="lora", rslora=True, alpha=16.0),
        dict(allocate="gora", gora_init="random", gora_gamma=0.05),
    ),
    "gralora-inverse": (dict(method="gralora"), dict(allocate="inverse")),
}


@pytest.mark.parametrize("method", GRADIENT_RUNS)
def test_gradients_give_a_run_what_they_give_the_trainer(method, tmp_path, make_experiment, monkeypatch):
    """Ranks, k, start and every step as gralora train has them; as many parameters as rank 4."""
    measured = dict(held_out_every=1, strengths=(0.5, 1.0), drift_prompts=("a photo of a whale",))
    experiment = make_experiment(["a photo of sks robot"], **measured)
    config = dataclasses.replace(experiment.config, train_batch_size=1, adapter=AdapterConfig(targets=LAST))
    experiment = dataclasses.replace(experiment, config=config)
    short_pass = METHODS[method].gradients | dict(gora_batches=2)
    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], gradients=short_pass))
    run = RUN | dict(method=method, seed=3)
    found = run_of(experiment, run)
    adapter, options = GRADIENT_RUNS[method]
    config = dataclasses.replace(
        config,
        adapter=AdapterConfig(rank=4, targets=LAST, **adapter),
        seed=3,
        learning_rate=1e-3,
        max_train_steps=2,
        skip_final_inference=True,
        gora_batches=2,
        gora_tolerance=0.0,
        output_dir=str(tmp_path / "t"),
        **options,
    )
    theirs = load_file(train(config) / "adapter.safetensors")
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith(".alpha")}
    ours = load_file(adapter_of(tmp_path, run))
    assert len(ours) == len(theirs)
    assert all(torch.equal(tensor, theirs[f"unet.{name}"]) for name, tensor in ours.items())
    assert found["parameters"] == 4 * sum(m + n for m, n in shapes_of(load_sdxl().unet, LAST))
    assert found["gradients"]["batches"] == 2
    assert [step for step, _ in found["curve"]] == [0, 1, 2]
    drift, half = score_of(experiment, "drift"), score_of(experiment, "drift", 0.5)
    assert {drift, half, score_of(experiment, "subject", 0.0)} < set(found["scores"])
    assert 0 < found["scores"][half][0] < found["scores"][drift][0]
    again = load_adapted(load_sdxl().unet, adapter_of(tmp_path, run))
    assert len({tuple(size) for size in again.spec.sizes.values()}) > 1
    assert all(torch.equal(p, ours[name]) for name, p in again.parameters.items())


def test_captions_held_out_are_generated_and_compared_with_their_images(tmp_path, make_experiment):
    experiment, run = make_experiment(), RUN | dict(method="mora")
    found = run_of(experiment, run)
    assert len(found["scores"][HELD_OUT_LOSS]) == 8
    assert len(found["scores"][score_of(experiment, "paired")]) == 2
    assert found["parameters"] > 0 < found["seconds_per_step"]
    assert found["file_bytes"] == adapter_of(tmp_path, run).stat().st_size
    again = run_of(experiment, run)
    assert len(experiment.accelerator._optimizers) == 1  # the first run's is freed
    assert (again["losses"], again["scores"]) == (found["losses"], found["scores"])


def test_a_run_that_diverges_is_a_result(make_experiment):
    experiment = make_experiment(["a robot"])
    experiment = dataclasses.replace(
        experiment, config=dataclasses.replace(experiment.config, max_grad_norm=1e30)
    )
    found = run_of(experiment, RUN | dict(method="lora", lr=1e30))
    assert "not finite" in found["failed"]
    assert "scores" not in found
