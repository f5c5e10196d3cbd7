"""Every option of the objective and of the optimizers in a real short run on the embedded base."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_adapter, load_sdxl
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.sdxl.sampling import as_trained, sample
from gralora_diffusion.training import objective, optimization
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.train import train

QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2),
    max_train_steps=3,
    train_batch_size=2,
    skip_final_inference=True,
    learning_rate=1e-3,
)
OPTIONS = {
    "v_prediction": dict(prediction_type="v_prediction"),
    "zero terminal SNR": dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "min-SNR": dict(snr_gamma=5.0),
    "debiased": dict(debiased_estimation=True),
    "noise offset": dict(noise_offset=0.1),
    "huber": dict(loss_type="huber"),
    "smooth_l1": dict(loss_type="smooth_l1", huber_schedule="constant"),
    "LoRA+": dict(loraplus_lr_ratio=16),
    "scale_lr": dict(scale_lr=True),
    "Prodigy": dict(optimizer="Prodigy", learning_rate=1.0),
    "Adafactor": dict(optimizer="Adafactor"),
    "AdamWScheduleFree": dict(optimizer="AdamWScheduleFree"),
    "SGD": dict(optimizer="SGD"),
    "8-bit AdamW": dict(use_8bit_adam=True, adapter=AdapterConfig(rank=32, k=2)),
    "cosine": dict(lr_scheduler="cosine", lr_warmup_steps=1),
    "EMA": dict(ema_decay=0.5),
    "T-LoRA": dict(adapter=AdapterConfig(rank=8, k=2, tlora=True)),
    "T-LoRA, LoRA, checkpointing": dict(
        adapter=AdapterConfig(rank=8, method="lora", tlora=True), gradient_checkpointing=True
    ),
    "all at once": dict(
        snr_gamma=5.0,
        debiased_estimation=True,
        noise_offset=0.1,
        loss_type="huber",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        ema_decay=0.9,
        loraplus_lr_ratio=4,
        scale_lr=True,
        lr_scheduler="polynomial",
        gradient_accumulation_steps=2,
        train_text_encoder=True,
        adapter=AdapterConfig(rank=8, k=2, hybrid_rank=4, tlora=True, dropout=0.1),
    ),
}


def quick(folder, **options):
    """(tensors of the exported adapter, lines of metrics.jsonl)"""
    run = train(dataclasses.replace(QUICK, output_dir=str(folder), **options))
    return load_file(run / "adapter.safetensors"), [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_and_changes_what_is_learned(name, plain, tmp_path):
    if "8-bit" in name:
        pytest.importorskip("bitsandbytes")
    tensors, lines = quick(tmp_path / "run", **OPTIONS[name])
    assert len(lines) == 3
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert all(t.isfinite().all() for t in tensors.values())
    learned = [t for name, t in tensors.items() if name.startswith("unet.") and name.endswith("_B")]
    assert all(t.abs().sum() > 0 for t in learned)
    same = [
        torch.equal(t, tensors[name])
        for name, t in plain[0].items()
        if name in tensors and t.shape == tensors[name].shape
    ]
    assert not same or not all(same)


def test_what_is_exported_is_the_average_and_the_checkpoint_holds_what_trains(plain, tmp_path):
    exported, _ = quick(tmp_path / "run", ema_decay=0.5)
    trained = load_file(tmp_path / "run" / "checkpoint-3" / "adapter.safetensors")
    assert all(
        torch.equal(trained[name], plain[0][name]) for name in trained
    )  # the average changes nothing of the training
    assert not all(torch.equal(trained[name], exported[name]) for name in trained)


@pytest.mark.parametrize(
    "option", ["EMA", "AdamWScheduleFree", "Prodigy", "Adafactor", "cosine", "8-bit AdamW"]
)
def test_resumed_in_the_middle_it_is_bit_equal(option, tmp_path):
    if "8-bit" in option:
        pytest.importorskip("bitsandbytes")
    whole, lines = quick(tmp_path / "whole", **OPTIONS[option], checkpointing_steps=1)
    for step in (2, 3):
        (tmp_path / "whole" / f"checkpoint-{step}").rename(tmp_path / f"away-{step}")
    status = tmp_path / "whole" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | dict(state="stopped")))
    again, lines_again = quick(tmp_path / "whole", **OPTIONS[option], checkpointing_steps=1)
    assert [line["loss"] for line in lines_again[-2:]] == [line["loss"] for line in lines[-2:]]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(("first", "second"), [(1e-3, 1e-3), (0.0, 1e-3), (1e-3, 0.0), (1e-3, 5e-4)])
def test_both_text_encoders_learn_each_at_its_own_rate(first, second, tmp_path, monkeypatch):
    largest = {}
    real = optimization.parameter_groups

    def with_hooks(models, *args):
        for component, model in models.items():
            for name, p in adapter_parameters(model).items():
                key = component, name
                p.register_post_accumulate_grad_hook(
                    lambda p, key=key: largest.update(
                        {key: max(largest.get(key, 0), float(p.grad.abs().max()))}
                    )
                )
        return real(models, *args)

    monkeypatch.setattr(optimization, "parameter_groups", with_hooks)
    tensors, _ = quick(
        tmp_path / "run",
        train_text_encoder=True,
        text_encoder_lr=first,
        text_encoder_2_lr=second,
        max_train_steps=2,
    )
    moved = {}
    for component, rate in (("text_encoder", first), ("text_encoder_2", second)):
        gradients = [
            value for (where, name), value in largest.items() if where == component and name.endswith("_B")
        ]
        assert gradients
        assert min(gradients) > 0
        moved[component] = max(
            float(t.abs().max())
            for name, t in tensors.items()
            if name.startswith(f"{component}.") and name.endswith("_B")
        )
        assert (
            0.5 * rate <= moved[component] <= 2.1 * rate
        )  # Adam moves each number by its rate, at most, in each step
    if first and second:
        assert moved["text_encoder_2"] / moved["text_encoder"] == pytest.approx(second / first, rel=0.2)


def test_trap_5_in_bf16_adapters_schedule_and_time_ids_stay_exact(tmp_path, monkeypatch):
    """diffusers' script makes the adapters bf16, so that most of A never moves, and the time id 1365 1368."""
    seen = []
    real, sizes = objective.diffusion_loss, objective.examples_at

    def spy(predicted, latents, noise, timesteps, alphas, **options):
        seen.append((predicted.dtype, latents.dtype, noise.dtype, alphas.dtype))
        return real(predicted, latents, noise, timesteps, alphas, **options)

    def large(*args):  # as an image of 1365 x 1365 pixels would give
        return [dataclasses.replace(record, time_ids=torch.full((6,), 1365.0)) for record in sizes(*args)]

    ids = []
    monkeypatch.setattr(objective, "diffusion_loss", spy)
    monkeypatch.setattr(objective, "examples_at", large)
    keep = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: ids.append(args[0].clone()) if type(m).__name__ == "Timesteps" else None
    )
    exact = moved(quick(tmp_path / "run", **BF16)[0])
    keep.remove()
    assert {kind for kinds in seen for kind in kinds[1:]} == {torch.float32}
    assert seen[0][0] == torch.bfloat16
    assert any(x.dtype == torch.float32 and (x == 1365).all() for x in ids)
    monkeypatch.setattr(FlatFactors, "refresh", rounded_first(FlatFactors.refresh))
    rounded = moved(quick(tmp_path / "rounded", **BF16)[0], torch.bfloat16)
    assert 1 - exact < (1 - rounded) / 4  # measured here: .007 and .89


BF16 = dict(mixed_precision="bf16", learning_rate=1e-4)


def moved(tensors, dtype=torch.float32) -> float:
    """The share of A's entries that are not what they started as, in the adapter's dtype."""
    torch.manual_seed(QUICK.seed)
    fresh = load_sdxl().unet
    inject(fresh, QUICK.adapter)
    starts = {f"unet.{name}": p for name, p in adapter_parameters(fresh).items() if name.endswith("_A")}
    changed = sum((tensors[name].to(dtype) != p.to(dtype)).sum() for name, p in starts.items())
    return float(changed) / sum(p.numel() for p in starts.values())


def rounded_first(refresh):
    """refresh() of parameters that can hold bf16 numbers only."""

    def rounding(factors):
        factors.values.copy_(factors.values.bfloat16())
        refresh(factors)

    return rounding


def test_samples_are_drawn_with_the_objective_that_was_trained(tmp_path):
    base = load_sdxl()
    assert as_trained(base.scheduler, "epsilon", False) is base.scheduler
    changed = as_trained(base.scheduler, "v_prediction", True)
    assert (changed.config.prediction_type, changed.config.rescale_betas_zero_snr) == ("v_prediction", True)
    changed.set_timesteps(4)
    assert changed.timesteps[0] == 999
    options = dict(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        skip_final_inference=False,
        num_inference_steps=2,
    )
    quick(tmp_path / "run", **options, max_train_steps=1, validation_prompt="a robot")
    facts = load_adapter(base, tmp_path / "run")
    assert facts["objective"] == dict(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    drawing = dict(num_inference_steps=2, guidance_scale=3.0)
    (image,) = sample(
        base, ["a robot"], **drawing, scheduler=as_trained(base.scheduler, **facts["objective"])
    )
    from PIL import Image

    assert image.tobytes() == Image.open(tmp_path / "run" / "samples" / "step-00001" / "00.png").tobytes()
    (plain,) = sample(load_sdxl(), ["a robot"], **drawing)
    assert plain.tobytes() == Image.open(tmp_path / "run" / "samples" / "step-00000" / "00.png").tobytes()
