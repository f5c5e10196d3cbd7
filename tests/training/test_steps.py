"""Numbers that are read a step late, as on a GPU: the same run, and the same stops, as without it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.options import TrainingError
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training import objective, steps
from gralora_diffusion.training.train import train

SMALL = AdapterConfig(rank=8, k=2, targets=r"mid_block.*attn1\.to_q")
QUICK = TrainConfig(
    adapter=SMALL,
    max_train_steps=5,
    train_batch_size=2,
    skip_final_inference=True,
    lr_scheduler="cosine",
    ema_decay=0.9,
    checkpointing_steps=3,
)
BATCHES_BEFORE = 3  # that tell the time of a step


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(steps, "reads_late", lambda *_: True)


def run(folder: Path, **options) -> Path:
    return train(dataclasses.replace(QUICK, output_dir=str(folder), **options))


def spoil(monkeypatch, at: int, fail) -> None:
    """The loss of step `at` goes through fail()."""
    real, count = objective.diffusion_loss, []

    def loss(*args, **options):
        count.append(1)
        value = real(*args, **options)
        return fail(value) if len(count) == BATCHES_BEFORE + at else value

    monkeypatch.setattr(objective, "diffusion_loss", loss)


def lines_of(folder: Path) -> list[dict]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["memory"], line["peak"]
    return lines


def states_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "state.safetensors") | load_file(checkpoint / "adapter.safetensors")


def assert_same_state(one: Path, other: Path) -> None:
    first, second = states_of(one), states_of(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "state.json").read_text() == (other / "state.json").read_text()


def test_a_run_whose_numbers_are_read_late_is_the_same_bit_by_bit(tmp_path, monkeypatch):
    at_once = run(tmp_path / "at-once")
    read = []
    monkeypatch.setattr(steps, "reads_late", lambda *_: read.append(1) or True)
    one_later = run(tmp_path / "late")
    assert read
    assert lines_of(at_once) == lines_of(one_later)
    for step in (3, 5):
        assert_same_state(at_once / f"checkpoint-{step}", one_later / f"checkpoint-{step}")


@pytest.mark.parametrize(
    ("what", "fail"),
    [
        ("loss", lambda loss: loss * torch.nan),
        ("gradient", lambda loss: loss + (loss - loss.detach()) * 1e38 * 1e38),
    ],
)
def test_a_number_that_is_not_finite_names_its_step_and_is_not_applied(
    what, fail, tmp_path, monkeypatch, late
):
    good = run(tmp_path / "good", max_train_steps=2, lr_scheduler="constant")
    spoil(monkeypatch, 3, fail)
    with pytest.raises(TrainingError, match=rf"the {what} of step 3 is not finite.*checkpoint-2 holds"):
        run(tmp_path / "bad", lr_scheduler="constant", checkpointing_steps=100)
    assert_same_state(good / "checkpoint-2", tmp_path / "bad" / "checkpoint-2")
    assert [line["step"] for line in lines_of(tmp_path / "bad")] == [1, 2]
    assert checkpoints.candidates(tmp_path / "bad") == [2]


def test_a_step_before_one_without_memory_is_kept(tmp_path, monkeypatch, late):
    def no_memory(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    spoil(monkeypatch, 3, no_memory)
    with pytest.raises(TrainingError, match="out of memory at step 3"):
        run(tmp_path / "run", checkpointing_steps=100)
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2]
    assert checkpoints.candidates(tmp_path / "run") == [2]
