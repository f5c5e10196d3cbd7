"""The embedded base: SDXL's true classes, small, and it draws what it is asked for."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from gralora_diffusion import AdapterConfig, inject, load_sdxl
from gralora_diffusion.adapters.control import merge
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import encode_prompts, time_ids
from gralora_diffusion.sdxl.fingerprint import fingerprint, same_base
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.sdxl.sampling import sample


@pytest.fixture(scope="module")
def pipeline():
    return load_sdxl()


def test_sdxls_own_classes_in_sdxls_pattern(pipeline):
    kinds = dict(
        unet=UNet2DConditionModel,
        vae=AutoencoderKL,
        text_encoder=CLIPTextModel,
        text_encoder_2=CLIPTextModelWithProjection,
    )
    assert all(type(getattr(pipeline, name)) is kind for name, kind in kinds.items())
    config = pipeline.unet.config
    assert config.down_block_types == ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    assert config.up_block_types == ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    assert config.addition_embed_type == "text_time"
    assert config.use_linear_projection
    for module in pipeline.unet.modules():
        if isinstance(module, Attention):
            widths = [module.to_q.in_features, module.to_k.in_features, module.to_q.out_features]
            assert all(width % 8 == 0 for width in widths)
            assert module.to_q.out_features % module.heads == 0
    assert pipeline.tokenizer.pad_token_id != pipeline.tokenizer_2.pad_token_id


def test_it_fits_in_git_and_names_its_sources():
    files = [p for p in EMBEDDED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 25e6
    text = (EMBEDDED / "README.md").read_text()
    assert all(word in text for word in ("fluent-emoji-3d", "noto", "MIT", "Apache-2.0", "held out"))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_plain_diffusers_loads_it_like_any_other(dtype):
    plain = StableDiffusionXLPipeline.from_pretrained(
        EMBEDDED, add_watermarker=False, **({} if dtype is None else dict(dtype=dtype))
    )
    assert (
        plain.unet.dtype == plain.text_encoder.dtype == plain.text_encoder_2.dtype == (dtype or torch.float32)
    )
    if dtype is None:
        plain.set_progress_bar_config(disable=True)
        assert plain("a dog", num_inference_steps=2).images[0].size == (64, 64)


def corner_color(image):
    pixels = np.asarray(image, dtype=float)
    return np.median([pixels[y, x] for y in (1, -2) for x in (1, -2)], axis=0)


def test_prompts_control_background_and_object(pipeline):
    wanted = {
        "white": (250, 250, 250),
        "black": (16, 16, 18),
        "red": (214, 40, 40),
        "green": (50, 150, 70),
        "blue": (40, 80, 200),
        "yellow": (250, 215, 50),
    }
    images = sample(
        pipeline,
        [f"a drawing of a penguin on a {name} background" for name in wanted],
        num_inference_steps=20,
    )
    for image, color in zip(images, wanted.values(), strict=True):
        assert np.abs(corner_color(image) - color).max() < 60, (corner_color(image), color)
    heart, tree = (
        np.asarray(i, dtype=float)[24:40, 24:40].mean((0, 1))
        for i in sample(
            pipeline, ["a red heart on a white background", "a green apple on a white background"]
        )
    )
    assert heart[0] > heart[1] + 80
    assert tree[1] > tree[0] + 20


def test_prompts_become_sdxls_conditions(pipeline):
    embeds, pooled = encode_prompts(pipeline, ["a dog", "a red heart"])
    assert embeds.shape == (2, 32, 192)
    assert pooled.shape == (2, 128)
    ids = pipeline.tokenizer_2(["a dog"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        out = pipeline.text_encoder_2(ids, output_hidden_states=True)
    torch.testing.assert_close(pooled[:1], out.text_embeds)
    torch.testing.assert_close(embeds[:1, :, 64:], out.hidden_states[-2])
    assert time_ids((512, 768), (0, 64), (64, 64)).tolist() == [512, 768, 0, 64, 64, 64]


def test_the_fingerprint_knows_the_base_and_nothing_else():
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        load_sdxl().unet.config
    )  # weights that no half precision holds exactly
    plain = fingerprint(unet)
    for dtype in (torch.float16, torch.bfloat16):
        assert same_base(fingerprint(copy.deepcopy(unet).to(dtype)), plain)
        assert same_base(fingerprint(copy.deepcopy(unet).to(torch.float16).to(dtype)), plain)
    for layer in inject(unet, AdapterConfig(rank=16)).values():
        layer.adapter.gralora_B.data.normal_()
    assert fingerprint(unet) == plain
    merge(unet)
    assert adapted_layers(unet)
    assert fingerprint(unet) == plain
    assert not same_base(fingerprint(UNet2DConditionModel.from_config(unet.config)), plain)
    assert not same_base({"names": plain["names"], "weights": "x"}, plain)
    assert not same_base({"nameH": plain["names"], "weights": plain["weights"]}, plain)
    assert not same_base(plain | {"weights": ["x"] * len(plain["weights"])}, plain)
    assert not same_base(["weights"], plain)


def copied_base(folder, **changes):
    """The embedded base in a folder of its own, with changes to model_index.json."""
    shutil.copytree(EMBEDDED, folder)
    index = json.loads((folder / "model_index.json").read_text()) | changes
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_the_refiner_sd15_and_a_damaged_base(tmp_path):
    refiner = copied_base(tmp_path / "refiner", text_encoder=[None, None], tokenizer=[None, None])
    sd15 = copied_base(tmp_path / "sd15", text_encoder_2=[None, None], tokenizer_2=[None, None])
    damaged = copied_base(tmp_path / "damaged")
    weights = damaged / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    for folder, words in [
        (refiner, "not an SDXL base"),
        (sd15, "not an SDXL base"),
        (damaged, "no SDXL base can be loaded"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_sdxl(str(folder))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_not_an_sdxl_base(tmp_path):
    index = json.loads((EMBEDDED / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for path, words in [
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path, "no SDXL base"),
        ("model.ckpt", "pickle"),
        (tmp_path / "x.safetensors", "x.safetensors"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_sdxl(str(path))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
