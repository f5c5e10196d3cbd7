"""Thumbnails with masks, and the crops that training makes."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from bad_images import BAD
from PIL import Image

from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.images import bucket_of, crops_of, to_pixels
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import crop_preview
from gralora_diffusion.ui.card_images import TINT, card_image


def images_in(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_what_the_mask_does_not_select_is_tinted(tmp_path):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a<b>.png")
    mask = np.zeros((60, 80), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "a<b>_mask.png")
    html = card_image(tmp_path / "a<b>.png", tmp_path / "a<b>_mask.png")
    assert "a<b>" not in html
    image, layer = images_in(html)
    assert image.size == layer.size == (80, 60)
    alpha = np.asarray(layer)[:, :, 3]
    assert (alpha[:, :40] == TINT).all()
    assert (alpha[:, 40:] == 0).all()
    assert len(images_in(card_image(tmp_path / "a<b>.png", None))) == 1


def test_a_mask_or_image_that_cannot_be_read_is_named(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a_mask.png").write_bytes(b"<script>")
    html = card_image(tmp_path / "a.png", tmp_path / "a_mask.png")
    assert "a_mask.png: not an image, despite its name" in html
    assert "<script>" not in html
    assert "a_mask.png: not an image" in card_image(tmp_path / "a_mask.png", None)
    for name, content, words in BAD.values():
        if not name.startswith("bad.") or name.endswith((".svg", ".eps", ".zip", ".jxl", ".CR2")):
            continue
        (tmp_path / name).write_bytes(content)
        html = card_image(tmp_path / "a.png", tmp_path / name)
        assert name in html
        assert len(images_in(html)) == 1, words


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("by_aspect", [False, True])
def test_the_preview_has_the_crops_of_training(tmp_path, by_aspect, center):
    """The pixels that crops_of() gives the trainer are those at the places of the preview."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 260, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (image,) = find_images(tmp_path, "a dog")
    shape = bucket_of(image.size, 64, by_aspect)
    trained = crops_of(image.open(), shape, center, False, "lanczos", image.crop_key)
    crops = crop_preview.crops_in_training(tmp_path / "a.png", 64, by_aspect, center)
    assert crops.shape == shape
    assert len(crops.places) == len(trained)
    resized = image.open().resize(crops.size, Image.Resampling.LANCZOS)
    for (top, left), (pixels, _) in zip(crops.places, trained, strict=True):
        height, width = shape
        own = to_pixels(resized.crop((left, top, left + width, top + height)))
        assert torch.equal(own, pixels)


def test_the_preview_dims_what_is_cut_away(tmp_path):
    Image.new("RGB", (320, 160), "white").save(tmp_path / "a.png")
    crops = crop_preview.crops_in_training(tmp_path / "a.png", 64, False, True)
    assert crops.text == "64 x 64, 50 % cut away"
    pixels = np.asarray(crop_preview.preview(tmp_path / "a.png", crops))
    assert pixels[80, 160].tolist() == [255, 255, 255]
    assert pixels[80, 10].max() < 100
    small = crop_preview.crops_in_training(tmp_path / "a.png", 512, False, True)
    assert small.text == "512 x 512, 50 % cut away, enlarged 3.2 times: too small"


@pytest.mark.parametrize("value", [None, "", "x", -1, 63, 8193, "1e9", 2**70, float("nan"), [64]])
def test_only_resolutions_are_taken(workspace, value):
    with pytest.raises(ConfigError, match="it must be a whole number of pixels from 64 to 8192"):
        crop_preview.previews(workspace, "robot", value, False, False)
