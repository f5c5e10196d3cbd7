"""Changes of a dataset that meet, or fail half way: no caption and no image is lost."""

import concurrent.futures
import json
import shutil
import threading

import pytest
from PIL import Image

from gralora_diffusion import files
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, image_uploads, metadata_rows, removed_images

TEXTS = {"a.png": "a dog", "b.png": "a big dog", "c.png": "a small dog"}


@pytest.fixture
def folder(workspace):
    """A dataset `mine` of three images with a line of metadata.jsonl each."""
    folder = workspace.images / image_sets.create(workspace, "mine")
    for number, name in enumerate(TEXTS):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / name)
    lines = [json.dumps(dict(file_name=name, text=text)) for name, text in TEXTS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def shown(folder) -> dict[str, str]:
    return {path.name: image_sets.caption_of(path) for path in image_sets.images_of(folder)}


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def meeting(monkeypatch):
    """meeting(module, function, first, second): second() begins when first() first calls the function.

    It gets half a second before first() goes on; returns what both returned.
    """

    def run(module, function, first, second):
        real, other = getattr(module, function), []
        begun = threading.Semaphore(1)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:

            def paused(*given, **values):
                if begun.acquire(blocking=False):
                    other.append(threads.submit(second))
                    concurrent.futures.wait(other, timeout=0.5)
                return real(*given, **values)

            monkeypatch.setattr(module, function, paused)
            return first(), other[0].result()

    return run


@pytest.fixture
def failing(monkeypatch):
    """failing(module, function): the function raises as on a full disk, until the returned one is called."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    def start(module, function):
        real = getattr(module, function)
        monkeypatch.setattr(module, function, fail)
        return lambda: monkeypatch.setattr(module, function, real)

    return start


def upload(tmp_path, name: str, color: str):
    path = tmp_path / color / name
    path.parent.mkdir()
    Image.new("RGB", (64, 64), color).save(path)
    return path


def test_a_caption_that_is_typed_while_another_image_is_deleted_is_kept(workspace, folder, meeting):
    meeting(
        metadata_rows,
        "save",
        lambda: removed_images.remove(workspace, "mine", ["c.png"]),
        lambda: image_sets.save_captions(workspace, "mine", {"a.png": "typed"}),
    )
    assert shown(folder) == {"a.png": "typed", "b.png": "a big dog"}
    assert metadata_rows.problem_in(folder) is None
    assert "c.png" not in (folder / "metadata.jsonl").read_text()


def test_a_caption_that_is_typed_while_all_are_replaced_is_kept(workspace, folder, meeting):
    meeting(
        image_sets,
        "save_captions",
        lambda: image_sets.replace_in_captions(workspace, "mine", "dog", "cat"),
        lambda: image_sets.write_captions({folder / "a.png": "typed, dog"}),
    )
    assert shown(folder) == {"a.png": "typed, dog", "b.png": "a big cat", "c.png": "a small cat"}


def test_two_uploads_of_one_name_are_both_kept(workspace, folder, meeting, tmp_path):
    uploads = [upload(tmp_path, "new.png", color) for color in ("red", "blue")]
    first, second = (lambda path=path: image_uploads.add(workspace, "mine", [path]) for path in uploads)
    assert meeting(shutil, "copyfile", first, second) == ((1, []), (1, []))
    assert {"new.png", "new-2.png"} <= set(contents(folder))
    assert (folder / "new.png").read_bytes() != (folder / "new-2.png").read_bytes()


def test_an_upload_does_not_replace_an_image_that_comes_back(workspace, folder, meeting, tmp_path):
    before = (folder / "a.png").read_bytes()
    removed_images.remove(workspace, "mine", ["a.png"])
    path = upload(tmp_path, "a.png", "blue")
    meeting(
        removed_images,
        "move_all",
        lambda: removed_images.undo_remove(workspace, "mine"),
        lambda: image_uploads.add(workspace, "mine", [path]),
    )
    assert (folder / "a.png").read_bytes() == before
    assert (folder / "a-2.png").read_bytes() == path.read_bytes()


def test_a_dataset_is_renamed_before_or_after_an_image_is_deleted(workspace, folder, meeting):
    meeting(
        removed_images,
        "move_all",
        lambda: removed_images.remove(workspace, "mine", ["a.png"]),
        lambda: image_sets.rename(workspace, "mine", "other"),
    )
    assert removed_images.undo_remove(workspace, "other") == "a.png"
    assert shown(workspace.images / "other") == TEXTS


def test_a_file_that_cannot_go_back_stays_in_the_bin(workspace, folder, monkeypatch):
    """The disk goes read-only for c.png, and then for the way back of a.png."""
    move = files.move

    def fails_for_some(source, target):
        if source == folder / "c.png" or target == folder / "a.png":
            raise OSError(30, "Read-only file system")
        move(source, target)

    monkeypatch.setattr(files, "move", fails_for_some)
    with pytest.raises(OSError, match="Read-only"):
        removed_images.remove(workspace, "mine", list(TEXTS))
    assert set(contents(folder)) == {"b.png", "c.png", "metadata.jsonl"}
    monkeypatch.setattr(files, "move", move)
    assert removed_images.undo_remove(workspace, "mine") == "a.png"
    assert shown(folder) == TEXTS
    assert metadata_rows.problem_in(folder) is None
    assert removed_images.removals(workspace, "mine") == []


def test_an_image_whose_line_cannot_be_deleted_stays(workspace, folder, failing):
    before = contents(folder)
    failing(metadata_rows, "save")
    with pytest.raises(OSError, match="No space left"):
        removed_images.remove(workspace, "mine", ["a.png"])
    assert contents(folder) == before
    assert removed_images.removals(workspace, "mine") == []


def test_an_image_whose_line_cannot_be_restored_stays_in_the_bin(workspace, folder, failing):
    removed_images.remove(workspace, "mine", ["a.png"])
    without = contents(folder)
    restore = failing(metadata_rows, "save")
    with pytest.raises(OSError, match="No space left"):
        removed_images.undo_remove(workspace, "mine")
    assert contents(folder) == without
    restore()
    assert removed_images.undo_remove(workspace, "mine") == "a.png"
    assert shown(folder) == TEXTS


def test_a_restored_line_replaces_one_of_its_image(workspace, folder):
    removed_images.remove(workspace, "mine", ["a.png"])
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "./a.png", "text": "left over"}\n')
    removed_images.undo_remove(workspace, "mine")
    assert shown(folder) == TEXTS
    assert metadata_rows.problem_in(folder) is None


def test_an_undo_into_a_damaged_list_says_so_and_loses_nothing(workspace, folder):
    removed_images.remove(workspace, "mine", ["a.png"])
    good = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"metadata\.jsonl cannot be used \(line 1 is not JSON\): correct"):
        removed_images.undo_remove(workspace, "mine")
    (folder / "metadata.jsonl").write_text(good)
    assert removed_images.undo_remove(workspace, "mine") == "a.png"
    assert shown(folder) == TEXTS


def test_a_duplicate_that_fails_leaves_nothing(workspace, folder, failing):
    failing(shutil, "copyfile")
    with pytest.raises(OSError, match="No space left"):
        image_sets.copy(workspace, "mine", "copied")
    assert not (workspace.images / "copied").exists()


def test_an_upload_that_fails_half_way_leaves_nothing(workspace, folder, monkeypatch, tmp_path):
    before = contents(folder)
    path = upload(tmp_path, "new.png", "red")

    def half(source, target):
        target.write_bytes(source.read_bytes()[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", half)
    notes = ["new.png was left out: No space left on device"]
    assert image_uploads.add(workspace, "mine", [path]) == (0, notes)
    assert contents(folder) == before


@pytest.mark.parametrize("link", [".removed", ".removed/mine"])
def test_what_is_behind_a_link_in_the_bin_is_not_deleted(workspace, folder, tmp_path, link):
    outside = tmp_path / "outside"
    (outside / "mine").mkdir(parents=True)
    (outside / "mine" / "file").write_text("of somebody else")
    path = workspace.images / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside if link == ".removed" else outside / "mine")
    image_sets.rename(workspace, "mine", "other")
    assert (outside / "mine" / "file").is_file()
    image_sets.rename(workspace, "other", "mine")
    image_sets.delete(workspace, "mine")
    assert (outside / "mine" / "file").read_text() == "of somebody else"
