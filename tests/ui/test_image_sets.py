"""Sets of images: uploads, captions, checks."""

import json
import warnings
import zipfile

import pytest
from PIL import Image

from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import caption_files, image_sets, image_uploads, removed_images
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
    added, notes = image_uploads.add(workspace, name, [*good, *bad])
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
    image_uploads.add(workspace, name, [image(tmp_path / "a.png"), image(tmp_path / "b.png", (64, 64))])
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


def test_captions_are_paired_with_images_by_their_names(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    (tmp_path / "my dog.txt").write_text("a photo of sks dog\n")
    (tmp_path / "b.json").write_text('{"caption": "from JSON"}')
    (tmp_path / "c.txt").write_text("of nothing")
    (tmp_path / "d.json").write_text("{")
    uploads = [tmp_path / "my dog.txt", image(tmp_path / "my dog.png"), image(tmp_path / "b.png")]
    uploads += [tmp_path / "b.json", tmp_path / "c.txt", image(tmp_path / "d.png"), tmp_path / "d.json"]
    added, notes = image_uploads.add(workspace, name, uploads)
    assert added == 3
    folder = workspace.images / name
    assert (folder / "my-dog.txt").read_text() == "a photo of sks dog\n"
    assert (folder / "b.txt").read_text() == "from JSON\n"
    assert notes == [
        "c.txt was left out: no image has its name",
        "d.json was left out: its caption d.json is not JSON",
    ]


@pytest.mark.parametrize("kind", ["damaged", "bomb", "twice", "outside"])
def test_archives_are_refused_with_a_reason_or_stay_inside(workspace, tmp_path, kind):
    name = image_sets.create(workspace, "mine")
    archive = tmp_path / "x.zip"
    (tmp_path / "own").mkdir()
    own = image(tmp_path / "own" / "a.png")
    if kind == "damaged":
        archive.write_bytes(b"PK\3\4 and no more")
    else:
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(archive, "w", 8) as file:
            if kind == "bomb":
                file.writestr("a.txt", b"0" * 10_000_000)
            elif kind == "twice":
                file.write(own, "one/a.png")
                file.write(own, "one/a.png")
            else:
                file.write(own, "../../../a.png")
    added, notes = image_uploads.add(workspace, name, [archive])
    if kind == "outside":
        assert added == 1
        assert [path.name for path in (workspace.images / name).iterdir()] == ["a.png"]
        assert not (workspace.root / "a.png").exists()
        return
    assert added == 0
    words = dict(damaged="not a zip archive", bomb="larger than", twice="two files named a.png")[kind]
    assert len(notes) == 1
    assert notes[0].startswith("x.zip was left out")
    assert words in notes[0]


def test_an_image_is_removed_and_put_back_with_its_caption(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_uploads.add(workspace, name, [image(tmp_path / "a.png"), image(tmp_path / "b.png", (64, 64))])
    image_sets.save_captions(workspace, name, {"a.png": "first", "b.png": "second"})
    for file in ("a.png", "b.png"):
        removed_images.remove(workspace, name, [file])
    assert list((workspace.images / name).iterdir()) == []
    assert [removed_images.undo_remove(workspace, name) for _ in range(2)] == ["b.png", "a.png"]
    found = {p.name: image_sets.caption_of(p) for p in image_sets.images_of(workspace.images / name)}
    assert found == {"a.png": "first", "b.png": "second"}
    with pytest.raises(ConfigError, match="nothing was deleted"):
        removed_images.undo_remove(workspace, name)


def test_a_set_is_renamed_and_deleted_and_the_bundled_one_is_not(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_uploads.add(workspace, name, [image(tmp_path / "a.png")])
    assert image_sets.rename(workspace, name, "yours") == "yours"
    assert workspace.set_names() == [BUNDLED, "yours"]
    for change in (image_sets.delete, lambda w, n: image_sets.rename(w, n, "other")):
        with pytest.raises(ConfigError, match="the bundled images cannot be changed"):
            change(workspace, BUNDLED)
    image_sets.delete(workspace, "yours")
    assert workspace.set_names() == [BUNDLED]


def test_tags_are_counted_and_replaced(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_uploads.add(workspace, name, [image(tmp_path / f"{n}.png") for n in "abc"])
    image_sets.save_captions(workspace, name, {"a.png": "red, robot", "b.png": "blue, robot", "c.png": "x"})
    assert image_sets.tag_counts(workspace, name)[0] == ("robot", 2)
    assert image_sets.replace_in_captions(workspace, name, "robot", "dog") == 2
    assert image_sets.tag_counts(workspace, name)[0] == ("dog", 2)
    with pytest.raises(ConfigError, match="the text to find is empty"):
        image_sets.replace_in_captions(workspace, name, "", "dog")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_archive_with_damaged_data_is_left_out(workspace, tmp_path, method):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("a.png", b"hello world" * 5000)
    content = bytearray(archive.read_bytes())
    content[44:64] = b"\xff" * 20
    archive.write_bytes(content)
    added, notes = image_uploads.add(workspace, image_sets.create(workspace, "mine"), [archive])
    assert added == 0
    assert notes[0].startswith("x.zip was left out: ")


def test_a_note_on_an_upload_names_no_folder(workspace, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("n" * 300 + ".png", b"1")
    _, notes = image_uploads.add(workspace, image_sets.create(workspace, "mine"), [tmp_path / "x.zip"])
    assert len(notes) == 1
    assert str(tmp_path) not in notes[0]


def test_an_archive_of_a_kohya_folder_keeps_its_words_and_says_what_is_lost(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    first, second = image(tmp_path / "a.png"), image(tmp_path / "b.png", (70, 70))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(first, "img/10_sks dog/a.png")
        file.write(second, "img/10_sks dog/b.png")
        file.writestr("img/10_sks dog/a.txt", "a sks dog that sits")
        file.write(image(tmp_path / "c.png"), "img/c.png")
    added, notes = image_uploads.add(workspace, name, [tmp_path / "x.zip"])
    assert added == 3
    folder = workspace.images / name
    assert caption_files.caption_of(folder / "a.png") == "a sks dog that sits"
    assert caption_files.caption_of(folder / "b.png") == "sks dog"
    assert caption_files.caption_of(folder / "c.png") == ""
    assert notes == [
        '10_sks dog: its images are in this dataset now; 1 image without a caption got "sks dog"',
        "for 10 repeats of all images, set Repeats per epoch under Train to 10",
    ]


def test_an_archive_of_folders_with_equal_names_keeps_every_image_with_its_caption_and_mask(
    workspace, tmp_path
):
    name = image_sets.create(workspace, "mine")
    files = {"img/10_sks dog": "a dog", "img/5_cat": "a cat"}
    mask = image(tmp_path / "mask.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for number, (folder, caption) in enumerate(files.items()):
            file.write(image(tmp_path / f"{number}.png", (64 + number, 64)), f"{folder}/1.png")
            file.writestr(f"{folder}/1.txt", caption)
        file.write(mask, "img/5_cat/1-masklabel.png")
        file.write(mask, "img/other.png")
    added, notes = image_uploads.add(workspace, name, [tmp_path / "x.zip"])
    folder = workspace.images / name
    assert {path.name: caption_files.caption_of(path) for path in image_sets.images_of(folder)} == {
        "cat-1.png": "a cat",
        "other.png": "",
        "sks-dog-1.png": "a dog",
    }
    assert (folder / "cat-1-masklabel.png").is_file()
    assert added == 3
    heads = [note.partition(":")[0] for note in notes]
    assert heads[:2] == ["10_sks dog", "5_cat"]
    assert heads[2].startswith("the folders have different repeats (5, 10)")
    assert heads[3:] == ["1 mask added"]


@pytest.mark.parametrize("second", ["masks", "reg/1_sks dog"])
def test_masks_and_class_images_of_equal_names_are_no_training_images(workspace, tmp_path, second):
    own = image(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(own, "img/10_sks dog/1.png")
        file.write(own, f"{second}/1.png")
    added, notes = image_uploads.add(workspace, image_sets.create(workspace, "mine"), [tmp_path / "x.zip"])
    assert (added, notes) == (0, ["x.zip was left out: it holds two files named 1.png"])


def test_a_list_beside_equal_names_refuses_the_archive(workspace, tmp_path):
    """Its lines name the files, so they would be lost, or go to another image of that name."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for folder in ("1_dog", "1_cat"):
            file.write(image(tmp_path / "a.png"), f"{folder}/1.png")
        file.writestr("1_dog/metadata.jsonl", json.dumps(dict(file_name="1.png", text="a dog")))
    added, notes = image_uploads.add(workspace, image_sets.create(workspace, "mine"), [tmp_path / "x.zip"])
    assert (added, notes) == (0, ["x.zip was left out: it holds two files named 1.png"])


def test_folders_with_equal_words_are_told_apart_by_their_repeats(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for repeats in (10, 5):
            file.write(image(tmp_path / "a.png"), f"{repeats}_dog/1.png")
    added, _ = image_uploads.add(workspace, name, [tmp_path / "x.zip"])
    assert added == 2
    assert {path.name for path in (workspace.images / name).iterdir()} >= {"10_dog-1.png", "5_dog-1.png"}


@pytest.mark.parametrize("folder", ["9" * 5000 + "_dog", "1_" + "w" * 200, "1_\x1b[31m", "0_dog", "3_"])
def test_odd_names_of_folders_in_an_archive_lose_no_image(workspace, tmp_path, folder):
    own = image(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(own, f"{folder}/a.png")
    added, notes = image_uploads.add(workspace, image_sets.create(workspace, "mine"), [tmp_path / "x.zip"])
    assert added == 1
    assert all(note.isprintable() for note in notes)


def test_a_dataset_of_kohya_folders_is_explained_instead_of_displayed_empty(workspace):
    name = image_sets.create(workspace, "mine")
    assert "No images in this dataset yet" in image_sets.why_empty(workspace, name)
    assert image_sets.check_set(workspace, name, 64) == [("mine", "no images", "add some: 3 to 20 are usual")]
    (workspace.images / name / "10_sks dog").mkdir()
    image(workspace.images / name / "10_sks dog" / "a.png")
    assert "are in its folder (10_sks dog)" in image_sets.why_empty(workspace, name)
    (finding,) = image_sets.check_set(workspace, name, 64)
    assert finding == ("10_sks dog", image_sets.IN_FOLDERS, "train on it as it is")
    image(workspace.images / name / "b.png")  # then training leaves the folder out
    assert ("10_sks dog", "a link or a folder", "it is not used; remove it") in image_sets.check_set(
        workspace, name, 64
    )


MASK = "1 mask added: turn on Masked loss under Train to use masks"


def test_masks_stay_beside_their_images(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_uploads.add(workspace, name, [image(tmp_path / "dog.png")])
    uploads = [image(tmp_path / "dog-masklabel.png", mode="L"), tmp_path / "dog.png"]
    assert image_uploads.add(workspace, name, uploads) == (1, [MASK])
    long = "a" * 80
    uploads = [image(tmp_path / f"{long}.png"), image(tmp_path / f"{long}_mask.png", mode="L")]
    assert image_uploads.add(workspace, name, uploads) == (1, [MASK])
    folder = workspace.images / name
    cut = "a" * 60
    wanted = ["dog-2-masklabel.png", "dog-2.png", "dog.png", f"{cut}.png", f"{cut}_mask.png"]
    assert {path.name for path in folder.iterdir()} == set(wanted)
    caption_files.write_caption(folder / "dog.png", "a dog")
    trained = [found.path.name for found in find_images(folder, "a dog")]
    assert trained == [f"{cut}.png", "dog-2.png", "dog.png"]
    (_, notes) = image_uploads.add(workspace, name, [tmp_path / "dog-masklabel.png"])
    assert notes == [MASK]
    (_, notes) = image_uploads.add(workspace, name, [tmp_path / "dog-masklabel.png"])
    assert notes == [
        "dog-masklabel.png was left out: dog.png already has a mask of this name: delete it first"
    ]


def test_a_folder_of_an_archive_that_holds_only_masks_gets_no_note_on_its_images(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_uploads.add(workspace, name, [image(tmp_path / "dog.png")])
    mask = image(tmp_path / "mask.png", mode="L")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(mask, "10_sks dog/dog-masklabel.png")
    assert image_uploads.add(workspace, name, [tmp_path / "x.zip"]) == (0, [MASK])
    assert (workspace.images / name / "dog-masklabel.png").is_file()


def test_a_mask_before_its_image_keeps_the_end_of_its_name(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    long = "a" * 80
    uploads = [image(tmp_path / f"{stem}-masklabel.png", mode="L") for stem in ("dog", long)]
    uploads.append(image(tmp_path / "dog-condlabel.png"))
    twice = "2 masks added: turn on Masked loss under Train to use masks"
    condition = "dog-condlabel.png: a condition image, which is not used"
    assert image_uploads.add(workspace, name, uploads) == (0, [condition, twice])
    assert image_uploads.add(workspace, name, uploads[:1]) == (0, [MASK])
    folder = workspace.images / name
    ends = ("dog-masklabel", "dog-2-masklabel", "a" * 60 + "-masklabel", "dog-condlabel")
    assert {path.name for path in folder.iterdir()} == {f"{end}.png" for end in ends}
    assert image_sets.images_of(folder) == []


def test_an_image_named_like_a_mask_of_none_gets_the_words_of_its_folder(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(image(tmp_path / "a.png"), "10_sks dog/dog_mask.png")
    added, notes = image_uploads.add(workspace, name, [tmp_path / "x.zip"])
    assert added == 1
    assert caption_files.caption_of(workspace.images / name / "dog_mask.png") == "sks dog"
    assert notes[0].startswith("10_sks dog: its image is in this dataset now")


def test_names_of_devices_on_windows_are_changed(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_uploads.add(workspace, name, [image(tmp_path / "con.png")])
    assert [path.name for path in image_sets.images_of(workspace.images / name)] == ["image-con.png"]


def test_removed_images_follow_their_set(workspace, tmp_path):
    name = image_sets.create(workspace, "mine")
    image_uploads.add(workspace, name, [image(tmp_path / "a.png")])
    removed_images.remove(workspace, name, ["a.png"])
    renamed = image_sets.rename(workspace, name, "other")
    assert removed_images.undo_remove(workspace, renamed) == "a.png"
    removed_images.remove(workspace, renamed, ["a.png"])
    image_sets.delete(workspace, renamed)
    image_sets.create(workspace, renamed)
    assert removed_images.removals(workspace, renamed) == []
