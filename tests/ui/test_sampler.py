"""The page's generator: adapters are merged where there is memory for it, and images do not depend on it."""

import shutil

import numpy as np
import pytest

from gralora_diffusion import devices
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.ui.sampler import ImageRequest, Sampler, image_series
from gralora_diffusion.ui.workspace import Workspace


@pytest.mark.parametrize(("free", "merged"), [(0, False), (2**60, True)])
def test_adapters_are_merged_where_the_ram_has_room(tmp_path, finished_run, monkeypatch, free, merged):
    shutil.copytree(finished_run, tmp_path / "runs" / "robot")
    monkeypatch.setattr(devices, "best_device", lambda: devices.torch.device("cpu"))
    sampler = Sampler(Workspace(tmp_path))
    request = ImageRequest("a robot", 0, (("robot", 1.0),), 2, None)
    expected = np.asarray(sampler.generate(request, None), int)
    sampler.unload()
    monkeypatch.setattr(devices, "available_ram", lambda: free)
    image = np.asarray(sampler.generate(request, None), int)
    assert {layer.merged for layer in adapted_layers(sampler.pipeline.unet).values()} == {merged}
    assert np.abs(image - expected).max() <= 2  # of 255: merging rounds otherwise


def test_a_series_beside_the_base_merges_once_and_a_new_strength_merges_again(
    tmp_path, finished_run, monkeypatch
):
    shutil.copytree(finished_run, tmp_path / "runs" / "robot")
    monkeypatch.setattr(devices, "best_device", lambda: devices.torch.device("cpu"))
    real, merged = GraLoRA.add_delta, []
    monkeypatch.setattr(GraLoRA, "add_delta", lambda self, *args: merged.append(args[1]) or real(self, *args))
    sampler = Sampler(Workspace(tmp_path))
    request = ImageRequest("a robot", 0, (("robot", 1.0),), 2, None)
    images = list(image_series(sampler, request, 3, None, with_base=True))
    layers = adapted_layers(sampler.pipeline.unet).values()
    assert merged == [1.0] * len(layers)
    assert all(np.any(np.asarray(image) != np.asarray(base)) for _, image, base in images)
    plain = Sampler(Workspace(tmp_path)).generate(ImageRequest("a robot", 2, (), 2, None), None)
    assert np.array_equal(np.asarray(images[-1][2]), np.asarray(plain))
    sampler.generate(ImageRequest("a robot", 0, (("robot", 0.5),), 2, None), None)
    assert merged == [1.0] * len(layers) + [0.5] * len(layers)
