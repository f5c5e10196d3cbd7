"""Pictures and captions as people have them, good and bad."""

import pytest
import torch
from PIL import Image, ImageOps

from gralora_diffusion.config import ConfigError, TrainConfig
from gralora_diffusion.data import EXAMPLE, find_pictures
from gralora_diffusion.pictures import cuts, open_picture, to_pixels
from gralora_diffusion.loss import generator
from gralora_diffusion.sdxl import load_sdxl


def picture(path, size=(80, 64), colour=(200, 30, 30), mode="RGB", **options):
    Image.new(mode, size, colour).save(path, **options)


def test_captions_stand_beside_the_pictures(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.jpg")
    (tmp_path / "a.txt").write_text("\ufeffa sks dog\n on a lawn ", encoding="utf-8")
    found = find_pictures(tmp_path, "a photo of sks dog")
    assert [(p.path.name, p.caption) for p in found] == [("a.png", "a sks dog on a lawn"), ("b.jpg", "a photo of sks dog")]
    assert len(find_pictures(EXAMPLE, "x")) == 6


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.png", b"", "empty file"),
        ("bad.png", b"<html>not found</html>", "not a picture"),
        ("bad.jpg", b"some text", "not a picture"),
        ("notes.txt", b"buy milk", "no picture named notes"),
        ("good.txt", b"\xff\xfe\x00bad", "not UTF-8"),
        ("good.txt", b"  \n", "good.txt is empty"),
        ("model.zip", b"PK\x03\x04", "not a picture"),
    ],
)
def test_every_bad_file_is_named_with_its_reason(tmp_path, name, content, words):
    picture(tmp_path / "good.png")
    (tmp_path / name).write_bytes(content)
    (tmp_path / "worse.gif").write_bytes(b"GIF89a")
    with pytest.raises(ConfigError) as caught:
        find_pictures(tmp_path, "x")
    assert words in str(caught.value)
    assert "worse.gif" in str(caught.value)
    assert "2 file(s)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_is_refused(tmp_path):
    noise = torch.randint(0, 256, (90, 90, 3), dtype=torch.uint8).numpy()
    for name in ("a.jpg", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="2 file"):
        find_pictures(tmp_path, "x")


def test_no_folder_and_no_pictures(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        find_pictures(tmp_path / "nowhere", "x")
    with pytest.raises(ConfigError, match="holds no pictures"):
        find_pictures(tmp_path, "x")


def test_a_bomb_is_refused_from_its_header(tmp_path):
    picture(tmp_path / "bomb.png", (12000, 12000), 1, "1")
    with pytest.raises(ConfigError, match="more than the limit"):
        find_pictures(tmp_path, "x")


def test_a_thin_picture_is_refused(tmp_path):
    picture(tmp_path / "thin.png", (4, 20000))
    with pytest.raises(ConfigError, match="too thin"):
        find_pictures(tmp_path, "x")


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(ConfigError, match="not a picture"):
        find_pictures(tmp_path, "x")


def test_captions_are_found_and_missed(tmp_path):
    picture(tmp_path / "A.png")
    (tmp_path / "A.TXT").write_text("a sks dog")
    assert find_pictures(tmp_path, None)[0].caption == "a sks dog"
    picture(tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"b\.png \(no caption"):
        find_pictures(tmp_path, None)


def test_modes(tmp_path):
    picture(tmp_path / "rgba.png", colour=(255, 0, 0, 0), mode="RGBA")
    assert open_picture(tmp_path / "rgba.png").getpixel((0, 0)) == (255, 255, 255)  # transparency on white
    Image.new("I;16", (64, 64), 32768).save(tmp_path / "deep.png")
    assert abs(open_picture(tmp_path / "deep.png").getpixel((0, 0))[0] - 127) <= 1
    picture(tmp_path / "cmyk.jpg", colour=(0, 255, 255, 0), mode="CMYK", quality=100)
    assert open_picture(tmp_path / "cmyk.jpg").getpixel((0, 0)) == pytest.approx((254, 0, 0), abs=6)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "turned.jpg", (80, 40), exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (40, 80)
    picture(tmp_path / "grey.png", colour=90, mode="L")
    assert open_picture(tmp_path / "grey.png").getpixel((0, 0)) == (90, 90, 90)


def test_cuts_say_where_they_come_from():
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (0, 0, 100, 100))
    [(pixels, ids)] = list(cuts(image, 64, True, False, generator(0)))
    assert pixels.shape == (3, 64, 64)
    assert ids.tolist() == [100, 200, 0, 32, 64, 64]  # original height, width; top, left; target height, width
    assert ids.dtype == torch.float32
    assert pixels[0, 0, 0] > 0.9
    assert pixels[0, 0, -1] < -0.9
    places = [tuple(ids[2:4].tolist()) for _, ids in cuts(image, 64, False, False, generator(0))]
    assert len(set(places)) > 1
    assert all(top == 0 and 0 <= left <= 64 for top, left in places)
    both = list(cuts(image, 64, False, True, generator(0)))
    mirror = list(cuts(ImageOps.mirror(image), 64, False, False, generator(0)))
    for (pixels, ids), (mirrored, mirrored_ids) in zip(both[::2], both[1::2], strict=True):
        assert torch.equal(pixels.flip(-1), mirrored)
        assert ids[3] + mirrored_ids[3] == 64  # what is cut off on the left is cut off on the right
    left = int(both[1][1][3])
    whole = ImageOps.mirror(image).resize((128, 64), Image.Resampling.LANCZOS)
    expected = to_pixels(whole.crop((left, 0, left + 64, 64)))
    assert len(mirror) == 4
    assert (expected - both[1][0]).abs().max() < 0.02
    assert len(list(cuts(Image.new("RGB", (64, 64)), 64, False, False, generator(0)))) == 1


def test_the_series_is_a_function_of_seed_and_position():
    records = [[f"{i}{c}" for c in "ab"] for i in range(5)]
    series = choose(records, range(20), seed=1)
    assert series[7:13] == choose(records, range(7, 13), seed=1)
    assert series != choose(records, range(20), seed=2)
    for epoch in range(4):  # every picture once an epoch
        assert sorted(r[0] for r in series[epoch * 5 : epoch * 5 + 5]) == list("01234")
    assert {r[1] for r in series} == {"a", "b"}


def test_latents_are_the_vaes_own():
    pipeline = load_sdxl()
    pictures = find_pictures(EXAMPLE, "x")[:1]
    [[record]] = encode_pictures(pictures, pipeline.vae, TrainConfig(center_crop=True), 64)
    pixels = next(cuts(open_picture(pictures[0].path), 64, True, False, generator(0)))[0]
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels[None]).latent_dist
    torch.testing.assert_close(record.moments[0], posterior.mean[0] * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(record.moments[1], posterior.std[0] * pipeline.vae.config.scaling_factor)
