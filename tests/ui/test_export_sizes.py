"""What Export tells before a file is made: its size, the error of a smaller rank, trigger words."""

import shutil
from pathlib import Path

import pytest

from gralora_diffusion.formats.nearest import nearest
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.copy_to_tool import copy_to_tool
from gralora_diffusion.ui.export import DOWNLOADS, export
from gralora_diffusion.ui.export_facts import preview_of_adapter, trigger_words
from gralora_diffusion.ui.export_sizes import error_of, size_text, sizes_of
from gralora_diffusion.ui.workspace import Workspace


@pytest.fixture
def workspace(tmp_path, finished_run):
    (tmp_path / "loras").mkdir()
    workspace = Workspace(tmp_path / "h", {"ComfyUI": tmp_path / "loras"})
    workspace.delete_served()
    shutil.copytree(finished_run, workspace.runs / "robot-1")
    return workspace


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("rank", [None, 4])
def test_the_size_is_known_before_the_file_is_made(workspace, rank, dtype):
    sizes = sizes_of(workspace, "robot-1", rank, dtype)
    assert sizes.keys() == DOWNLOADS.keys()
    for kind, size in sizes.items():
        path, _ = export(workspace, "robot-1", kind, rank, dtype)
        assert size == pytest.approx(path.stat().st_size, rel=0.1), kind


def test_the_error_of_a_smaller_rank_is_that_of_the_file(workspace):
    adapter = read_adapter(workspace.adapter("robot-1"))
    errors = [error_of(workspace, "robot-1", rank) for rank in (1, 4, 4096)]
    assert errors[:2] == [nearest(adapter, rank).error for rank in (1, 4)]
    assert 1 > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_sizes_are_in_the_unit_that_suits_them():
    texts = [size_text(size) for size in (None, 12_345, 1_234_567, 6_940_000_000)]
    assert texts == ["", "12 kB", "1.2 MB", "6.9 GB"]


def test_preview_and_trigger_words_are_those_of_the_run(workspace):
    assert preview_of_adapter(workspace, "robot-1").parent.name == "step-00020"
    assert "sks robot" in trigger_words(workspace, "robot-1").splitlines()[0]


def test_a_copy_never_replaces_a_file(workspace, tmp_path):
    loras = tmp_path / "loras"
    assert copy_to_tool(workspace, "ComfyUI", "robot-1", "mine", None, "fp16") == "mine.safetensors"
    assert {path.name for path in loras.iterdir()} == {"mine.safetensors", "mine.png"}
    assert read_adapter(loras / "mine.safetensors").components == ["unet"]
    (loras / "other.safetensors").write_text("another's")
    (loras / "link.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    before = {path.name: path.stat(follow_symlinks=False).st_mtime_ns for path in loras.iterdir()}
    for name in ("mine", "other", "link", "mine.safetensors"):
        with pytest.raises(ConfigError, match="choose another file name"):
            copy_to_tool(workspace, "ComfyUI", "robot-1", name, None, "fp16")
    after = {path.name: path.stat(follow_symlinks=False).st_mtime_ns for path in loras.iterdir()}
    assert after == before
    assert not (tmp_path / "nowhere.safetensors").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", "", "a\0b", "CON", "x" * 300, "--help"])
def test_a1_a_copy_stays_in_the_folder_that_the_owner_named(workspace, tmp_path, name):
    with pytest.raises(ConfigError):
        copy_to_tool(workspace, "ComfyUI", "robot-1", name, None, "fp16")
    for tool in ("A1111", "", str(tmp_path), None):
        with pytest.raises(ConfigError):
            copy_to_tool(workspace, tool, "robot-1", "mine", None, "fp16")
    assert list(Path(tmp_path / "loras").iterdir()) == []
