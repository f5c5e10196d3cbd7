"""Sets of images: uploads, captions, checks."""

import pytest
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets
from gralora_diffusion.ui.workspace import BUNDLED


def image(path, size=(80, 60), mode="RGB", **kwargs):
    Image.new(mode, size, 200 if mode in ("L", "I;16") else None or 0).save(path, **kwargs)
    return path


def test_every_upload_is_judged_by_itself(workspace, tmp_path):
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[274] = 6
    good = [
        image(tmp_path / "plain.png"),
        image(tmp_path / "cmyk.jpg", mode="CMYK"),
        image(tmp_path / "deep.png", mode="I;16"),
    ]
    good += [
        image(tmp_path / "turned.jpg", exif=turned),
        tmp_path / "moving.gif",
        image(tmp_path / "=cmd ü.png"),
    ]
    (tmp_path / "page.png").write_text("<html><script>alert(1)</script></html>")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:60])
    (tmp_path / "drawing.svg").write_text("<svg onload='alert(1)'/>")
    (tmp_path / "bundle.zip").write_bytes(b"PK\3\4")
    (tmp_path / "empty.png").touch()
    bad = [tmp_path / n for n in ("page.png", "cut.png", "drawing.svg", "bundle.zip", "empty.png")]
    bad.append(image(tmp_path / "huge.png", (20_000, 20_000), "1"))
    name = image_sets.create(workspace, "mine")
    added, notes = image_sets.add(workspace, name, [*good, *bad])
    assert added == len(good)
    assert len(image_sets.images_of(workspace.images / name)) == len(good)
    assert sorted(n.split(" was left out")[0] for n in notes if "left out" in n) == sorted(
        p.name for p in bad
    )
    assert any(n.startswith("moving.gif: it is animated") for n in notes)
    assert all(p.name.isascii() for p in (workspace.images / name).iterdir())
    found = image_sets.check_set(workspace, name, 64)
    assert any(what.startswith("80 x 60 pixels, less than 64") for _, what, _ in found)
    assert all(len(line) == 3 and line[2] for line in found)


def test_captions_are_saved_and_foreign_names_refused(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_sets.add(workspace, name, [image(tmp_path / "a.png"), image(tmp_path / "b.png", (64, 64))])
    assert image_sets.save_captions(workspace, name, {"a.png": " a photo\nof sks dog ", "b.png": ""}) == [
        "a.png"
    ]
    assert (workspace.images / name / "a.txt").read_text() == "a photo of sks dog\n"
    assert not (workspace.images / name / "b.txt").exists()
    for file in ("../../x.png", "/etc/passwd", "c.png"):
        with pytest.raises(ConfigError, match="no image named"):
            image_sets.save_captions(workspace, name, {file: "x"})
    with pytest.raises(ConfigError, match="cannot be changed"):
        image_sets.save_captions(workspace, BUNDLED, {"00.png": "x"})
    assert image_sets.copy(workspace, BUNDLED, "copied") == "copied"
    assert len(image_sets.images_of(workspace.images / "copied")) == 6
