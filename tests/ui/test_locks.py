"""Changes of one dataset wait for each other, and for nothing that is done to another one."""

import gc
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, locks, removed_images
from gralora_diffusion.ui.caption_files import caption_of
from gralora_diffusion.ui.locks import changing

SECONDS = 60  # for what must not wait


@pytest.fixture
def folders(workspace):
    """The datasets `one` and `two`, of three images each."""
    found = [workspace.images / image_sets.create(workspace, name) for name in ("one", "two")]
    for folder in found:
        for number in range(3):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(f"a photo of {number}\n")
    return found


def test_a_change_waits_for_its_own_dataset_alone(workspace, folders):
    with ThreadPoolExecutor(4) as threads:
        with changing(folders[0]):
            waits = threads.submit(image_sets.save_captions, workspace, "one", {"0.png": "new"})
            threads.submit(image_sets.save_captions, workspace, "two", {"0.png": "new"}).result(SECONDS)
            threads.submit(removed_images.remove, workspace, "two", ["1.png"]).result(SECONDS)
            threads.submit(image_sets.copy, workspace, "two", "three").result(SECONDS)
            threads.submit(image_sets.rename, workspace, "two", "four").result(SECONDS)
            threads.submit(image_sets.delete, workspace, "four").result(SECONDS)
            assert not waits.done()
            assert caption_of(folders[0] / "0.png") == "a photo of 0"
        assert waits.result(SECONDS) == ["0.png"]
    assert caption_of(folders[0] / "0.png") == "new"
    assert caption_of(workspace.images / "three" / "0.png") == "new"
    gc.collect()
    assert not [folder for folder in locks._locks if folder.is_relative_to(workspace.root)]


def test_a_dataset_is_edited_while_it_is_duplicated(workspace, folders, monkeypatch):
    """The copy has each image with its caption of the time; it is listed when it is complete."""
    copy_file = image_sets.copy_file
    is_copied, go_on = threading.Event(), threading.Event()

    class Pause:  # between two images, where nothing is locked
        def __enter__(self):
            self.lock = changing(folders[0])
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()
            if is_copied.is_set():
                assert go_on.wait(SECONDS)

    def copied(path, part):
        copy_file(path, part)
        is_copied.set()

    monkeypatch.setattr(image_sets, "copy_file", copied)
    with ThreadPoolExecutor(2) as threads:
        with monkeypatch.context() as patch:
            patch.setattr(image_sets, "changing", lambda _folder: Pause())
            copy = threads.submit(image_sets.copy, workspace, "one", "copy")
            assert is_copied.wait(SECONDS)
        assert workspace.set_names() == ["robot", "one", "two"]
        edits = {"0.png": "too late", "2.png": "in time"}
        threads.submit(image_sets.save_captions, workspace, "one", edits).result(SECONDS)
        go_on.set()
        assert copy.result(SECONDS) == "copy"
    captions = [caption_of(workspace.images / "copy" / f"{number}.png") for number in range(3)]
    assert captions == ["a photo of 0", "a photo of 1", "in time"]


def test_a_dataset_that_is_deleted_meanwhile_is_not_half_duplicated(workspace, folders, monkeypatch):
    copy_file = image_sets.copy_file

    def copied(path, part):
        copy_file(path, part)
        shutil.rmtree(folders[0])

    monkeypatch.setattr(image_sets, "copy_file", copied)
    with pytest.raises(ConfigError, match="one was renamed or deleted before all of it was copied"):
        image_sets.copy(workspace, "one", "copy")
    assert [path.name for path in workspace.images.iterdir()] == ["two"]


def test_a_deletion_takes_nothing_of_a_dataset_that_gets_its_name(workspace, folders, monkeypatch):
    """What was removed from a renamed dataset can still be restored."""
    delete_bin, renamed = image_sets.delete_bin, []
    removed_images.remove(workspace, "two", ["0.png"])

    def delayed(bin_folder):
        """Of `one`, whose folder is gone: another thread may take its name."""
        if not renamed:
            renamed.append(threads.submit(image_sets.rename, workspace, "two", "one"))
            if not locks.NAMES.locked():
                renamed[0].result(SECONDS)
        delete_bin(bin_folder)

    monkeypatch.setattr(image_sets, "delete_bin", delayed)
    with ThreadPoolExecutor(1) as threads:
        image_sets.delete(workspace, "one")
        assert renamed[0].result(SECONDS) == "one"
    assert removed_images.undo_remove(workspace, "one") == "0.png"


def test_a_copy_does_not_go_on_with_another_dataset_of_the_name(workspace, folders, monkeypatch):
    copy_file = image_sets.copy_file

    def copied(path, part):
        copy_file(path, part)
        if path.name == "1.png":
            image_sets.rename(workspace, "one", "other")
            image_sets.create(workspace, "one")

    monkeypatch.setattr(image_sets, "copy_file", copied)
    with pytest.raises(ConfigError, match="one was renamed or deleted before all of it was copied"):
        image_sets.copy(workspace, "one", "copy")
    assert workspace.set_names() == ["robot", "one", "other", "two"]


def test_a_copy_that_was_killed_is_not_listed_and_is_deleted(workspace):
    part, other = (workspace.images / f"{image_sets.COPYING}{end}" for end in ("0" * 16, "of my dog"))
    for folder in (part, other):
        folder.mkdir()
        Image.new("RGB", (64, 64)).save(folder / "0.png")
    assert workspace.set_names() == ["robot"]
    image_sets.delete_unfinished_copies(workspace)
    assert not part.exists()
    assert (other / "0.png").exists()
