"""--prior_by_prediction: the target is the base's prediction with the class prompt."""

import contextlib
import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_sdxl
from gralora_diffusion.adapters.control import disabled, enable
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import Prompts, blank_inputs, encode_prompts, predict
from gralora_diffusion.training import prior_prediction
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.prior_prediction import PriorPrediction
from gralora_diffusion.training.run_folder import read_metrics
from gralora_diffusion.training.step_cost import images_per_batch
from gralora_diffusion.training.train import train

CLASS = dict(prior_by_prediction=True, class_prompt="a photo of a robot")
QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2),
    max_train_steps=3,
    train_batch_size=2,
    skip_final_inference=True,
    learning_rate=1e-3,
    checkpointing_steps=1,
)


def quick(folder, **options):
    """({tensor name: tensor}, losses) of a short run."""
    run = train(dataclasses.replace(QUICK, output_dir=str(folder), **options))
    return load_file(run / "adapter.safetensors"), [line["loss"] for line in read_metrics(run)]


def adapted(config: AdapterConfig):
    """The embedded base's pipeline with random non-zero factors in the UNet."""
    pipeline = load_sdxl()
    inject(pipeline.unet, config)
    torch.manual_seed(1)
    for name, parameter in adapter_parameters(pipeline.unet).items():
        parameter.data.normal_(std=0.1 if name.endswith("_B") else 0.3)
    return pipeline


def inputs_of(unet, n: int):
    torch.manual_seed(2)
    noisy, _, prompts, _ = blank_inputs(unet.config, n, 8, 32)
    random = Prompts(torch.randn_like(prompts.embeds), torch.randn_like(prompts.pooled))
    return (torch.randn_like(noisy), torch.randint(0, 1000, (n,)), torch.full((n, 6), 64.0)), random


@pytest.mark.parametrize("tlora", [False, True])
def test_the_target_is_the_bases_own_prediction_and_adapters_are_on_again(tmp_path, tlora):
    pipeline = adapted(AdapterConfig(rank=8, k=2, tlora=tlora))
    unet = pipeline.unet.train()
    base = load_sdxl().unet
    config = dataclasses.replace(QUICK, **CLASS)
    prior = PriorPrediction(
        dict(unet=unet), lambda p: encode_prompts(pipeline, p), config, "cpu", torch.float32
    )
    given, prompts = inputs_of(unet, 2)
    found = prior.of_base(*given)
    of_class = encode_prompts(pipeline, [CLASS["class_prompt"]] * 2)
    with torch.no_grad():
        torch.testing.assert_close(
            found, predict(base, given[0], given[1], of_class, given[2]), rtol=0, atol=1e-5
        )
        own = predict(unet, given[0], given[1], of_class, given[2])
        instance = predict(unet, given[0], given[1], prompts, given[2])
        both = prior.with_class(*given, prompts)
    assert (own - found).abs().max() > 1e-3
    for together, alone in zip(both, (instance, own), strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert prior.loss(own, found).item() == pytest.approx((own - found).square().mean().item())


def test_disabled_restores_each_switch_even_after_an_error():
    pipeline = adapted(AdapterConfig(rank=4, k=2))
    layers = list(adapted_layers(pipeline.unet).values())
    enable(pipeline.unet, False)
    layers[0].enabled = True
    with disabled([pipeline.unet]):
        assert not any(layer.enabled for layer in layers)
    with contextlib.suppress(KeyError), disabled([pipeline.unet]):
        raise KeyError
    assert [layer.enabled for layer in layers] == [True] + [False] * (len(layers) - 1)


def test_at_first_the_loss_is_that_without_it_and_a_weight_of_0_changes_nothing(tmp_path):
    """An adapter that changes nothing yet predicts as the base does."""
    plain, losses = quick(tmp_path / "plain", adam_epsilon=1e-3)
    _, preserved = quick(tmp_path / "prior", adam_epsilon=1e-3, **CLASS)
    assert preserved[0] == pytest.approx(losses[0], rel=1e-5)
    assert preserved[2] > losses[2]
    none, without = quick(tmp_path / "none", adam_epsilon=1e-3, prior_loss_weight=0.0, **CLASS)
    assert without == pytest.approx(losses, rel=1e-4)
    for name, tensor in plain.items():
        torch.testing.assert_close(none[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(gradient_checkpointing=True),
        dict(gradient_checkpointing=True, adapter=AdapterConfig(rank=8, k=2, tlora=True)),
        dict(gradient_accumulation_steps=2, train_batch_size=1),
    ],
    ids=["checkpointing", "T-LoRA and checkpointing", "accumulation"],
)
def test_memory_savers_change_memory_and_not_results(tmp_path, options):
    common = dict(adam_epsilon=1e-3, **CLASS)
    adapter = options.get("adapter", QUICK.adapter)
    plain, losses = quick(tmp_path / "plain", adapter=adapter, **common)
    saved, others = quick(tmp_path / "saved", **common, **options)
    assert others == pytest.approx(losses, abs=1e-5)
    for name, tensor in plain.items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=2e-5)


def test_text_encoders_are_those_of_the_base_for_the_target(tmp_path, monkeypatch):
    seen = []
    real = prior_prediction.PriorPrediction.of_base

    def spy(self, noisy, timesteps, sizes):
        found = real(self, noisy, timesteps, sizes)
        base = load_sdxl()
        with torch.no_grad():
            prompts = encode_prompts(base, [CLASS["class_prompt"]] * len(noisy))
            seen.append((found - predict(base.unet, noisy, timesteps, prompts, sizes)).abs().max().item())
        return found

    monkeypatch.setattr(prior_prediction.PriorPrediction, "of_base", spy)
    quick(tmp_path / "run", train_text_encoder=True, text_encoder_lr=1e-2, **CLASS)
    assert len(seen) >= 3
    assert max(seen) < 1e-5


def test_resumed_in_the_middle_it_is_bit_equal(tmp_path):
    options = dict(adapter=AdapterConfig(rank=8, k=2, tlora=True, dropout=0.1), ema_decay=0.9, **CLASS)
    whole, losses = quick(tmp_path / "run", **options)
    for step in (2, 3):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    status = tmp_path / "run" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | dict(state="stopped")))
    again, losses_again = quick(tmp_path / "run", **options)
    assert losses_again == losses
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_dry_run_counts_a_second_prompt_for_each_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(QUICK, **CLASS)
    assert images_per_batch(config) == 2 * images_per_batch(QUICK)
    doubled = plan(dataclasses.replace(QUICK, train_batch_size=4)).memory["activations"]
    assert plan(config).memory["activations"] == doubled
    assert plan(config, timed=True).seconds_per_step > 0


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        (dict(prior_by_prediction=True), "class_prompt", "needs --class_prompt"),
        (dict(prior_by_prediction=True, class_prompt=" "), "class_prompt", "needs --class_prompt"),
        (dict(**CLASS, class_data_dir="x"), "class_data_dir", "drop --class_data_dir"),
        (dict(**CLASS, compile=True), "compile", "drop one of the two"),
        (dict(**CLASS, with_prior_preservation=True, class_data_dir="x"), "prior_by_prediction", "drop one"),
    ],
)
def test_contradictions_are_refused(options, option, words):
    with pytest.raises(ConfigError, match=words) as caught:
        TrainConfig(**options)
    assert caught.value.option == option
