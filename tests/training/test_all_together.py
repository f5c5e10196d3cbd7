"""A run with held-out images, scores, the base's prior, shaped noise, rates by layer: exact after a kill."""

import json
import shutil

import torch
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.training.run_folder import read_evaluations, read_metrics
from gralora_diffusion.training.train import train

ALL = dict(
    adapter=AdapterConfig(rank=8, k=2, tlora=True, dropout=0.1, orthogonal_start="random"),
    max_train_steps=4,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    gradient_checkpointing=True,
    learning_rate=1e-3,
    lr_pattern={"attn2": 0.5},
    ema_decay=0.9,
    train_text_encoder=True,
    checkpointing_steps=1,
    num_inference_steps=2,
    validation_split=0.3,
    validation_steps=1,
    keep_best="score",
    patience=9,
    prior_by_prediction=True,
    class_prompt="a photo of a robot",
    timestep_density="logit_normal",
    min_timestep=50,
    multires_noise_iterations=4,
)


def test_all_of_it_resumes_bit_by_bit_for_diffusion_and_flow(tmp_path):
    for name, options in (("diffusion", {}), ("flow", dict(prediction_type="flow", flow_shift=3.0))):
        config = TrainConfig(output_dir=str(tmp_path / name), **ALL, **options)
        run = train(config)
        exported, history = load_file(run / "adapter.safetensors"), read_evaluations(run)
        losses = [line["loss"] for line in read_metrics(run)]
        assert len(history) == 5
        for step in (3, 4):
            shutil.rmtree(run / f"checkpoint-{step}")
        shutil.rmtree(run / "checkpoint-best")
        (run / "evaluations.jsonl").unlink()
        status = run / "status.json"
        status.write_text(json.dumps(json.loads(status.read_text()) | dict(state="stopped")))
        train(config)
        again = load_file(run / "adapter.safetensors")
        assert [line["loss"] for line in read_metrics(run)] == losses
        assert read_evaluations(run) == history
        assert all(torch.equal(exported[name], again[name]) for name in exported)
