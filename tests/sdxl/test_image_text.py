"""The texts in generated images, read by parsers of the formats of other tools."""

import json

import numpy as np
import pytest
from image_texts import read_as_a1111, read_as_comfyui
from PIL import Image

from gralora_diffusion import load_sdxl
from gralora_diffusion.sdxl.image_text import save_image, texts_of
from gralora_diffusion.sdxl.sampling import generate
from gralora_diffusion.sdxl.sampling_settings import Origin, SamplingSettings, UsedAdapter

ADAPTERS = (UsedAdapter("my_dog", 0.8, "f" * 64, "abc123def456" + "0" * 52), UsedAdapter("style, bold", 1.0))


def texts(prompt="a dog", negative="", name="dpm++_2m_karras", adapters=ADAPTERS, model="owner/base"):
    settings = SamplingSettings(20, 6.5, None, negative, name)
    scheduler = load_sdxl().scheduler
    return texts_of(prompt, 42, settings, (832, 1216), scheduler, Origin(model, adapters=adapters))


@pytest.mark.parametrize("negative", ["", "blurry, text: none"])
@pytest.mark.parametrize("read", [read_as_a1111, read_as_comfyui])
def test_other_tools_read_the_prompts(read, negative):
    prompt, found, _ = read(texts("a (red:1.2) dog, sunset", negative)["parameters"])
    assert prompt == "a (red:1.2) dog, sunset <lora:my_dog:0.8> <lora:style_ bold:1>"
    assert found == negative


def test_a1111_reads_every_value():
    _, _, values = read_as_a1111(texts(model='odd, "name": x')["parameters"])
    assert values == {
        "Steps": "20",
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": "6.5",
        "Seed": "42",
        "Size": "832x1216",
        "Clip skip": "2",
        "Model": 'odd, "name": x',
        "Lora hashes": "my_dog: abc123def456",
        "Version": "gralora 0.1.0",
    }


def test_comfyui_reads_steps_sampler_and_size():
    _, _, values = read_as_comfyui(texts()["parameters"])
    assert (values["steps"], values["sampler"], values["size"]) == ("20", "DPM++ 2M Karras", "832x1216")


def test_a_prompt_of_several_lines_stays_a_prompt():
    text = texts("a dog\nSteps: 7, Sampler: x, Seed: 1\n\nend", adapters=())["parameters"]
    prompt, _, values = read_as_a1111(text)
    assert prompt == "a dog Steps: 7, Sampler: x, Seed: 1 end"
    assert values["Steps"] == "20"


def test_half_characters_and_nul_are_written(tmp_path):
    image = Image.new("RGB", (8, 8))
    image.info |= texts("a dog \ud800 \0 \u00e9\U0001f436")
    save_image(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        assert read.text["parameters"].startswith("a dog ? \u00e9\U0001f436 <lora")


def test_the_own_text_makes_the_image_again(tmp_path):
    pipeline = load_sdxl()
    settings = SamplingSettings(3, 2.5, (64, 96), "(green:1.3)", "euler_a", 1, False)
    (image,) = generate(pipeline, [("a dog", 7)], settings, origin=Origin.of(None))
    save_image(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        facts = json.loads(read.text["gralora"])
        assert np.array_equal(np.asarray(read), np.asarray(image))
    width, height = map(int, facts["size"].split("x"))
    again = SamplingSettings(
        facts["num_inference_steps"],
        facts["guidance_scale"],
        (height, width),
        facts["negative_prompt"],
        facts["scheduler"],
        facts["clip_skip"],
        facts["weighted_prompts"],
    )
    (second,) = generate(pipeline, [(facts["prompt"], facts["seed"])], again)
    assert second.size == (96, 64)
    assert np.array_equal(np.asarray(second), np.asarray(image))
    assert "gralora" not in second.info


def test_folders_of_this_machine_are_not_named():
    origin = Origin.of("/home/me/models/base.safetensors", "/home/me/vae", adapters=ADAPTERS)
    scheduler = load_sdxl().scheduler
    found = texts_of("a dog", 0, SamplingSettings(), (64, 64), scheduler, origin)
    assert "home" not in "".join(found.values())
    assert json.loads(found["gralora"])["base"]["name"] == "base.safetensors"
