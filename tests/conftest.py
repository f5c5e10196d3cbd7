import gc
import json
import os
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import CLIP_CONFIG, IMAGENET
from PIL import Image

from gralora_diffusion import AdapterConfig, console

console.no_telemetry()
heap = dict(modules=0)  # loaded when their objects were last taken out of garbage collections
# Folders: first those whose runs are compared bit by bit with the trainer's, in processes without a past.
LONG_FIRST = ("experiments", "training", "browser", "nogpu", "commands", "ui")


def pytest_collection_modifyitems(items):
    """Folders whose files take long come first, so that no worker waits for the other's long file."""
    places = {name: place for place, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Latents and prompt embeddings of all tests, and of the commands that they start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder / "gralora_diffusion"


@pytest.fixture(autouse=True)
def small_heap():
    """Take the objects of loaded libraries out of garbage collections: a training run does several of all."""
    yield
    if len(sys.modules) > heap["modules"] + 200:
        heap["modules"] = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def as_it_was():
    """The environment and the name before messages, which a command sets, are restored after each test."""
    with mock.patch.dict(os.environ), mock.patch.object(console, "_program", None):
        yield


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
    from gralora_diffusion.training.train import train

    run = tmp_path_factory.mktemp("run") / "robot"
    return train(
        TrainConfig(
            adapter=AdapterConfig(rank=16, k=2),
            output_dir=str(run),
            max_train_steps=20,
            num_inference_steps=4,
            seed=3,
        )
    )


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A folder with open_clip_config.json and the random weights of a tiny open_clip model."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=CLIP_CONFIG, preprocess_cfg={})))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory):
    """A folder with a tiny random DINOv2 and the preprocessing of facebook/dinov2-small."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, mlp_ratio=2)
    ).save_pretrained(folder)
    BitImageProcessorPil(size=dict(shortest_edge=256), **IMAGENET).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Images of several sizes: noise on gradients, one of them the same twice."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, (w, h) in enumerate([(300, 200), (200, 331), (64, 64), (257, 255), (480, 300)]):
        slope = np.linspace(0, 200, w)[None, :, None] * np.array([1, 0.5, 0.2])
        Image.fromarray((slope + random.integers(0, 56, (h, w, 3))).astype(np.uint8)).save(
            folder / f"{i}.png"
        )
    (folder / "10.png").write_bytes((folder / "0.png").read_bytes())
    return folder
