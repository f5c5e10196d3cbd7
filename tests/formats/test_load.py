"""Adapter files are read as they were written, here and in diffusers; damaged ones are refused."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from adapter_files import CONFIGS, CONVOLUTIONS
from diffusers import StableDiffusionXLPipeline
from helpers import MODELS, adapted_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gralora_diffusion import AdapterConfig, load_adapter, load_sdxl, save_adapter
from gralora_diffusion.adapters.control import merge
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.load import save_diffusers
from gralora_diffusion.formats.safetensors_files import write_safetensors
from gralora_diffusion.formats.write import file_sizes
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint, same_base
from gralora_diffusion.sdxl.load import EMBEDDED


def draw(pipeline):
    """[2, 64, 64, 3] in [0, 1]"""
    random = [torch.Generator().manual_seed(i) for i in (0, 1)]
    return pipeline(
        ["a dog", "a red heart"],
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=random,
        output_type="np",
    ).images


@pytest.fixture(scope="module")
def base_images():
    return draw(load_sdxl())


@pytest.mark.parametrize("config", (CONFIGS | CONVOLUTIONS).values(), ids=CONFIGS | CONVOLUTIONS)
def test_native_and_diffusers_files_give_the_same_images(config, tmp_path, base_images):
    pipeline, models = adapted_pipeline(config)
    here = draw(pipeline)
    assert np.abs(here - base_images).max() > 0.05
    save_adapter(tmp_path / "adapter.safetensors", models, "tiny", dict(instance_prompt="a photo of sks dog"))
    save_diffusers(tmp_path / "lora.safetensors", models)

    native = load_sdxl()
    facts = load_adapter(native, tmp_path)  # the folder will do
    assert facts["prompts"]["instance_prompt"] == "a photo of sks dog"
    for name in MODELS:
        ours, theirs = adapted_layers(models[name]), adapted_layers(getattr(native, name))
        assert list(ours) == list(theirs)
        for path in ours:
            assert torch.equal(ours[path].delta(), theirs[path].delta())
    np.testing.assert_allclose(draw(native), here, rtol=0, atol=1e-5)
    for name in MODELS:
        merge(getattr(native, name))
    np.testing.assert_allclose(draw(native), here, rtol=0, atol=1e-4)

    plain = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    np.testing.assert_allclose(draw(plain), here, rtol=0, atol=1e-4)


def test_strength(tmp_path, base_images):
    _, models = adapted_pipeline(CONFIGS["gralora"], ["unet"])
    save_adapter(tmp_path / "a.safetensors", models)
    save_diffusers(tmp_path / "lora.safetensors", models)
    plain = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(str(tmp_path), weight_name="lora.safetensors", adapter_name="x")
    for strength in (0.0, 0.5, 2.0):
        native = load_sdxl()
        load_adapter(native, tmp_path / "a.safetensors", strength)
        plain.set_adapters("x", strength)
        ours = draw(native)
        np.testing.assert_allclose(draw(plain), ours, rtol=0, atol=1e-4)
        if strength == 0:
            assert np.array_equal(ours, base_images)


def test_the_file_describes_itself(tmp_path):
    _, models = adapted_pipeline(CONFIGS["hybrid"])
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, models, "tiny")
    with safe_open(path, "pt") as file:
        facts, keys = json.loads(file.metadata()["gralora_diffusion"]), set(file.keys())
    assert facts["config"]["rank"] == 16
    assert facts["base"]["name"] == "tiny"
    assert same_base(facts["base"]["fingerprint"], fingerprint(load_sdxl().unet))
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.gralora_A" in keys
    assert "text_encoder_2.text_model.encoder.layers.2.self_attn.out_proj.lora_B" in keys
    assert any(k.startswith("unet.mid_block.") and k.endswith(".lora_A") for k in keys)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]


def _umask():
    import os

    os.umask(mask := os.umask(0))
    return mask


@pytest.mark.parametrize("config", [CONFIGS["mixed"], CONVOLUTIONS["conv"]], ids=["mixed", "conv"])
def test_sizes_are_forecast(config, tmp_path):
    _, models = adapted_pipeline(config, ["unet"])
    save_adapter(tmp_path / "adapter.safetensors", models)
    save_diffusers(tmp_path / "pytorch_lora_weights.safetensors", models)
    sizes = file_sizes({f"unet.{path}": layer for path, layer in adapted_layers(models["unet"]).items()})
    for name, size in zip(("adapter.safetensors", "pytorch_lora_weights.safetensors"), sizes, strict=True):
        assert (tmp_path / name).stat().st_size == pytest.approx(size, rel=0.05)


def test_another_base_of_the_same_shape_is_noticed(tmp_path):
    _, models = adapted_pipeline(CONFIGS["lora"], ["unet"])
    save_adapter(tmp_path / "adapter.safetensors", models)
    other = load_sdxl()
    other.unet.conv_in.weight.data += 1
    with pytest.warns(UserWarning, match="trained on a different base"):
        load_adapter(other, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(load_sdxl(), tmp_path)


def damaged(kind, tensors, metadata):
    first = sorted(tensors)[0]
    facts = json.loads(metadata["gralora_diffusion"])
    match kind:
        case "half a pair":
            del tensors[first]
        case "not finite":
            tensors[first][0] = float("nan")
        case "wrong shape":
            tensors[first] = tensors[first][..., :8].contiguous()
        case "unknown component":
            tensors["vae.x.lora_A"] = tensors.pop(first)
        case "unknown layer":
            tensors = {k.replace("to_q", "to_z"): v for k, v in tensors.items()}
        case "unknown option":
            facts["config"]["surprise"] = 1
        case "wrong type":
            facts["config"]["dropout"] = "much"
        case "no config":
            del facts["config"]
        case "huge alpha":
            facts["config"]["alpha"] = float("inf")
    return tensors, {"gralora_diffusion": json.dumps(facts)}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("half a pair", "layers need gralora_A"),
        ("not finite", "not finite"),
        ("wrong shape", "do not fit"),
        ("unknown component", "unknown tensor"),
        ("unknown layer", "no such layer"),
        ("unknown option", "'surprise'"),
        ("wrong type", "'dropout' is 'much'"),
        ("no config", "cannot be read"),
        ("huge alpha", "alpha is inf"),
    ],
)
def test_damaged_files_change_nothing(kind, words, tmp_path):
    _, models = adapted_pipeline(AdapterConfig(rank=16, k=2, targets="mid_block.*attn1"), ["unet"])
    save_adapter(tmp_path / "good.safetensors", models)
    with safe_open(tmp_path / "good.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors, metadata = damaged(kind, load_file(tmp_path / "good.safetensors"), metadata)
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    pipeline = load_sdxl()
    with pytest.raises(ConfigError) as caught:
        load_adapter(pipeline, tmp_path / "bad.safetensors")
    assert words in str(caught.value), caught.value
    assert "\n" not in str(caught.value)
    assert not adapted_layers(pipeline.unet)


def test_what_is_not_an_adapter(tmp_path):
    pipeline = load_sdxl()
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "liar.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    for name, words in [
        ("pickle", "is a pickle"),
        ("other", "unknown tensor"),
        ("liar", "not a complete"),
        ("absent", "does not exist"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load_adapter(pipeline, tmp_path / f"{name}.safetensors")


def test_nothing_is_half_written(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        write_safetensors(tmp_path / "a.safetensors", {"x": torch.tensor([1e9]).half()}, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="nothing to save"):
        save_adapter(tmp_path / "a.safetensors", {"unet": load_sdxl().unet})
    assert not list(tmp_path.iterdir())
