"""Masks: which file is whose, how they are read, what is refused, and how they are cropped."""

import dataclasses
import json
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from gralora_diffusion import TrainConfig, load_sdxl
from gralora_diffusion.data.batches import examples_at, plan_batches
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.cached_masks import mask_key
from gralora_diffusion.data.dataset import instance_images
from gralora_diffusion.data.image_folder import content_of, find_images
from gralora_diffusion.data.images import ORIENTATION, crops_of, open_image
from gralora_diffusion.data.mask_images import alpha_of, decode, gray_of, mask_crops_of, same_aspect
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.ui import caption_files


def photo(path, size=(64, 64), mode="RGB", seed=0):
    """An image of noise."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)


def box(path, where=(16, 16, 48, 48), size=(64, 64), value=255, mode="L"):
    """A mask with one white box."""
    mask = Image.new("L", size)
    mask.paste(value, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.convert(mode).save(path)


def config_of(folder, **options):
    given = dict(instance_data_dir=str(folder), instance_prompt="a photo of sks dog", masked_loss=True)
    common = dict(resolution=64, train_batch_size=1, skip_final_inference=True)
    return TrainConfig(**(common | given | options))


def names(images):
    found = {}
    for image in images:
        mask = image.mask
        found[image.path.name] = mask and ("alpha" if mask.is_alpha else mask.path.name)
    return found


@pytest.fixture
def folder(tmp_path):
    """Four images: two sources each, and one without a mask."""
    photos = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.jpg", "c.png", "d.png")):
        photo(photos / name, seed=seed)
    image = Image.open(photos / "c.png").convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((64, 64)))
    image.save(photos / "c.png")
    for name in ("a-masklabel.png", "a_mask.png", "b_mask.png", "a-condlabel.png"):
        box(photos / name)
    return photos


def test_the_first_source_is_used(folder, capsys):
    config = config_of(folder)
    beside = {"a.png": "a-masklabel.png", "b.jpg": "b_mask.png", "c.png": "alpha", "d.png": None}
    assert names(instance_images(config)) == beside
    assert "masks for 3 of 4 images; images without one are trained on in full" in capsys.readouterr().err
    masks = folder / "masks"
    box(masks / "a.png")
    box(masks / "c-masklabel.png")
    box(masks / "renamed.png")
    found = instance_images(dataclasses.replace(config, mask_dir=str(masks)))
    assert names(found) == beside | {"a.png": "a.png", "c.png": "c-masklabel.png"}
    notes = capsys.readouterr().err
    assert "masks holds 1 mask without an image: renamed.png" in notes
    assert "subfolder" not in notes
    assert all(image.mask is None for image in instance_images(config_of(folder, masked_loss=False)))


def test_an_opaque_alpha_channel_is_no_mask(folder):
    Image.open(folder / "c.png").convert("RGB").convert("RGBA").save(folder / "c.png")
    assert names(instance_images(config_of(folder)))["c.png"] is None


def test_concepts_and_numbered_folders_have_masks(tmp_path):
    for seed, path in enumerate(("img/2_sks dog/x.png", "img/1_tok cat/x.png", "other/y.png")):
        photo(tmp_path / path, seed=seed)
    box(tmp_path / "masks" / "2_sks dog" / "x.png")
    box(tmp_path / "of_others" / "y.png")
    found = instance_images(config_of(tmp_path / "img", mask_dir=str(tmp_path / "masks")))
    assert [(image.caption, image.mask is not None) for image in found] == [
        ("tok cat", False),
        ("sks dog", True),
    ]
    entries = [
        dict(folder="img", mask_folder="masks"),
        dict(folder="other", mask_folder="of_others", prompt="x"),
    ]
    (tmp_path / "c.json").write_text(json.dumps(entries))
    given = config_of(None, instance_data_dir=None, concepts=str(tmp_path / "c.json"))
    assert [image.mask is not None for image in instance_images(given)] == [False, True, True]
    with pytest.raises(ConfigError, match=r"entry 1 .* it has mask_folder, which needs --masked_loss"):
        instance_images(dataclasses.replace(given, masked_loss=False))
    entries[1]["mask_folder"] = "nowhere"
    (tmp_path / "c.json").write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"entry 2 .* its mask_folder .*nowhere is not a folder"):
        instance_images(given)


def test_images_in_subfolders_of_metadata_have_masks_beside_them(tmp_path):
    photo(tmp_path / "sub" / "x.png")
    box(tmp_path / "sub" / "x_mask.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sub/x.png", "text": "a"}\n')
    assert names(instance_images(config_of(tmp_path))) == {"x.png": "x_mask.png"}


# reading


def drawn():
    """L, black and white with a gray part."""
    mask = Image.new("L", (40, 24))
    mask.paste(255, (8, 4, 24, 20))
    mask.paste(128, (24, 4, 32, 20))
    return mask


def as_palette(mask):
    return mask.convert("RGB").quantize(8)


def as_16_bit(mask):
    return Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)


def as_paint_on_transparent(mask):
    image = Image.new("RGBA", mask.size, "white")
    image.putalpha(mask)
    return image


@pytest.mark.parametrize(
    "convert",
    [
        lambda mask: mask,
        lambda mask: mask.convert("RGB"),
        lambda mask: mask.convert("RGBA"),
        lambda mask: mask.convert("LA"),
        as_palette,
        as_16_bit,
        as_paint_on_transparent,
    ],
    ids=["L", "RGB", "RGBA", "LA", "palette", "16 bits", "white paint"],
)
def test_a_mask_of_any_mode_is_the_same_mask(convert, tmp_path):
    convert(drawn()).save(tmp_path / "m.png")
    found = decode(tmp_path / "m.png", gray_of)[0]
    assert found.mode == "L"
    assert np.abs(np.asarray(found, int) - np.asarray(drawn(), int)).max() <= 1


def test_a_mask_of_one_bit_is_black_and_white(tmp_path):
    drawn().point(lambda v: 255 * (v > 200)).convert("1").save(tmp_path / "m.png")
    assert decode(tmp_path / "m.png", gray_of)[0].getcolors() == [(40 * 24 - 256, 0), (256, 255)]


def test_the_alpha_of_a_palette_is_read(tmp_path):
    image = drawn().point(lambda v: 255 * (v > 200)).convert("P")
    image.save(tmp_path / "p.png", transparency=0)
    alpha = decode(tmp_path / "p.png", alpha_of)[0]
    assert alpha.getcolors() == [(40 * 24 - 256, 0), (256, 255)]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((64, 64), (128, 128), True),
        ((2000, 3000), (341, 512), True),
        ((341, 512), (2000, 3000), True),
        ((64, 96), (96, 64), False),
        ((2000, 3000), (350, 512), False),
        ((64, 64), (64, 66), False),
    ],
)
def test_the_aspect_ratio_is_the_same_up_to_a_pixel(first, second, same):
    assert same_aspect(first, second) is same_aspect(second, first) is same


def test_masks_are_turned_by_the_exif_of_their_images(tmp_path):
    """A photo whose EXIF turns it, with an upright mask, and with a mask that is turned as the photo is."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lying = Image.new("RGB", (96, 64))
    lying.paste("white", (0, 0, 48, 32))
    lying.save(tmp_path / "a.png", exif=exif)
    open_image(tmp_path / "a.png").convert("L").save(tmp_path / "a-masklabel.png")
    lying.convert("L").save(tmp_path / "b-masklabel.png", exif=exif)
    lying.save(tmp_path / "b.png", exif=exif)
    first, second = instance_images(config_of(tmp_path))
    assert first.size == second.size == (96, 64)
    assert first.mask.open().tobytes() == second.mask.open().tobytes() == first.open().convert("L").tobytes()


# what is refused


def test_bad_masks_are_named(tmp_path):
    photo(tmp_path / "wide.png", (96, 64))
    box(tmp_path / "wide_mask.png")
    photo(tmp_path / "black.png", seed=1)
    box(tmp_path / "black_mask.png", value=3)
    photo(tmp_path / "broken.png", seed=2)
    (tmp_path / "broken_mask.png").write_bytes(b"nothing")
    photo(tmp_path / "good.png", seed=3)
    box(tmp_path / "good_mask.png")
    image = Image.new("RGBA", (64, 64), (9, 9, 9, 20))
    image.save(tmp_path / "clear.png")
    with pytest.raises(ConfigError) as error:
        instance_images(config_of(tmp_path))
    text = str(error.value)
    assert error.value.option == "masked_loss"
    assert "wide_mask.png (a mask of 64 x 64 pixels, and its image wide.png has 96 x 64 pixels" in text
    assert "black_mask.png (a mask that selects nothing: its brightest value is 3 of 255" in text
    assert "broken_mask.png (not an image, despite its name)" in text
    assert "clear.png (an alpha channel that selects nothing: its brightest value is 20 of 255" in text
    assert "good" not in text
    found = instance_images(config_of(tmp_path, on_bad_image="skip"))
    assert names(found) == {"good.png": "good_mask.png"}


def test_no_mask_at_all_is_refused(tmp_path):
    photo(tmp_path / "photos" / "a.png")
    with pytest.raises(ConfigError, match=r"no image has one: put NAME-masklabel\.png") as error:
        instance_images(config_of(tmp_path / "photos"))
    assert error.value.option == "masked_loss"
    box(tmp_path / "masks" / "b.png")
    with pytest.raises(ConfigError, match=r"masks holds no mask for any image of .*photos") as error:
        instance_images(config_of(tmp_path / "photos", mask_dir=str(tmp_path / "masks")))
    assert error.value.option == "mask_dir"
    with pytest.raises(ConfigError, match="is the folder of the images: drop it"):
        instance_images(config_of(tmp_path / "photos", mask_dir=str(tmp_path / "photos")))
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        instance_images(config_of(tmp_path / "photos", mask_dir=str(tmp_path / "nowhere")))
    box(tmp_path / "masks" / "a.png")
    box(tmp_path / "masks" / "a.bmp")
    with pytest.raises(ConfigError, match=r"a\.bmp and a\.png are masks of one image: remove one"):
        instance_images(config_of(tmp_path / "photos", mask_dir=str(tmp_path / "masks")))


def test_options_of_masks_that_contradict_others_are_refused():
    with pytest.raises(
        ConfigError, match="--masked_loss needs masks, and those of --dataset_name are not read"
    ):
        TrainConfig(masked_loss=True, dataset_name="x", instance_prompt="y")
    with pytest.raises(ConfigError, match="--mask_dir has no effect here: it needs --masked_loss"):
        TrainConfig(mask_dir="masks")
    with pytest.raises(ConfigError, match="give each entry of --concepts its mask_folder"):
        TrainConfig(masked_loss=True, mask_dir="masks", concepts="c.json")
    with pytest.raises(ConfigError, match="--mask_background_weight has no effect here"):
        TrainConfig(mask_background_weight=0.5)
    with pytest.raises(ConfigError, match=r"--mask_background_weight is 1\.5; it must be at most 1"):
        TrainConfig(masked_loss=True, mask_background_weight=1.5)


# crops


@pytest.mark.parametrize("center_crop", [True, False])
@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize(
    ("size", "shape"), [((100, 150), (64, 64)), ((150, 90), (80, 48)), ((40, 64), (64, 64))]
)
def test_a_mask_is_cropped_exactly_as_its_image(size, shape, center_crop, mirrored):
    """The image is its own mask: their crops, averaged over the cells of the latents, are equal."""
    random = np.random.default_rng(1)
    gray = Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))
    crops = crops_of(gray.convert("RGB"), shape, center_crop, mirrored, "box", 7)
    expected = torch.stack([(pixels[0] + 1) / 2 for pixels, _ in crops])
    expected = expected.unflatten(1, (-1, 8)).unflatten(3, (-1, 8)).mean((2, 4))
    found = mask_crops_of(gray, size, shape, center_crop, mirrored, 7, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(found) == (1 if center_crop else len(crops))


def test_a_mask_of_another_size_is_rescaled_to_its_image():
    large = Image.new("L", (256, 256))
    large.paste(255, (64, 0, 192, 256))
    whole = mask_crops_of(large, (64, 64), (64, 64), True, False, 0, 8)
    assert torch.equal(whole[0], torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0]).expand(8, 8))
    small = large.resize((32, 32), Image.Resampling.BOX)
    assert torch.equal(mask_crops_of(small, (64, 64), (64, 64), True, False, 0, 8), whole)


# the cache and the batches


@pytest.fixture(scope="module")
def vae():
    return load_sdxl().vae


def batches_of(images, vae, cache, config):
    return plan_batches(images, [], vae, config, Cache(cache), Accelerator(cpu=True))


def test_the_masks_of_examples_are_those_of_their_crops(tmp_path, vae):
    """Each example's mask is white where its latents decode to white."""
    for number, left in enumerate((0, 60)):
        image = Image.new("RGB", (120, 64), "black")
        image.paste("white", (left, 0, left + 60, 64))
        image.save(tmp_path / f"{number}.png")
        image.convert("L").save(tmp_path / f"{number}_mask.png")
    for options in (dict(random_flip=True), dict(use_aspect_ratio_buckets=True, random_flip=True)):
        config = config_of(tmp_path, **options)
        images = instance_images(config)
        batches = batches_of(images, vae, tmp_path / "cache", config)
        seen = set()
        for example in examples_at(batches, range(32)):
            assert example.mask.shape == example.moments.shape[-2:]
            with torch.no_grad():
                mean = example.moments[:1] / vae.config.scaling_factor
                decoded = vae.decode(mean).sample[0].mean(0)
            cells = (decoded / 2 + 0.5).unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).mean((1, 3))
            assert (cells - example.mask).abs().mean() < 0.12
            seen.add(example.mask.numpy().tobytes())
        assert len(seen) >= 4


def test_crops_that_show_nothing_of_the_mask_are_not_used(tmp_path, vae):
    photo(tmp_path / "a.bmp", (256, 64), seed=1)  # the bytes of its file choose the crops
    box(tmp_path / "a_mask.png", (0, 0, 128, 64), (256, 64))
    config = config_of(tmp_path, random_flip=True)
    (image,) = instance_images(config)
    crops = mask_crops_of(image.mask.open(), (64, 256), (64, 64), False, False, image.crop_key, 8)
    shown = sum(bool(crop.max() > 0) for crop in crops)
    assert 0 < shown < len(crops)
    examples = examples_at(batches_of([image], vae, tmp_path / "cache", config), range(64))
    assert all(example.mask.max() > 0 for example in examples)
    assert len({example.moments.numpy().tobytes() for example in examples}) == 2 * shown


def test_a_mask_that_no_crop_shows_is_refused(tmp_path, vae):
    photo(tmp_path / "a.png", (256, 64))
    box(tmp_path / "a_mask.png", (0, 0, 24, 64), (256, 64))
    config = config_of(tmp_path, center_crop=True)
    with pytest.raises(ConfigError, match=r"no crop of a\.png shows what its mask a_mask\.png selects: use"):
        batches_of(instance_images(config), vae, tmp_path / "cache", config)
    config = dataclasses.replace(config, use_aspect_ratio_buckets=True)
    assert batches_of(instance_images(config), vae, tmp_path / "cache", config)


def test_the_keys_know_the_masks_and_latents_stay_as_they_are(folder, vae, tmp_path):
    plain, masked = config_of(folder, masked_loss=False), config_of(folder)
    before = batches_of(instance_images(plain), vae, tmp_path / "cache", plain)
    latents = {path.name for path in (tmp_path / "cache" / "latents").rglob("*.safetensors")}
    after = batches_of(instance_images(masked), vae, tmp_path / "cache", masked)
    assert {path.name for path in (tmp_path / "cache" / "latents").rglob("*.safetensors")} == latents
    assert [c.keys for c in after.instance[0]] == [c.keys for c in before.instance[0]]
    assert [bool(c.mask_keys) for c in after.instance[0]] == [True, True, True, False]
    images = instance_images(masked)
    keys = {mask_key(image, (64, 64), False, True, 8) for image in images if image.mask}
    assert len(keys) == 3
    box(folder / "a-masklabel.png", (0, 0, 8, 8))
    changed = instance_images(masked)
    assert mask_key(changed[0], (64, 64), False, True, 8) not in keys
    assert mask_key(changed[1], (64, 64), False, True, 8) in keys
    assert content_of(changed) != content_of(images)
    assert content_of(changed, masks=False) == content_of(images, masks=False)
    assert content_of(find_images(folder, "a photo of sks dog")) == content_of(images, masks=False)


def test_equal_images_with_different_masks_keep_their_own(tmp_path, vae):
    photo(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    box(tmp_path / "a_mask.png", (0, 0, 32, 64))
    box(tmp_path / "b_mask.png", (32, 0, 64, 64))
    config = config_of(tmp_path)
    batches = batches_of(instance_images(config), vae, tmp_path / "cache", config)
    found = {example.path.name: example.mask for example in examples_at(batches, range(8))}
    assert torch.equal(found["a.png"], 1 - found["b.png"])


def test_the_plan_counts_masks(folder):
    assert "\nmasks: 3 of 4 images\n" in plan(config_of(folder)).text()
    assert "\nmasks:" not in plan(config_of(folder, masked_loss=False)).text()


ENDINGS = ["-masklabel", "_masklabel", ".masklabel", "_mask", "-mask", ".mask", "_masks", "_alpha", "-matte"]
OTHERS = ["A_MASK", "mask_a", "mask-a", "Mask_A", "a.png_mask", "a.png.mask", "a.jpg-masklabel"]


@pytest.mark.parametrize("name", [*(f"a{ending}" for ending in ENDINGS), *OTHERS])
def test_every_name_of_a_mask_is_one_and_no_image(tmp_path, name):
    photo(tmp_path / "a.png")
    box(tmp_path / f"{name}.png")
    found = instance_images(config_of(tmp_path))
    assert names(found) == {"a.png": f"{name}.png"}
    assert [image.path.name for image in instance_images(config_of(tmp_path, masked_loss=False))] == ["a.png"]


def test_what_is_named_as_a_mask_of_nothing_is_an_image(tmp_path):
    for name in ("gas_mask.png", "mask_1.png", "alpha.png", "photo.v2.png", "x_alphabet.png"):
        photo(tmp_path / name)
    box(tmp_path / "photo.v2_mask.png")
    found = names(instance_images(config_of(tmp_path)))
    assert found.pop("photo.v2.png") == "photo.v2_mask.png"
    assert found == dict.fromkeys(("alpha.png", "gas_mask.png", "mask_1.png", "x_alphabet.png"))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_match_in_both_spellings(tmp_path, forms):
    """macOS spells them as a letter and an accent."""
    name, other = (unicodedata.normalize(form, "caf\u00e9") for form in forms)
    photo(tmp_path / f"{name}.png")
    photo(tmp_path / f"{name}2.png")
    box(tmp_path / f"{other}_mask.png")
    (tmp_path / f"{other}.txt").write_text("a dog")
    row = dict(file_name=f"{other}2.png", text="a cat")
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    found = instance_images(config_of(tmp_path))
    assert names(found) == {f"{name}.png": f"{other}_mask.png", f"{name}2.png": None}
    assert {image.caption for image in found} == {"a dog", "a cat"}
    assert {caption_files.caption_of(image.path) for image in found} == {"a dog", "a cat"}


def test_masks_of_numbered_folders_in_one_folder_are_refused(tmp_path):
    photo(tmp_path / "img" / "2_sks dog" / "x.png")
    box(tmp_path / "masks" / "x.png")
    with pytest.raises(ConfigError, match="masks holds masks itself: move those of 2_sks dog to its"):
        instance_images(config_of(tmp_path / "img", mask_dir=str(tmp_path / "masks")))
