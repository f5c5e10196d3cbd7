"""Optimizers, learning rates, schedules and averages: formulas, and exact state in files."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from helpers import MODELS, adapted_pipeline
from safetensors.torch import load_file, save_file
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.command_line import parse
from gralora_diffusion.config import OPTIMIZERS, SCHEDULES
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training import optim
from gralora_diffusion.training.average import EMA, averaged, use_average
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.optim import (
    bytes_per_parameter,
    check_optimizer,
    current_rate,
    learning_rates,
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from gralora_diffusion.training.optimizer_state import load_optimizer_state, optimizer_state

KINDS = {
    "AdamW": dict(optimizer="AdamW", lr_scheduler="cosine", lr_warmup_steps=2),
    "AdamW 8 bit": dict(optimizer="AdamW", use_8bit_adam=True, lr_scheduler="linear"),
    "Prodigy": dict(
        optimizer="Prodigy",
        learning_rate=1.0,
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=2,
        adam_weight_decay=0.01,
    ),
    "Prodigy, other options": dict(
        optimizer="Prodigy",
        learning_rate=1.0,
        prodigy_beta3=0.9,
        prodigy_decouple=False,
        adam_weight_decay=0.01,
    ),
    "Adafactor": dict(optimizer="Adafactor", lr_scheduler="polynomial", lr_power=2.0),
    "AdamWScheduleFree": dict(optimizer="AdamWScheduleFree", lr_warmup_steps=3),
    "SGD": dict(optimizer="SGD", adam_weight_decay=0.01),
}


def config_of(kind: str, **options) -> TrainConfig:
    if "8 bit" in kind:
        pytest.importorskip("bitsandbytes")
    return TrainConfig(**dict(learning_rate=1e-2) | KINDS[kind] | options)


class Problem:
    """Parameters in adapters' shapes, and a loss for each step."""

    def __init__(self, config: TrainConfig, steps: int = 12):
        random = torch.Generator().manual_seed(0)
        shapes = [(2, 24, 16), (2, 16, 24), (64, 80), (4,), (3, 3)]
        self.parameters = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
        ratio = 1 if config.optimizer == "Prodigy" else 4
        groups = [
            dict(params=self.parameters[:2], lr=config.learning_rate),
            dict(params=self.parameters[2:], lr=ratio * config.learning_rate),
        ]
        self.factors = FlatFactors(groups)
        self.optimizer = make_optimizer(self.factors, config)
        self.schedule = make_schedule(self.optimizer, config, steps)
        self.ema = EMA(self.factors.values, 0.9)
        self.rates = []

    def go(self, first: int, last: int) -> None:
        for step in range(first, last):
            random = torch.Generator().manual_seed(step)
            for p in self.parameters:
                p.grad.copy_(p.detach() + 0.3 * torch.randn(p.shape, generator=random))
            self.rates.append(current_rate(self.optimizer))
            self.optimizer.step()
            self.schedule.step()
            self.ema.update()
            self.factors.clear()

    def save(self, folder: Path) -> None:
        (tensors, facts), (average, updates) = optimizer_state(self.optimizer), self.ema.state()
        save_file(tensors, folder / "optimizer.safetensors")
        save_file(dict(average=average), folder / "ema.safetensors")
        save_file({str(i): p.detach() for i, p in enumerate(self.parameters)}, folder / "adapter.safetensors")
        state = dict(optimizer=facts, ema=updates, schedule=self.schedule.state_dict())
        (folder / "state.json").write_text(json.dumps(state, allow_nan=False))

    def load(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        for i, tensor in load_file(folder / "adapter.safetensors").items():
            self.parameters[int(i)].data.copy_(tensor)
        load_optimizer_state(self.optimizer, load_file(folder / "optimizer.safetensors"), state["optimizer"])
        self.ema.load(load_file(folder / "ema.safetensors")["average"], state["ema"])
        self.schedule.load_state_dict(state["schedule"])


@pytest.mark.parametrize("saved_after", [0, 1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_save_load_steps_is_bit_equal_to_all_the_steps(kind, saved_after, tmp_path):
    config = config_of(kind)
    whole, first, second = Problem(config), Problem(config), Problem(config)
    start = [p.detach().clone() for p in whole.parameters]
    whole.go(0, 10)
    first.go(0, saved_after)
    first.save(tmp_path)
    second.load(tmp_path)
    second.go(saved_after, 10)
    assert whole.rates == first.rates + second.rates
    for p, same, begun in zip(whole.parameters, second.parameters, start, strict=True):
        assert torch.equal(p, same)
        assert not torch.equal(p, begun)
    assert torch.equal(whole.ema.average, second.ema.average)
    last, again = optimizer_state(whole.optimizer), optimizer_state(second.optimizer)
    assert last[1] == again[1]
    assert all(torch.equal(last[0][name], again[0][name]) for name in last[0] | again[0])


def test_state_of_another_adapter_or_optimizer_is_refused():
    adamw, adafactor = Problem(config_of("AdamW")), Problem(config_of("Adafactor"))
    adamw.go(0, 1)
    state, averages = optimizer_state(adamw.optimizer), adamw.ema.state()
    with pytest.raises(ValueError, match="another optimizer"):
        load_optimizer_state(adafactor.optimizer, *state)
    other = make_optimizer(FlatFactors([dict(params=[nn.Parameter(torch.zeros(3))])]), config_of("AdamW"))
    with pytest.raises(ValueError, match="another adapter"):
        load_optimizer_state(other, *state)
    with pytest.raises(ValueError, match="another adapter"):
        EMA(torch.zeros(3), 0.9).load(*averages)


def test_fused_adamw_is_adamw():
    config = config_of("AdamW", adam_weight_decay=0.01)
    fused, plain = Problem(config), Problem(config)
    assert fused.optimizer.defaults["fused"]
    groups = plain.optimizer.param_groups
    for group in groups:
        del group["fused"], group["foreach"]
    plain.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    plain.schedule = make_schedule(plain.optimizer, config, 12)
    fused.go(0, 10)
    plain.go(0, 10)
    for p, same in zip(fused.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(p, same, rtol=1e-6, atol=1e-6)


def test_adafactor_is_transformers_adafactor_of_each_tensor_alone():
    from transformers.optimization import Adafactor

    config = config_of("Adafactor", adam_weight_decay=0.01)
    ours, theirs = Problem(config), Problem(config)
    common = dict(lr=config.learning_rate, weight_decay=0.01)
    groups = [dict(params=theirs.parameters[:2]), dict(params=theirs.parameters[2:], lr=4e-2)]
    theirs.optimizer = Adafactor(groups, **common, relative_step=False, scale_parameter=False)
    theirs.schedule = make_schedule(theirs.optimizer, config, 12)
    ours.go(0, 10)
    theirs.go(0, 10)
    for p, same in zip(ours.parameters, theirs.parameters, strict=True):
        torch.testing.assert_close(p, same, rtol=1e-5, atol=1e-6)


def test_8_bit_adamw_is_near_adamw():
    options = dict(lr_scheduler="linear", lr_warmup_steps=0)
    small, plain = Problem(config_of("AdamW 8 bit")), Problem(config_of("AdamW", **options))
    start = plain.parameters[2].detach().clone()
    small.go(0, 10)
    plain.go(0, 10)
    assert optimizer_state(small.optimizer)[0]["2.state1"].dtype == torch.uint8
    moved = (plain.parameters[2] - start).norm()
    assert (small.parameters[2] - plain.parameters[2]).norm() < 0.1 * moved


def test_prodigy_finds_its_rate_and_learns():
    problem = Problem(config_of("Prodigy"), steps=100)
    before = problem.parameters[2].norm()
    problem.go(0, 100)
    assert problem.rates[-1] > 1e3 * max(problem.rates[:3])
    assert problem.parameters[2].norm() < 0.5 * before


def test_the_schedule_free_average_is_looked_at_and_training_goes_on_bit_for_bit():
    config = config_of("AdamWScheduleFree")
    looked, blind = Problem(config), Problem(config)
    blind.go(0, 10)
    for step in range(10):
        looked.go(step, step + 1)
        with averaged(looked.optimizer):
            flat = blind.optimizer.param_groups[1]["params"][0]
            y, z = flat, blind.optimizer.state[flat]["z"]
            if step == 9:  # x, of y = (1 - beta1) z + beta1 x (arXiv 2405.15682, eq. 3)
                average = looked.optimizer.param_groups[1]["params"][0]
                torch.testing.assert_close(average, (y - (1 - 0.9) * z) / 0.9)
                assert not torch.equal(average, y)
    assert all(torch.equal(p, same) for p, same in zip(looked.parameters, blind.parameters, strict=True))
    use_average(looked.optimizer)
    assert not torch.equal(looked.parameters[2], blind.parameters[2])
    assert looked.rates[:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])


def test_the_moving_average_by_hand():
    problem = Problem(config_of("AdamW"))
    values, ema = problem.factors.values, problem.ema
    expected = values.double()
    for n in range(20):
        problem.go(n, n + 1)
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * values.double()
    torch.testing.assert_close(ema.average.double(), expected, rtol=0, atol=1e-5)
    raw = values.clone()
    with averaged(problem.optimizer, ema):
        assert torch.equal(values, ema.average)
        assert torch.equal(problem.parameters[2], problem.factors.view(ema.average, problem.parameters[2]))
    assert torch.equal(values, raw)
    use_average(problem.optimizer, ema)
    assert torch.equal(values, ema.average)


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_schedules_of_diffusers(name):
    from diffusers.optimization import SchedulerType

    assert {kind.value for kind in SchedulerType} == set(SCHEDULES)
    options = {
        "piecewise_constant": dict(lr_step_rules="1:3,0.5:6,0.1"),
        "cosine_with_restarts": dict(lr_num_cycles=2),
        "polynomial": dict(lr_power=2.0),
    }
    warmup = 0 if name in ("constant", "piecewise_constant") else 2
    problem = Problem(
        TrainConfig(learning_rate=0.5, lr_scheduler=name, lr_warmup_steps=warmup, **options.get(name, {}))
    )
    problem.go(0, 12)
    after = {
        "linear": lambda s: (12 - s) / 10,
        "cosine": lambda s: 0.5 + 0.5 * math.cos(math.pi * (s - 2) / 10),
        "cosine_with_restarts": lambda s: 0.5 + 0.5 * math.cos(math.pi * ((s - 2) / 5 % 1)),
        "polynomial": lambda s: ((0.5 - 1e-7) * ((12 - s) / 10) ** 2 + 1e-7) / 0.5,
        "constant": lambda s: 1,
        "constant_with_warmup": lambda s: 1,
        "piecewise_constant": lambda s: 1 if s < 3 else (0.5, 0.1)[s >= 6],
    }[name]
    assert problem.rates == pytest.approx([0.5 * (s / 2 if s < warmup else after(s)) for s in range(12)])


def test_groups_have_their_rates_and_loraplus_gives_every_b_its_own():
    _, models = adapted_pipeline(AdapterConfig(rank=8, k=2, hybrid_rank=4))
    options = dict(
        learning_rate=1e-3,
        train_text_encoder=True,
        text_encoder_lr=1e-4,
        text_encoder_2_lr=0.0,
        adam_weight_decay_text_encoder=0.5,
    )
    plain = parameter_groups(models, TrainConfig(**options))
    assert [(g["lr"], g["weight_decay"]) for g in plain] == [(1e-3, 1e-4), (1e-4, 0.5), (0.0, 0.5)]
    plus = parameter_groups(models, TrainConfig(**options, loraplus_lr_ratio=16))
    assert [g["lr"] for g in plus] == pytest.approx([1e-3, 1.6e-2, 1e-4, 1.6e-3, 0.0, 0.0])
    for model, (a, b) in zip(models.values(), zip(plus[::2], plus[1::2], strict=True), strict=True):
        named = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        assert {named[id(p)].rpartition(".")[2] for p in a["params"]} == {"gralora_A", "lora_A"}
        assert {named[id(p)].rpartition(".")[2] for p in b["params"]} == {"gralora_B", "lora_B"}
        assert len(a["params"]) + len(b["params"]) == len(named)


def test_scale_lr_multiplies_by_the_images_per_step():
    options = dict(learning_rate=1e-4, scale_lr=True, gradient_accumulation_steps=3, train_batch_size=2)
    rates = learning_rates(TrainConfig(**options, train_text_encoder=True, text_encoder_lr=1e-5), processes=4)
    assert rates == pytest.approx(dict(unet=24e-4, text_encoder=1e-5, text_encoder_2=1e-5))
    assert learning_rates(TrainConfig(**options), processes=4) == pytest.approx(dict.fromkeys(MODELS, 24e-4))


@pytest.mark.parametrize("given", ["adamw", "AdamW", "PRODIGY", "adafactor", "AdamwScheduleFree"])
def test_optimizers_are_known_by_name_in_capitals_or_not(given):
    assert parse("", ["--optimizer", given]).optimizer.lower() == given.lower()
    assert parse("", ["--optimizer", "prodigy"]).resolved().learning_rate == 1.0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--optimizer adamv", "--optimizer is 'adamv'; it must be one of"),
        ("--optimizer adamw8bit", "AdamWScheduleFree, SGD; --use_8bit_adam is AdamW with 8-bit state"),
        ("--optimizer_type AdamW8bit", "--use_8bit_adam is AdamW"),
        (
            "--optimizer adafactor --adam_beta1 0.8",
            "--adam_beta1 has no effect here: it needs --optimizer AdamW or Prodigy",
        ),
        ("--prodigy_decouple False", "needs --optimizer Prodigy"),
        ("--prodigy_decouple maybe", "--prodigy_decouple is 'maybe'; it must be True or False"),
        ("--optimizer prodigy --use_8bit_adam", "needs --optimizer AdamW"),
        ("--optimizer prodigy --loraplus_lr_ratio 16", "one learning rate for all"),
        ("--optimizer prodigy --train_text_encoder --text_encoder_lr 1e-5", "one learning rate for all"),
        ("--optimizer AdamWScheduleFree --lr_scheduler cosine", "needs --lr_scheduler constant"),
        ("--optimizer AdamWScheduleFree --ema_decay 0.99", "--ema_decay has no effect here"),
        ("--lr_warmup_steps 5", "needs --lr_scheduler linear or cosine"),
        ("--lr_num_cycles 2 --lr_scheduler cosine", "cosine_with_restarts"),
        ("--lr_scheduler piecewise_constant", ": --lr_scheduler piecewise_constant needs --lr_step_rules"),
        ("--lr_scheduler piecewise_constant --lr_step_rules 1:x,2", "needs --lr_step_rules such as"),
        (
            "--lr_scheduler polynomial --lr_warmup_steps 10 --max_train_steps 10",
            "the run ends after 10 steps",
        ),
        ("--text_encoder_lr 1e-4", "needs --train_text_encoder"),
        ("--huber_c 0.5", "--loss_type huber"),
        ("--loss_type l3", "--loss_type is 'l3'; it must be one of l2, huber"),
        ("--adapter lora --tlora_min_rank 4", "it needs --tlora"),
        ("--tlora --rank 8 --tlora_min_rank 9", "at most the rank 8"),
    ],
)
def test_options_that_do_not_fit_together_are_one_sentence(line, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("", line.split())
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_switches_take_true_and_false_as_diffusers_command_lines_have_them():
    line = "--optimizer prodigy --prodigy_decouple=True --prodigy_use_bias_correction False"
    line += " --no-prodigy_safeguard_warmup --center_crop"
    config = parse("", line.split())
    assert (
        config.prodigy_decouple,
        config.prodigy_use_bias_correction,
        config.prodigy_safeguard_warmup,
        config.center_crop,
    ) == (
        True,
        False,
        False,
        True,
    )


@pytest.mark.parametrize(
    ("kind", "package"),
    [("Prodigy", "prodigyopt"), ("AdamWScheduleFree", "schedulefree"), ("AdamW 8 bit", "bitsandbytes")],
)
def test_a_package_that_is_not_there_is_named(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs the package {package}: pip install"):
        check_optimizer(TrainConfig(**dict(learning_rate=1e-2) | KINDS[kind]), torch.device("cpu"), 100)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            dict(lr_scheduler="polynomial", lr_warmup_steps=5, num_train_epochs=1),
            "the run ends after 5 steps",
        ),
        (dict(lr_scheduler="polynomial", learning_rate=1e-8), "lr_end"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused_before_anything_is_written(options, words):
    with pytest.raises(ConfigError, match=words):
        check_optimizer(TrainConfig(**dict(learning_rate=1e-3) | options), torch.device("cpu"), 5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "AdamW 8 bit"])
def test_the_forecast_knows_what_each_optimizer_keeps(kind):
    problem = Problem(config_of(kind))
    problem.go(0, 1)
    kept = sum(t.nbytes for t in optimizer_state(problem.optimizer)[0].values())
    numbers = sum(p.numel() for p in problem.parameters)
    assert kept / numbers == pytest.approx(bytes_per_parameter(config_of(kind)) - 8, abs=0.5)
    assert bytes_per_parameter(TrainConfig(ema_decay=0.99)) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_that_are_there_pass_the_check(kind):
    check_optimizer(config_of(kind), torch.device("cpu"), 100)


def test_there_is_one_optimizer_for_each_choice_of_the_option():
    assert tuple(optim.OPTIMIZERS) == OPTIMIZERS
    assert set(optim.CONSTANT_SCHEDULES) <= set(SCHEDULES)
