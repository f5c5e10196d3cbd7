"""HOME on two disks: runs and images are links to another one, and moves between the two lose nothing."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from gralora_diffusion import files
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, removed_images
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.workspace import Workspace

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system, so that os.replace() to it fails with EXDEV."""
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        with pytest.raises(OSError, match="cross-device"):
            os.replace(make(tmp_path / "probe"), Path(folder) / "probe")
        yield Path(folder)


def make(path: Path) -> Path:
    path.write_text("content")
    return path


def contents(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_and_images_on_another_disk_are_deleted_and_restored(tmp_path, other_disk, finished_run):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("runs", "images"):
        (other_disk / name).mkdir()
        (home / name).symlink_to(other_disk / name)
    workspace = Workspace(home)
    shutil.copytree(finished_run, workspace.runs / "robot")
    image_sets.create(workspace, "mine")
    Image.new("RGB", (64, 64)).save(workspace.images / "mine" / "dog.png")
    before = contents(other_disk)
    changes = RunChanges(RunQueue(workspace))
    changes.delete("robot")
    removed_images.remove(workspace, "mine", ["dog.png"])
    assert workspace.run_names() == []
    assert image_sets.images_of(workspace.images / "mine") == []
    assert changes.undo_delete() == "robot"
    assert removed_images.undo_remove(workspace, "mine") == "dog.png"
    assert changes.rename("robot", "robot-9") == "robot-9"
    assert changes.rename("robot-9", "robot") == "robot"
    assert image_sets.rename(workspace, "mine", "yours") == "yours"
    assert image_sets.rename(workspace, "yours", "mine") == "mine"
    assert contents(other_disk) == before


def test_a_move_to_another_disk_copies_all_and_then_deletes(tmp_path, other_disk):
    source = tmp_path / "run"
    (source / "samples").mkdir(parents=True)
    make(source / "samples" / "1.png")
    (source / "link").symlink_to("samples")
    before = contents(source)
    files.move(source, other_disk / "run")
    assert os.listdir(tmp_path) == ["probe"]
    assert contents(other_disk / "run") == before
    assert (other_disk / "run" / "link").is_symlink()
    files.move(other_disk / "run" / "samples" / "1.png", tmp_path / "1.png")
    assert (tmp_path / "1.png").read_text() == "content"
    assert os.listdir(other_disk / "run" / "samples") == []


def test_a_move_that_fails_leaves_all_where_it_was(tmp_path, other_disk, file_size_limit):
    source = tmp_path / "run"
    source.mkdir()
    make(source / "a.png")
    (source / "b.png").write_bytes(bytes(100_000))
    before = contents(source)
    with file_size_limit(50_000), pytest.raises(OSError, match=r"File too large|too large"):
        files.move(source, other_disk / "run")
    assert contents(source) == before
    assert os.listdir(other_disk) == []


def test_of_several_moves_those_before_the_one_that_fails_go_back(tmp_path, other_disk, file_size_limit):
    small, large = make(tmp_path / "a.png"), tmp_path / "b.png"
    large.write_bytes(bytes(100_000))
    with file_size_limit(50_000), pytest.raises(OSError, match=r"too large"):
        files.move_all({path: other_disk / path.name for path in (small, large)})
    assert small.read_text() == "content"
    assert large.stat().st_size == 100_000
    assert os.listdir(other_disk) == []


def test_a_disk_that_is_not_there_is_named(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "not-mounted" / "runs")
    with pytest.raises(ConfigError, match=r"runs cannot be used: it is a link to .*not-mounted/runs"):
        Workspace(tmp_path)
