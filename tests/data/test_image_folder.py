"""Images and captions as people have them: what is found, what is refused, and with which words."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.dataset import EXAMPLE, epoch_length, instance_images
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.options import ConfigError


def image(path, size=(80, 64), color=(200, 30, 30), mode="RGB", **options):
    Image.new(mode, size, color).save(path, **options)
    return path


def captions(folder, prompt=None, **options):
    return {p.path.name: p.caption for p in find_images(folder, prompt, **options)}


def test_captions_stand_beside_the_images(tmp_path):
    for name in ("a.png", "b.jpg", "c.png", "d.png", "e.png"):
        image(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeffa sks dog\n on a lawn ", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps({"caption": "not this one"}))  # the .txt comes first
    (tmp_path / "c.json").write_text(
        json.dumps({"caption": "a sks dog", "tags": ["grass", "sun"], "width": 80})
    )
    (tmp_path / "d.JSON").write_text(json.dumps({"tags": "dog, lawn"}))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "e.png", "text": "a dog in a file"}\n\n')
    found = captions(tmp_path, "a photo of sks dog")
    assert found == {
        "a.png": "a sks dog",  # the first line, as in sd-scripts
        "b.jpg": "a photo of sks dog",
        "c.png": "a sks dog, grass, sun",
        "d.png": "dog, lawn",
        "e.png": "a dog in a file",
    }
    assert len(find_images(EXAMPLE, "x")) == 6


def test_trap_2_a_caption_in_the_folder_crashed_diffusers(tmp_path):
    """train_dreambooth_lora_sdxl.py opens every file as an image."""
    image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a sks dog")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert captions(tmp_path) == {"a.png": "a sks dog"}


def test_metadata_names_images_in_sub_folders_and_its_column(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    image(tmp_path / "train" / "a.png")
    image(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "train/a.png", "words": "one"}\n{"file_name": "b.png", "words": "two"}\n'
    )
    assert captions(tmp_path, column="words") == {"a.png": "one", "b.png": "two"}
    assert "left out" not in capsys.readouterr().err
    found = instance_images(TrainConfig(instance_data_dir=str(tmp_path), caption_column="words"))
    assert [p.caption for p in found] == ["two", "one"]
    with pytest.raises(ConfigError, match="line 1 has no 'text' or 'caption'"):
        find_images(tmp_path, "x")
    with pytest.raises(ConfigError, match="there is neither"):
        instance_images(TrainConfig(instance_data_dir=str(EXAMPLE), caption_column="words"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b'{"file_name": "../secret.png", "text": "x"}', "line 1 names a file outside the folder"),
        (b'{"file_name": "/etc/passwd", "text": "x"}', "line 1 names a file outside the folder"),
        (b'{"file_name": "a.png", "text": "x"}\n' * 2, "line 2 names a.png a second time"),
        (b'{"file_name": "a.png"}', "line 1 has no 'text' or 'caption'"),
        (b'{"text": "x"}', 'line 1 has no "file_name"'),
        (b'{"file_name": "gone.png", "text": "x"}', "gone.png (No such file or directory)"),
        (
            b'{"file_name": "a.png", "text": 5}',
            "a.png (its caption in metadata.jsonl or metadata.csv is a number, not text)",
        ),
        (b"{", "line 1 is not JSON"),
        (b"[" * 10**5, "line 1 is not JSON"),
        (b"\xff\xfe{", "not UTF-8"),
    ],
)
def test_bad_metadata_is_one_sentence(tmp_path, lines, words):
    image(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(lines)
    with pytest.raises(ConfigError) as caught:
        find_images(tmp_path, "x")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_images(tmp_path):
    with pytest.raises(ConfigError, match="not a folder: --instance_data_dir"):
        find_images(tmp_path / "nowhere", "x")
    with pytest.raises(ConfigError, match="holds no images"):
        find_images(tmp_path, "x")
    (tmp_path / "10_dog").mkdir()
    with pytest.raises(ConfigError, match="holds no images"):
        find_images(tmp_path, "x")
    with pytest.raises(ConfigError, match=r"a\\x00b is not a folder"):
        find_images("a\0b", "x")


def test_captions_are_found_and_missed(tmp_path):
    image(tmp_path / "A.png")
    (tmp_path / "A.TXT").write_text("a sks dog")
    assert captions(tmp_path) == {"A.png": "a sks dog"}
    image(tmp_path / "b.png")
    image(tmp_path / "c.png")
    ways = r"or write a caption beside each \(b\.txt for b\.png\)$"
    words = rf"^2 of 3 images in \S+ have no caption \(b\.png, c\.png\): give --instance_prompt, {ways}"
    with pytest.raises(ConfigError, match=words) as refusal:
        find_images(tmp_path, None)
    assert refusal.value.option == "instance_prompt"
    with pytest.raises(ConfigError, match=r"2 of 3 .* give --class_prompt, or"):
        find_images(tmp_path, None, "class_data_dir")
    assert [found.path.name for found in find_images(tmp_path, None, skip=True)] == ["A.png"]


@pytest.mark.parametrize(
    "name",
    [
        "new\nline.png",
        "\N{DOG FACE}.png",
        "x" * 251 + ".png",
        " blank .png",
        "-rf.png",
        "semi;colon$(x).png",
        os.fsdecode(b"latin\xe9.png"),
    ],
    ids=["newline", "emoji", "255 bytes", "blanks", "dash", "shell", "not UTF-8"],
)
def test_odd_names_are_good_names(tmp_path, name):
    image(tmp_path / "z.png", color="blue").rename(tmp_path / name)
    if len(name) < 255:
        (tmp_path / name).with_suffix(".txt").write_text("a dog")
    assert captions(tmp_path, "a dog") == {name: "a dog"}
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(ConfigError) as caught:
        find_images(tmp_path, "x")
    assert str(caught.value).isprintable()


def test_the_same_bytes_twice_are_said(tmp_path, capsys):
    image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert len(find_images(tmp_path, "x")) == 2
    assert "a.png and b.png" in capsys.readouterr().err


def test_bad_files_can_be_skipped_and_are_counted(tmp_path, capsys):
    image(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    (tmp_path / "notes.txt").write_text("milk")
    assert captions(tmp_path, "x", skip=True) == {"good.png": "x"}
    assert "2 files" in (said := capsys.readouterr().err)
    assert "bad.png (not an image" in said
    (tmp_path / "good.png").unlink()
    with pytest.raises(ConfigError, match="no images that can be used"):
        find_images(tmp_path, "x", skip=True)
    assert {p.name for p in tmp_path.iterdir()} == {
        "bad.png",
        "notes.txt",
    }  # a user's file is never taken away


def test_the_cache_knows_images_by_their_bytes(tmp_path, monkeypatch):
    """What was decoded once is not decoded again, whatever its name; other bytes are."""
    import gralora_diffusion.data.image_folder as folders

    decoded = []
    real = folders.decode
    monkeypatch.setattr(folders, "decode", lambda file: decoded.append(1) or real(file))
    cache, folder = Cache(tmp_path / "cache"), tmp_path / "images"
    folder.mkdir()
    image(folder / "a.png", size=(96, 64))
    first = find_images(folder, "x", cache=cache)
    (folder / "a.png").rename(folder / "b.png")
    again = find_images(folder, "x", cache=cache, workers=2)
    assert len(decoded) == 1
    assert (first[0].digest, first[0].size) == (again[0].digest, again[0].size)
    assert again[0].size == (64, 96)
    [entry] = (tmp_path / "cache").rglob("*.json")
    entry.write_text(entry.read_text().replace("96", "97"))  # damaged: not believed
    assert find_images(folder, "x", cache=cache)[0].size == (64, 96)
    image(folder / "b.png", size=(96, 64), color="blue")
    find_images(folder, "x", cache=cache)
    assert len(decoded) == 3


def test_a_pass_counts_repeats_and_class_images():
    found = find_images(EXAMPLE, "x")
    assert epoch_length(TrainConfig(), found) == 6
    assert epoch_length(TrainConfig(repeats=5), found) == 30
    assert (
        epoch_length(TrainConfig(with_prior_preservation=True, class_data_dir="x", class_prompt="x"), found)
        == 100
    )


@pytest.mark.parametrize("name", ["a.png", "a.txt", "metadata.jsonl"])
def test_an_unreadable_file_is_named(name):
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # not below pytest's folders, which are closed to all but their owner
        os.chmod(folder, 0o755)
        image(Path(folder, "a.png"))
        Path(folder, name).touch()
        os.chmod(Path(folder, name), 0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(ConfigError, match="Permission denied") as caught:
                find_images(folder, "x")
        finally:
            if root:
                os.seteuid(0)
        assert ("metadata.jsonl" if name == "metadata.jsonl" else "a.png") in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(dataset_name="x", instance_data_dir="y"), "give one of them"),
        (dict(streaming=True), "--streaming has no effect here: it needs --dataset_name"),
        (dict(max_train_samples=5), "--max_train_samples has no effect here: it needs --dataset_name"),
        (dict(keep_tokens=1), "--keep_tokens has no effect here: it needs --shuffle_captions"),
        (dict(with_prior_preservation=True), "needs --class_data_dir and --class_prompt"),
        (
            dict(concepts="x", instance_data_dir="y"),
            "--instance_data_dir and --concepts both name the images",
        ),
        (dict(caption_lines="last"), "first, join, random"),
        (dict(latent_cache_dir="x", cache_latents=False), "it needs --cache_latents"),
        (dict(image_interpolation_mode="magic"), "lanczos"),
        (dict(caption_dropout=1.5), "at most 1"),
        (dict(repeats=0), "at least 1"),
        (dict(on_bad_image="delete"), "stop, skip"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**options)
    assert words in str(caught.value)


def test_metadata_may_be_a_table(tmp_path):
    """metadata.csv, as Hugging Face's imagefolder reads it."""
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / name)
    table = tmp_path / "metadata.csv"
    table.write_bytes('file_name,words,text\na.png,x,"a dog, ""sks"""\r\nb.png,y,\n'.encode("utf-8-sig"))
    assert captions(tmp_path, "the prompt") == {
        "a.png": 'a dog, "sks"',
        "b.png": "the prompt",
        "c.png": "the prompt",
    }
    assert captions(tmp_path, "the prompt", column="words")["b.png"] == "y"
    found = instance_images(
        TrainConfig(instance_data_dir=str(tmp_path), instance_prompt="p", caption_column="words")
    )
    assert [p.caption for p in found] == ["x", "y", "p"]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}')
    with pytest.raises(ConfigError, match=r"there is metadata.csv too: remove one of the two"):
        captions(tmp_path, "the prompt")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("image,text\na.png,x\n", 'must name a column "file_name"'),
        ("file_name,words\na.png,x\n", "line 2 has no 'text' or 'caption'"),
        ("file_name,text\n../a.png,x\n", "line 2 names a file outside the folder"),
        ("file_name,text\na.png,x\na.png,y\n", "line 3 names a.png a second time"),
        ('file_name,text\na.png,"x"y\n', "it is not CSV"),
        ("file_name,text\na.png\n", "line 2 has no 'text' or 'caption'"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, table, words):
    image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(ConfigError, match=words):
        captions(tmp_path, "the prompt")
