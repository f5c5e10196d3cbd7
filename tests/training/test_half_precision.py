"""fp16 with a gradient scaler: torch's own for the CPU, since accelerate makes one on GPUs alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.options import TrainingError
from gralora_diffusion.training import accelerator
from gralora_diffusion.training.run_folder import read_metrics, read_status
from gralora_diffusion.training.train import train

HALF = TrainConfig(
    adapter=AdapterConfig(rank=4),
    train_batch_size=1,
    mixed_precision="fp16",
    skip_final_inference=True,
    checkpointing_steps=8,
)


@pytest.fixture
def scaled(monkeypatch):
    """accelerate as it is on a GPU, its scaler beginning so high that the first steps overflow."""

    def give(first: float) -> None:
        class WithScaler(Accelerator):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                self.native_amp, self.scaler = (
                    True,
                    torch.amp.GradScaler("cpu", init_scale=first, growth_interval=6),
                )

        monkeypatch.setattr(accelerator, "Accelerator", WithScaler)

    return give


def half(run: Path, **options) -> Path:
    return train(dataclasses.replace(HALF, output_dir=str(run), **options))


def test_a_step_that_overflows_is_skipped_and_the_run_goes_on_bit_equal_after_a_kill(tmp_path, scaled):
    scaled(2.0**28)
    run = half(tmp_path / "run", max_train_steps=24)
    lines = read_metrics(run)
    skipped = [line["step"] for line in lines if line["grad_norm"] is None]
    assert skipped[0] == 1
    assert len(skipped) < len(lines) / 2
    tensors = load_file(run / "adapter.safetensors")
    assert all(t.isfinite().all() for t in tensors.values())
    assert any(t.any() for name, t in tensors.items() if name.endswith("_B"))
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    for step in (16, 24):
        shutil.rmtree(broken / f"checkpoint-{step}")
    for path in broken.glob("*.safetensors"):
        path.unlink()
    (broken / "status.json").write_text('{"state": "running", "pid": 1}')
    again = load_file(half(broken, max_train_steps=24) / "adapter.safetensors")
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert [line["loss"] for line in read_metrics(broken)] == [line["loss"] for line in lines]


def test_a_gradient_that_overflows_in_every_step_stops_the_run(tmp_path, scaled):
    """The scaler halves its scale each time; the 26th step in a row is one too many."""
    scaled(2.0**120)
    with pytest.raises(
        TrainingError, match=r"the gradient of step 26 is not finite.*checkpoint-25 holds the last good state"
    ):
        half(tmp_path / "run", max_train_steps=30)
    assert json.loads((tmp_path / "run" / "checkpoint-25" / "state.json").read_text())
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert not any(
        t.any()
        for name, t in load_file(tmp_path / "run" / "checkpoint-25" / "adapter.safetensors").items()
        if name.endswith("_B")
    )
