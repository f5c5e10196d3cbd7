"""The page's generator: adapters are merged where there is memory for it, and images do not depend on it."""

import shutil

import numpy as np
import pytest
from PIL import Image

from gralora_diffusion import devices
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.cli import sample
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_native
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import flow_objective
from gralora_diffusion.ui.handlers import browser_error
from gralora_diffusion.ui.image_series import Generated, requests_of, series
from gralora_diffusion.ui.sampler import ImageRequest, Sampler
from gralora_diffusion.ui.served import save_served
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
    requests = requests_of(request, ["a robot"], 3, [])
    images = [event for event in series(sampler, requests, None, True, 0) if isinstance(event, Generated)]
    layers = adapted_layers(sampler.pipeline.unet).values()
    assert merged == [1.0] * len(layers)
    assert all(np.any(np.asarray(event.image) != np.asarray(event.base_image)) for event in images)
    plain = Sampler(Workspace(tmp_path)).generate(ImageRequest("a robot", 2, (), 2, None), None)
    assert np.array_equal(np.asarray(images[-1].base_image), np.asarray(plain))
    sampler.generate(ImageRequest("a robot", 0, (("robot", 0.5),), 2, None), None)
    assert merged == [1.0] * len(layers) + [0.5] * len(layers)


def test_negative_prompt_size_and_scheduler_are_those_of_the_command(tmp_path, finished_run, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "runs" / "robot")
    monkeypatch.setattr(devices, "best_device", lambda: devices.torch.device("cpu"))
    monkeypatch.setattr(devices, "available_ram", lambda: 0)
    more = dict(negative_prompt="red", size="96x64", scheduler="dpm++_2m")
    request = ImageRequest("a robot", 3, (("robot", 0.5),), 2, None, **more)
    image = Sampler(Workspace(tmp_path)).generate(request, None)
    words = ["--adapter", tmp_path / "runs" / "robot", "--strength", 0.5, "--prompt", "a robot", "--seed", 3]
    words += ["--negative_prompt", "red", "--size", "96x64", "--scheduler", "dpm++_2m", "--num_images", 1]
    sample.main([*map(str, words), "--num_inference_steps", "2", "--output", str(tmp_path / "out.png")])
    with Image.open(tmp_path / "out" / "strength-0.5-000.png") as of_command:
        assert np.abs(np.asarray(of_command, int) - np.asarray(image, int)).max() <= 2  # of 255
        assert of_command.text["parameters"] == image.info["parameters"]
        assert of_command.text["gralora"] == image.info["gralora"]
    path = save_served(Workspace(tmp_path), image, "a.png")
    with Image.open(path) as served:
        assert served.text["parameters"] == image.info["parameters"]


def test_an_adapter_is_sampled_by_what_it_was_trained_to_predict(tmp_path, finished_run, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "runs" / "robot")
    sampler = Sampler(Workspace(tmp_path))
    request = ImageRequest("a robot", 3, (("robot", 1.0),), 2, None)
    plain = sampler.generate(request, None)
    facts = dict(prediction_type="v_prediction", rescale_betas_zero_snr=False)
    sampler.objectives["robot"] = facts
    changed = sampler.generate(request, None)
    assert '"prediction_type": "v_prediction"' in changed.info["gralora"]
    assert np.any(np.asarray(plain) != np.asarray(changed))


def test_flow_adapters_of_different_shifts_are_refused_by_name(tmp_path, finished_run):
    """And the sampler goes on with those that fit together."""
    workspace = Workspace(tmp_path)
    for name, shift in (("slow", 3.0), ("fast", 1.0), ("also-slow", 3.0)):
        adapter = read_adapter(finished_run / "adapter.safetensors")
        adapter.facts["objective"] = flow_objective(shift)
        write_native(workspace.adapters / f"{name}.safetensors", adapter)
    sampler = Sampler(workspace)
    slow, fast, also_slow = (f"{name}.safetensors" for name in ("slow", "fast", "also-slow"))
    words = (
        f"{slow} and {fast} cannot be used together: {slow} was trained for flow with shift 3, "
        f"{fast} for flow with shift 1. Use one of them."
    )
    with pytest.raises(ConfigError) as refusal:
        sampler.generate(ImageRequest("a robot", 0, ((slow, 1.0), (fast, 1.0)), 1, None), None)
    assert str(refusal.value) == words
    image = sampler.generate(ImageRequest("a robot", 0, ((slow, 1.0), (also_slow, 0.5)), 1, None), None)
    assert '"flow_shift": 3.0' in image.info["gralora"]


def test_a_clip_skip_beyond_the_layers_of_the_base_is_that_of_the_adapter(tmp_path, finished_run):
    workspace = Workspace(tmp_path)
    adapter = read_adapter(finished_run / "adapter.safetensors")
    adapter.facts["training"]["values"]["clip_skip"] = 12
    write_native(workspace.adapters / "deep.safetensors", adapter)
    request = ImageRequest("a robot", 0, (("deep.safetensors", 1.0),), 1, None)
    with pytest.raises(ConfigError) as refusal:
        Sampler(workspace).generate(request, None)
    assert browser_error(refusal.value).message == (
        "the clip skip that the adapter was trained with is 12; it must be from 1 to 2, the layers of this "
        "base's smaller text encoder: choose another base model"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(size="100x64"), "divisible by 8"),
        (dict(size="8192x8192"), "the limit is 4,194,304 pixels"),
        (dict(scheduler="__class__"), "must be one of euler"),
        (dict(negative_prompt="x" * 1001), "negative prompt has 1001 characters"),
    ],
)
def test_what_a_browser_sends_is_checked(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        ImageRequest("a robot", 0, (), 2, None, **change).checked(Workspace(tmp_path))
