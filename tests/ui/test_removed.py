"""The bin outlives the page, is emptied by age, and holds nothing of other people."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, removed, removed_images
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.workspace import Workspace


@pytest.fixture
def home(workspace, finished_run):
    """A finished run robot-1 and a dataset `mine` of one image, dog.png."""
    shutil.copytree(finished_run, workspace.runs / "robot-1")
    image_sets.create(workspace, "mine")
    Image.new("RGB", (64, 64), "red").save(workspace.images / "mine" / "dog.png")
    (workspace.images / "mine" / "dog.txt").write_text("a dog\n")
    return workspace


def contents(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def restarted(workspace) -> Workspace:
    again = Workspace(workspace.root)
    again.delete_served()  # as at a start of the page
    return again


def aged(removal, days: float):
    """The removal as it is when it was made some days earlier."""
    return removal.rename(removal.with_name(f"{int(removal.name) - int(days * 86_400 * 10**9):020d}"))


def test_what_was_deleted_can_be_restored_after_a_restart(home):
    before = contents(home.runs / "robot-1"), contents(home.images / "mine")
    RunChanges(RunQueue(home)).delete("robot-1")
    removed_images.remove(home, "mine", ["dog.png"])
    again = restarted(home)
    assert again.run_names() == []
    assert again.set_names() == ["robot", "mine"]
    assert again.adapter_names() == []
    changes = RunChanges(RunQueue(again))
    assert [run.name for run in changes.deleted()] == ["robot-1"]
    assert changes.undo_delete() == "robot-1"
    assert removed_images.undo_remove(again, "mine") == "dog.png"
    assert (contents(home.runs / "robot-1"), contents(home.images / "mine")) == before


def look(workspace, monkeypatch, days: float = 0) -> None:
    """What the page does again and again, as if it were so many days later."""
    now = time.time_ns() + int(days * removed.A_DAY)
    with monkeypatch.context() as patch:
        patch.setattr(removed.time, "time_ns", lambda: now)
        removed.delete_old(workspace)


def test_the_bin_is_emptied_by_age(home, monkeypatch):
    changes = RunChanges(RunQueue(home))
    shutil.copytree(home.runs / "robot-1", home.runs / "robot-2")
    changes.delete("robot-1")
    aged(changes.deleted()[0].parent, removed.DAYS + 0.1)
    changes.delete("robot-2")
    aged(changes.deleted()[1].parent, removed.DAYS - 0.1)
    removed_images.remove(home, "mine", ["dog.png"])
    aged(removed_images.removals(home, "mine")[0], removed.DAYS + 0.1)
    look(restarted(home), monkeypatch)
    assert [run.name for run in changes.deleted()] == ["robot-1", "robot-2"]
    look(restarted(home), monkeypatch, 0.9)
    assert len(removed_images.removals(home, "mine")) == 1
    look(restarted(home), monkeypatch, 1.001)
    assert [run.name for run in changes.deleted()] == ["robot-2"]
    assert removed_images.removals(home, "mine") == []
    assert len(os.listdir(home.removed_runs)) == 1
    look(restarted(home), monkeypatch, 2.1)
    assert changes.deleted() == []


def test_a_clock_that_is_wrong_for_a_while_empties_no_bin(home, monkeypatch):
    changes = RunChanges(RunQueue(home))
    changes.delete("robot-1")
    for days in (30, 30.5, 0, 400, 0.1, 30, 5):  # of the looks' clock; never a day too old in a row
        look(home, monkeypatch, days)
        assert [run.name for run in changes.deleted()] == ["robot-1"], days
    assert removed.seen_before(home) == {}
    aged(changes.deleted()[0].parent, 30)  # as of a clock that was behind when it was deleted
    look(home, monkeypatch)
    assert [run.name for run in changes.deleted()] == ["robot-1"]
    for text in ("[1]", '{"a": "b"}', "{", "[" * 100_000):
        (home.scratch / removed.SEEN).write_text(text)
        look(home, monkeypatch, 300)
        assert [run.name for run in changes.deleted()] == ["robot-1"]


def test_a_run_that_is_half_deleted_is_not_restored(home, monkeypatch):
    """As by a page that is ended meanwhile; at its next start the rest goes."""
    changes = RunChanges(RunQueue(home))
    changes.delete("robot-1")
    unlink, calls = os.unlink, []

    def unlink_two(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise SystemExit
        unlink(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_two)
        with pytest.raises(SystemExit):
            changes.delete_for_good()
    assert contents(home.removed_runs)  # something is left
    assert changes.deleted() == []
    with pytest.raises(ConfigError, match="no deleted run"):
        changes.undo_delete()
    removed.delete_parts(restarted(home))
    assert os.listdir(home.removed_runs) == []


def test_the_bin_is_not_emptied_while_something_is_restored(home, monkeypatch):
    queue = RunQueue(home)
    changes = RunChanges(queue)
    changes.delete("robot-1")
    aged(changes.deleted()[0].parent, 30)
    look(home, monkeypatch)
    now = time.time_ns() + 2 * removed.A_DAY
    monkeypatch.setattr(removed.time, "time_ns", lambda: now)
    with ThreadPoolExecutor(1) as thread:
        with queue.lock:
            done = thread.submit(removed.delete_old, home)
            assert changes.undo_delete() == "robot-1"
            assert not done.done()
        done.result()
    assert home.run_names() == ["robot-1"]
    assert contents(home.runs / "robot-1")


def test_runs_can_be_deleted_for_good(home):
    changes = RunChanges(RunQueue(home))
    changes.delete("robot-1")
    assert changes.delete_for_good() == 1
    assert changes.deleted() == []
    assert os.listdir(home.removed_runs) == []
    with pytest.raises(ConfigError, match="no deleted run"):
        changes.undo_delete()


def test_removals_are_in_order_whatever_the_clock_says(home, monkeypatch):
    monkeypatch.setattr(removed.time, "time_ns", lambda: 5)
    folders = [removed.new_removal(home.removed_runs) for _ in range(3)]
    assert removed.removals(home.removed_runs) == folders


def test_a8_a_bin_that_is_a_link_is_not_used(home, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    (outside / f"{1:020d}" / "theirs").mkdir(parents=True)
    home.removed_runs.symlink_to(outside)
    changes = RunChanges(RunQueue(home))
    assert changes.deleted() == []
    with pytest.raises(ConfigError, match="is a link"):
        changes.delete("robot-1")
    look(home, monkeypatch)
    look(home, monkeypatch, 2)
    assert os.listdir(outside) == [f"{1:020d}"]
    assert home.run_names() == ["robot-1"]
