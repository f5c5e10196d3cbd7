"""Images and captions that cannot be used."""

import os
import shutil

import pytest
from bad_images import BAD
from PIL import Image
from refusals import assert_refused, train_with

from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.data.image_folder import find_images

PNG = (EXAMPLE / "00.png").read_bytes()


def train_on(*entries, prompt="a photo of sks dog", **options):
    """A run on a folder with a good image and these entries: (name, bytes), or a function of the folder."""

    def start(tmp, _):
        images = tmp / "images"
        images.mkdir()
        Image.new("RGB", (80, 64), "red").save(images / "good.png")
        for entry in entries:
            if callable(entry):
                entry(images)
            else:
                name, content = entry
                (images / name).write_bytes(content)
        train_with(instance_data_dir="{tmp}/images", instance_prompt=prompt, **options)(tmp, None)

    return start


def vanished(tmp, _):
    (tmp / "images").mkdir()
    shutil.copy(EXAMPLE / "00.png", tmp / "images" / "a.png")
    (found,) = find_images(tmp / "images", "x")
    (tmp / "images" / "a.png").unlink()
    found.open()


ROWS = {
    **{name: (train_on((file_name, content)), words) for name, (file_name, content, words) in BAD.items()},
    "empty folder": (train_on(lambda path: (path / "good.png").unlink()), "holds no images"),
    "no folder": (train_with(instance_data_dir="{tmp}/nowhere"), "is not a folder: --instance_data_dir"),
    "only a subfolder": (
        train_on(lambda path: (path / "good.png").unlink(), lambda path: (path / "10_dog").mkdir()),
        "holds no images",
    ),
    "pipe": (train_on(lambda path: os.mkfifo(path / "a.png")), "a pipe, a socket or a device"),
    "symlink loop": (train_on(lambda path: (path / "a.png").symlink_to(path / "a.png")), "symbolic links"),
    "dangling symlink": (train_on(lambda path: (path / "a.png").symlink_to(path / "b.png")), "No such file"),
    "no captions": (
        train_on(("more.png", PNG), prompt=None),
        "^[^;]*no caption for any of its images: give --instance_prompt, or captions[^;]*$",
    ),
    "some without captions": (
        train_on(("more.png", PNG), ("more.txt", b"a dog"), prompt=None),
        r"^1 of 2 images in \S+ has no caption \(good\.png\): give --instance_prompt, or write a caption "
        r"beside it \(good\.txt for good\.png\)$",
    ),
    "some without captions, some damaged": (
        train_on(("more.png", PNG), ("more.txt", b"a dog"), ("a.png", b""), prompt=None),
        r"2 files that cannot be used; .*a\.png \(empty file\); good\.png \(no caption: give --instance_",
    ),
    "all bad files at once": (
        train_on(("a.png", b""), ("b.png", b""), ("c.jpg", b"x")),
        r"3 files.*a\.png, b\.png \(empty file\); c\.jpg",
    ),
    "unknown file": (train_on(("a.doc", b"x")), r"a\.doc \(not an image\)"),
    "caption of nothing": (
        train_on(("a.caption", b"x")),
        r"a\.caption \(a caption without an image: there is no image named a\)",
    ),
    "no caption but empty ones": (
        train_on(("good.txt", b" \n"), prompt=None),
        r"good\.png \(its caption in good\.txt is empty, and there is no --instance_prompt\)",
    ),
    "no class prompt": (
        train_with(with_prior_preservation=True, class_data_dir="{tmp}/class"),
        "needs --class_data_dir and --class_prompt",
    ),
    "metadata outside": (
        train_on(("metadata.jsonl", b'{"file_name": "../x.png", "text": "x"}')),
        "line 1 names a file outside",
    ),
    "image that vanished": (vanished, "could be used when the run started, and now cannot: No such file"),
    "column of nothing": (train_with(caption_column="words"), "there is neither"),
    "no data set": (train_with(dataset_name="{tmp}/nowhere"), "no dataset can be read from"),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_data_are_refused(name, tmp_path, finished_run):
    assert_refused(ROWS[name], tmp_path, finished_run)


def test_what_is_neither_image_nor_caption_is_left_out_with_a_note(tmp_path, capsys):
    shutil.copy(EXAMPLE / "00.png", tmp_path / "a.png")
    for name in ("notes.md", "README.md", ".DS_Store", "Thumbs.db", "desktop.ini", "latents.npz", "list.csv"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.path.name for p in find_images(tmp_path, "a dog")] == ["a.png"]
    note = capsys.readouterr().err
    assert "holds 2 files with neither an image nor a caption, left out: list.csv, notes.md\n" in note
    assert "npz" not in note
