"""The page's generator: adapters are merged where there is memory for it, and images do not depend on it."""

import shutil

import numpy as np
import pytest

from gralora_diffusion import devices
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.ui.sampler import ImageRequest, Sampler
from gralora_diffusion.ui.workspace import Workspace


@pytest.mark.parametrize(("free", "merged"), [(0, False), (2**60, True)])
def test_adapters_are_merged_where_the_ram_has_room(tmp_path, finished_run, monkeypatch, free, merged):
    shutil.copytree(finished_run, tmp_path / "runs" / "robot")
    monkeypatch.setattr(devices, "best_device", lambda: devices.torch.device("cpu"))
    sampler = Sampler(Workspace(tmp_path))
    request = ImageRequest("a robot", 0, (("robot", 1.0),), 2, None)
    expected = np.asarray(sampler.generate(request, None), int)
    monkeypatch.setattr(devices, "available_ram", lambda: free)
    image = np.asarray(sampler.generate(request, None), int)
    assert {layer.merged for layer in adapted_layers(sampler.pipeline.unet).values()} == {merged}
    assert np.abs(image - expected).max() <= 2  # of 255: merging rounds otherwise
