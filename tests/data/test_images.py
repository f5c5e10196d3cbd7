"""Image files of every kind, good and bad; crops_of and buckets."""

import io
import os
import tracemalloc

import numpy
import pytest
import torch
from bad_images import BAD, NOISE, encoded
from PIL import Image, ImageOps, PngImagePlugin

from gralora_diffusion.data import images
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.images import ORIENTATION, bucket_of, buckets, crops_of, open_image, to_pixels
from gralora_diffusion.options import ConfigError


@pytest.mark.parametrize(("name", "content", "words"), BAD.values(), ids=BAD)
def test_every_bad_file_is_named_with_its_reason(tmp_path, name, content, words):
    """All at once, in one line, with little memory, and without touching a file."""
    Image.fromarray(NOISE).save(tmp_path / "good.png")
    (tmp_path / name).write_bytes(content)
    (tmp_path / "worse.gif").write_bytes(b"GIF89a")
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    tracemalloc.start()
    with pytest.raises(ConfigError) as caught:
        find_images(tmp_path, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = str(caught.value)
    told = {
        file: reason
        for part in said.partition("skip: ")[2].split("; ")
        for file in part.partition(" (")[0].split(", ")
        for reason in [part]
    }
    assert words in told["good.png" if "good" in name else name]
    assert "worse.gif" in said
    assert "2 files" in said
    assert said.isprintable()
    assert peak < 50e6
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert [p.path.name for p in find_images(tmp_path, "x", skip=True, at_least=0)] == ["good.png"] * (
        "good" not in name
    )


@pytest.mark.parametrize(
    "kind",
    ["pipe", "symlink loop", "dangling symlink", "pipe as caption", "folder as caption", "folder as image"],
)
def test_what_is_no_file_does_not_hang(tmp_path, kind):
    Image.fromarray(NOISE).save(tmp_path / "good.png")
    path = tmp_path / {"pipe as caption": "good.txt", "folder as caption": "good.txt"}.get(kind, "bad.png")
    if "pipe" in kind:
        os.mkfifo(path)
    elif "folder" in kind:
        path.mkdir()
    else:
        path.symlink_to(path if "loop" in kind else tmp_path / "nowhere")
    if "folder" in kind:
        assert len(find_images(tmp_path, "x")) == 1  # a subfolder, which is said
        return
    with pytest.raises(ConfigError) as caught:
        find_images(tmp_path, "x")
    words = {
        "pipe": "a pipe",
        "symlink loop": "symbolic links",
        "dangling symlink": "No such file",
        "pipe as caption": "a pipe",
    }[kind]
    assert words in str(caught.value)


def opened(data: bytes) -> Image.Image:
    return open_image(io.BytesIO(data))


def test_modes():
    assert opened(encoded("PNG", Image.new("RGBA", (64, 64), (255, 0, 0, 0)))).getpixel((0, 0)) == (
        255,
        255,
        255,
    )  # transparency on white
    half = opened(encoded("PNG", Image.new("LA", (64, 64), (0, 128)))).getpixel((0, 0))
    assert abs(half[0] - 127) <= 1
    assert abs(opened(encoded("PNG", Image.new("I;16", (64, 64), 32768))).getpixel((0, 0))[0] - 127) <= 1
    ramp = Image.fromarray(numpy.arange(65536, dtype=numpy.uint16).reshape(256, 256))
    assert abs(numpy.asarray(opened(encoded("PNG", ramp)), dtype=float).mean() - 127) <= 1
    assert opened(encoded("JPEG", Image.new("CMYK", (64, 64), (0, 255, 255, 0)), quality=100)).getpixel(
        (0, 0)
    ) == pytest.approx((254, 0, 0), abs=6)
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert opened(encoded("GIF", palette)).getpixel((0, 0)) == (0, 0, 255)
    assert opened(encoded("PNG", palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert opened(encoded("PNG", Image.new("L", (64, 64), 90))).getpixel((0, 0)) == (90, 90, 90)
    assert opened(encoded("PNG", Image.new("1", (64, 64), 1))).getpixel((0, 0)) == (255, 255, 255)
    mpo = encoded(
        "MPO",
        Image.new("RGB", (64, 64), "red"),
        save_all=True,
        append_images=[Image.new("RGB", (64, 64), "blue")],
    )
    assert opened(mpo).getpixel((0, 0))[0] > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation):
    image = Image.new("RGB", (80, 40))
    image.paste("red", (0, 0, 20, 20))  # one corner tells all eight apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("PNG", image, exif=exif)
    assert opened(data).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()
    assert opened(data).size == ((80, 40) if orientation < 5 else (40, 80))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
    ],
)
def test_damaged_exif_does_not_spoil_the_image(tmp_path, exif):
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    assert find_images(tmp_path, "x")[0].size == (90, 90)


def test_the_first_frame_is_used_and_said(tmp_path, capsys):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    for name in ("a.gif", "b.webp", "c.png", "d.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "e.gif")
    for found in find_images(tmp_path, "x"):
        red, _, blue = found.open().getpixel((0, 0))
        assert red > 200 > 50 > blue
    said = capsys.readouterr().err
    assert all(
        f"{name} has several frames or pages, and the first is used" in said
        for name in ("a.gif", "b.webp", "c.png", "d.tif")
    )
    assert "e.gif" not in said


def test_text_and_color_profiles_of_honest_size_are_read():
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * 10_000, zip=True)
    assert opened(encoded("PNG", pnginfo=info)).size == (90, 90)


def cut(image, shape=(64, 64), center_crop=False, mirrored=False, key=5):
    return crops_of(image, shape, center_crop, mirrored, "lanczos", key)


def test_cuts_say_where_they_come_from():
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (0, 0, 100, 100))
    [(pixels, ids)] = cut(image, center_crop=True)
    assert pixels.shape == (3, 64, 64)
    assert ids.tolist() == [
        100,
        200,
        0,
        32,
        64,
        64,
    ]  # original height, width; top, left; target height, width
    assert ids.dtype == torch.float32
    assert pixels[0, 0, 0] > 0.9
    assert pixels[0, 0, -1] < -0.9
    places = [tuple(ids[2:4].tolist()) for _, ids in cut(image)]
    assert 1 < len(places) == len(set(places)) <= 4
    assert all(top == 0 and 0 <= left <= 64 for top, left in places)
    assert places != [tuple(ids[2:4].tolist()) for _, ids in cut(image, key=6)]
    assert len(cut(Image.new("RGB", (64, 64)))) == 1


def test_a_mirrored_cut_is_a_cut_of_the_mirrored_image():
    image = Image.fromarray(numpy.repeat(NOISE, 2, 1))
    whole = to_pixels(ImageOps.mirror(image).resize((128, 64), Image.Resampling.LANCZOS))
    for (pixels, ids), (mirrored, mirrored_ids) in zip(cut(image), cut(image, mirrored=True), strict=True):
        assert torch.equal(pixels.flip(-1), mirrored)
        left = int(mirrored_ids[3])
        assert ids[3] + left == 64  # what is cut off on the left is cut off on the right
        assert (whole[:, :, left : left + 64] - mirrored).abs().max() < 0.02


def test_buckets_are_sdxls():
    shapes = buckets(1024)
    assert {
        (1024, 1024),
        (832, 1216),
        (1216, 832),
        (768, 1344),
        (640, 1536),
        (512, 2048),
        (2048, 512),
    } <= set(shapes)
    assert len(shapes) == len(set(shapes))
    assert all(
        h % 64 == w % 64 == 0 and 0.85 * 1024**2 < h * w <= 1024**2 and 1 / 4 <= h / w <= 4 for h, w in shapes
    )
    assert all(h % 8 == w % 8 == 0 and h * w <= 64**2 for h, w in buckets(64))
    assert bucket_of((1000, 1500), 1024, True) == (832, 1216)
    assert bucket_of((1500, 1000), 1024, True) == (1216, 832)
    assert bucket_of((700, 710), 1024, True) == (1024, 1024)
    assert bucket_of((100, 900), 1024, True) == (512, 2048)
    assert bucket_of((1000, 1500), 1024, False) == (1024, 1024)


def test_a_bucket_keeps_what_a_square_would_cut_off():
    image = Image.new("RGB", (1500, 1000))
    [(pixels, ids)] = cut(image, bucket_of((1000, 1500), 1024, True), center_crop=True)
    assert pixels.shape == (3, 832, 1216)
    assert ids.tolist() == [1000, 1500, 0, 16, 832, 1216]


@pytest.mark.parametrize(
    "mode", ["nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
)
def test_interpolations_are_pillows(mode):
    image = Image.fromarray(NOISE)
    [(pixels, _)] = crops_of(image, (48, 48), True, False, mode, 0)
    assert torch.equal(
        pixels, to_pixels(image.resize((48, 48), Image.Resampling[mode.split("_")[0].upper()]))
    )


def test_formats_by_other_names_are_read(tmp_path):
    for name, kind in {
        "a.jfif": "JPEG",
        "b.jpe": "JPEG",
        "c.dib": "DIB",
        "d.apng": "PNG",
        "e.avif": "AVIF",
    }.items():
        Image.fromarray(NOISE).save(tmp_path / name, kind)
    assert len(find_images(tmp_path, "x")) == 5


def test_heic_is_read_upright_where_its_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    image = Image.new("RGB", (96, 64), "blue")
    image.paste("red", (0, 0, 48, 64))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was held upright: turned clockwise, the left side is on top
    image.info["exif"] = exif.tobytes()  # the encoder stores it as a rotation, as phones do
    image.save(tmp_path / "a.HEIC", "HEIF", quality=90)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.HEIC").read_bytes())
    for found in find_images(tmp_path, "x"):
        opened = found.open()
        assert found.size == (96, 64) == (opened.height, opened.width)
        assert opened.getpixel((32, 20))[0] > 200 > 50 > opened.getpixel((32, 80))[0]


@pytest.mark.parametrize("name", ["a.heic", "a.HIF", "a.jpg"])
def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setattr(images, "add_heif", lambda: False)
    monkeypatch.setattr(images, "FORMATS", ("PNG", "JPEG"))
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(
        ConfigError, match=r"HEIC, which needs a package: pip install 'gralora-diffusion\[heic\]'"
    ):
        find_images(tmp_path, "x")
