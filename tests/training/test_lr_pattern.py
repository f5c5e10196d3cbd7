"""--lr_pattern: each layer at its own learning rate, whatever is computed together."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_sdxl
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.optim import parameter_groups
from gralora_diffusion.training.run_folder import read_metrics
from gralora_diffusion.training.train import train

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


def rates(config: TrainConfig) -> dict[str, float]:
    """{name of a parameter of the UNet: its learning rate}"""
    unet = load_sdxl().unet
    inject(unet, config.adapter)
    names = {parameter: name for name, parameter in adapter_parameters(unet).items()}
    found = {}
    for group in parameter_groups(dict(unet=unet), config):
        found |= {names[parameter]: group["lr"] for parameter in group["params"]}
    assert len(found) == len(names)
    return found


def test_the_first_match_counts_and_loraplus_multiplies():
    pattern = {"attn2": 0.5, "to_q$": 2, "^unet.mid_block": 0}
    found = rates(dataclasses.replace(QUICK, lr_pattern=pattern, loraplus_lr_ratio=4))
    for name, rate in found.items():
        factor = 1
        if "attn2" in name:
            factor = 0.5
        elif ".to_q." in name:
            factor = 2
        elif name.startswith("mid_block"):
            factor = 0
        assert rate == pytest.approx(1e-3 * factor * (4 if name.endswith("_B") else 1))
    assert {0.0, 5e-4, 1e-3, 2e-3} <= set(found.values())


def test_a_factor_of_0_freezes_and_a_factor_of_1_changes_nothing(tmp_path):
    plain, losses = quick(tmp_path / "plain")
    same, again = quick(tmp_path / "same", lr_pattern={"attn1": 1.0})
    assert again == losses
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    frozen, _ = quick(tmp_path / "frozen", lr_pattern={"to_[qk]": 0}, adam_weight_decay=0.0)
    for name, tensor in frozen.items():
        if name.endswith("_B"):
            assert tensor.any() == (not any(part in name for part in (".to_q.", ".to_k.")))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_layers_of_one_input_may_have_different_rates(tmp_path, precision):
    """In half precision their A are one tensor, which is of one group."""
    common = dict(mixed_precision=precision, lr_pattern={"to_q": 0.5, "to_v": 2.0})
    tensors, losses = quick(tmp_path / "run", **common)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    for step in (2, 3):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    status = tmp_path / "run" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | dict(state="stopped")))
    again, losses_again = quick(tmp_path / "run", **common)
    assert losses_again == losses
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_what_is_computed_together_stays_so_where_the_rates_are_equal():
    from gralora_diffusion.adapters.registry import adapted_layers

    for pattern, expected in (({"attn2": 0.5}, True), ({"to_q": 0.5}, False)):
        unet = load_sdxl().unet
        inject(unet, QUICK.adapter)
        groups = parameter_groups(dict(unet=unet), dataclasses.replace(QUICK, lr_pattern=pattern))
        FlatFactors.of_models(groups, [unet], torch.bfloat16)
        layers = adapted_layers(unet)
        shared = [layer.shared is not None for path, layer in layers.items() if path.endswith("attn1.to_k")]
        assert set(shared) == {expected}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ({"to_x": 2.0}, "'to_x' matches none of the adapted layers"),
        ({"(": 2.0}, "is not a regular expression"),
    ],
)
def test_patterns_that_match_nothing_are_refused(tmp_path, monkeypatch, pattern, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words) as caught:
        plan(dataclasses.replace(QUICK, lr_pattern=pattern))
    assert caught.value.option == "lr_pattern"


@pytest.mark.parametrize("factor", [-1, "2", True, 1e5, float("nan")])
def test_factors_that_are_none_are_refused(factor):
    with pytest.raises(ConfigError, match="numbers from 0 to 10000") as caught:
        TrainConfig(lr_pattern={"to_q": factor})
    assert caught.value.option == "lr_pattern"


def test_prodigy_has_one_rate():
    with pytest.raises(ConfigError, match="--lr_pattern"):
        TrainConfig(optimizer="Prodigy", lr_pattern={"to_q": 2.0})


@pytest.mark.parametrize("pattern", ["(", "no_such_layer"])
def test_a_wrong_pattern_is_refused_beside_an_allocation_too(tmp_path, pattern):
    ranks = dataclasses.replace(QUICK, allocate="uniform", max_train_steps=1, output_dir=str(tmp_path / "a"))
    file = str(train(ranks) / "allocation.json")
    with pytest.raises(ConfigError) as error:
        quick(tmp_path / "b", allocation=file, lr_pattern={pattern: 0.5})
    assert error.value.option == "lr_pattern"
