"""--deterministic: kernels with a fixed order of addition, asked for before the first of them is used."""

import os

import torch

from gralora_diffusion import TrainConfig
from gralora_diffusion.training.setup import set_up


def test_deterministic_kernels_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    shared = dict(latent_cache_dir=str(tmp_path / "cache"), max_train_steps=1, skip_final_inference=True)
    try:
        for asked in (True, False):
            config = TrainConfig(output_dir=str(tmp_path / "run"), deterministic=asked, **shared)
            set_up(config.resolved())
            assert torch.are_deterministic_algorithms_enabled() == asked
            if asked:
                assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        torch.utils.deterministic.fill_uninitialized_memory = True
