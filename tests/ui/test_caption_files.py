"""Captions beside images are read as training reads them, and edits keep all else."""

import json

import pytest
from PIL import Image

from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets

JSON = {"caption": "a dog", "tags": ["grass", "sun"], "score": 3}


@pytest.fixture
def folder(workspace):
    """A dataset `mine` with the image a.png."""
    folder = workspace.images / image_sets.create(workspace, "mine")
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    return folder


def test_an_edit_keeps_the_other_lines(workspace, folder):
    text = folder / "a.txt"
    text.write_text("\none\r\ntwo, cat\nthree\n")
    image_sets.add_prefix(workspace, "mine", "x,")
    assert text.read_text() == "\nx, one\ntwo, cat\nthree\n"
    assert image_sets.replace_in_captions(workspace, "mine", "one", "cat") == 1
    image_sets.save_captions(workspace, "mine", {"a.png": "x, cats"})
    assert text.read_text() == "\nx, cats\ntwo, cat\nthree\n"
    with pytest.raises(
        ConfigError,
        match=r"a\.txt has 3 lines; without the first one, the next would be the caption of a\.png",
    ):
        image_sets.save_captions(workspace, "mine", {"a.png": ""})
    assert text.read_text() == "\nx, cats\ntwo, cat\nthree\n"


def test_nothing_is_written_where_one_caption_is_refused(workspace, folder):
    Image.new("RGB", (64, 64)).save(folder / "b.png")
    (folder / "a.txt").write_text("a dog\n")
    (folder / "b.txt").write_text("y" * 2000)
    with pytest.raises(ConfigError, match=r"b\.png has 2003 characters"):
        image_sets.add_prefix(workspace, "mine", "x,")
    assert (folder / "a.txt").read_text() == "a dog\n"


@pytest.mark.parametrize(
    ("file", "content", "caption"),
    [
        ("a.caption", "a dog\nline two\n", "a dog"),
        ("a.TXT", "a dog\n", "a dog"),
        ("a.json", json.dumps(JSON), "a dog, grass, sun"),
        ("a.json", '{"text": "a dog", "tags": "sun"}', "a dog, sun"),
    ],
)
def test_the_file_that_counts_in_training_is_shown_and_edited(workspace, folder, file, content, caption):
    (folder / file).write_text(content)
    assert image_sets.caption_of(folder / "a.png") == caption
    assert not [found for found in image_sets.check_set(workspace, "mine", 64) if "caption" in found[1]]
    image_sets.save_captions(workspace, "mine", {"a.png": f"x, {caption}"})
    assert {path.name for path in folder.iterdir()} == {"a.png", file}
    (image,) = find_images(folder, None)
    assert image.caption == f"x, {caption}"
    image_sets.copy(workspace, "mine", "copied")
    copied = workspace.images / "copied" / file
    assert copied.read_bytes() == (folder / file).read_bytes()


def test_an_edit_of_json_keeps_the_other_keys(workspace, folder):
    file = folder / "a.json"
    file.write_text(json.dumps(JSON))
    image_sets.save_captions(workspace, "mine", {"a.png": "a cat, grass, sun"})
    assert json.loads(file.read_text()) == JSON | {"caption": "a cat"}
    image_sets.save_captions(workspace, "mine", {"a.png": "a cat, moon"})
    assert json.loads(file.read_text()) == {"caption": "a cat, moon", "score": 3}
    image_sets.save_captions(workspace, "mine", {"a.png": ""})
    assert json.loads(file.read_text()) == {"caption": "", "score": 3}
    assert image_sets.caption_of(folder / "a.png") == ""


def test_an_empty_caption_does_not_uncover_another(workspace, folder):
    (folder / "a.txt").write_text("a dog\n")
    (folder / "a.caption").write_text("a dog for other trainers\n")
    with pytest.raises(
        ConfigError, match=r"without the caption in a\.txt, a\.caption would be the caption of a\.png"
    ):
        image_sets.save_captions(workspace, "mine", {"a.png": ""})
    (folder / "a.caption").write_text("\n")
    image_sets.save_captions(workspace, "mine", {"a.png": ""})
    assert {path.name for path in folder.iterdir()} == {"a.png", "a.caption"}
