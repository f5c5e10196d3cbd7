import os

import pytest
import torch

from gralora_diffusion import AdapterConfig, inject, load_sdxl
from gralora_diffusion.injection import adapter_parameters

MODELS = ("unet", "text_encoder", "text_encoder_2")


def adapted_pipeline(config: AdapterConfig, names=MODELS):
    """The embedded base with random, non-zero adapters, and {component: model}."""
    pipeline = load_sdxl()
    models = {name: getattr(pipeline, name) for name in names}
    torch.manual_seed(1)
    for model in models.values():
        inject(model, config)
        for name, p in adapter_parameters(model).items():
            p.data.normal_(std=0.1 if name.endswith("_B") else p.data.std().item())
    return pipeline, models


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Latents and prompt embeddings of all tests, and of the commands that they start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder / "gralora_diffusion"


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps the first run's precision for the whole process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A short training run of the real command's own code."""
    from gralora_diffusion import TrainConfig
    from gralora_diffusion.training import train

    run = tmp_path_factory.mktemp("run") / "robot"
    return train(TrainConfig(adapter=AdapterConfig(rank=16, k=2), output_dir=str(run), max_train_steps=20, num_inference_steps=4, seed=3))
