"""A dataset that gets another name is still that of the runs that trained on it."""

import json
import os
import threading

import pytest

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, run_configs
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.workspace import Workspace


@pytest.fixture
def runs(workspace):
    """Runs on "mine", with "mine" as masks, on a folder in it, and on datasets with similar names."""
    image_sets.create(workspace, "mine")
    configs = dict(
        on_it=dict(instance_data_dir="images/mine", start_from="runs/mine"),
        masks=dict(instance_data_dir="images/other", mask_dir="images/mine", class_data_dir="images/mine"),
        part=dict(instance_data_dir="images/mine/10_dog", validation_dir="images/mine"),
        alike=dict(instance_data_dir="images/mine-2", class_data_dir="other/images/mine"),
        gone=dict(instance_data_dir="images/yours", mask_dir=7, class_data_dir="images/mine\0"),
        typed=dict(instance_data_dir="./images//mine/", class_data_dir=str(workspace.images / "mine")),
        blank=dict(instance_data_dir=None),
    )
    for moment, (name, config) in enumerate(configs.items(), 1):
        run = workspace.runs / name
        run.mkdir()
        (run / "config.json").write_text(json.dumps(config))
        (run / "job.json").write_text(json.dumps(dict(config=config, created=1.0, state="canceled")))
        for file in run.iterdir():
            os.utime(file, (moment, moment))
    return configs


def configs_of(workspace) -> dict:
    found = {}
    for run in workspace.runs.iterdir():
        if run.name.startswith("."):
            continue
        config = json.loads((run / "config.json").read_text())
        assert json.loads((run / "job.json").read_text())["config"] == config
        found[run.name] = config
    return found


def test_runs_follow_a_renamed_dataset(runs, workspace):
    order = workspace.run_names()
    image_sets.rename(workspace, "mine", "yours")
    expected = dict(
        on_it=dict(instance_data_dir="images/yours", start_from="runs/mine"),
        masks=dict(instance_data_dir="images/other", mask_dir="images/yours", class_data_dir="images/yours"),
        part=dict(instance_data_dir="images/yours/10_dog", validation_dir="images/yours"),
        alike=runs["alike"],
        gone=runs["gone"],
        typed=dict(instance_data_dir="images/yours", class_data_dir=str(workspace.images / "yours")),
        blank=runs["blank"],
    )
    assert configs_of(workspace) == expected
    assert workspace.run_names() == order


def test_runs_follow_where_the_datasets_are_on_another_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "images").symlink_to(tmp_path / "disk")
    workspace = Workspace(tmp_path / "h")
    image_sets.create(workspace, "mine")
    run = workspace.runs / "x"
    run.mkdir()
    for path in ("images/mine", str(tmp_path / "disk" / "mine"), str(workspace.images / "mine")):
        (run / "config.json").write_text(json.dumps(dict(instance_data_dir=path)))
        image_sets.rename(workspace, "mine", "yours")
        value = json.loads((run / "config.json").read_text())["instance_data_dir"]
        assert value == ("images/yours" if path == "images/mine" else str(workspace.images / "yours"))
        image_sets.rename(workspace, "yours", "mine")


def test_a_restored_run_has_the_new_name_too(runs, workspace):
    changes = RunChanges(RunQueue(workspace))
    changes.delete("on_it")
    image_sets.rename(workspace, "mine", "yours")
    assert changes.undo_delete() == "on_it"
    assert configs_of(workspace)["on_it"]["instance_data_dir"] == "images/yours"


def test_where_a_config_cannot_be_written_the_dataset_keeps_its_name(runs, workspace, monkeypatch):
    written, order = [], workspace.run_names()

    def write_text(path, text) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(run_configs, "write_text", write_text)
    with pytest.raises(ConfigError, match=r"the config of .* cannot be changed: No space left"):
        image_sets.rename(workspace, "mine", "yours")
    assert "mine" in workspace.set_names()
    assert "yours" not in workspace.set_names()
    assert configs_of(workspace) == runs
    assert workspace.run_names() == order


def test_runs_wait_for_the_renaming(runs, workspace, monkeypatch):
    """A run that is renamed or resumed in between would lose one of the two changes."""
    free = []

    def try_lock() -> None:
        free.append(RunQueue(workspace).lock.acquire(blocking=False))

    def write_text(path, text) -> None:
        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join()
        path.write_text(text)

    monkeypatch.setattr(run_configs, "write_text", write_text)
    image_sets.rename(workspace, "mine", "yours")
    assert free
    assert not any(free)


def test_a_name_that_a_file_has_leaves_everything_as_it_was(runs, workspace):
    (workspace.images / "yours").write_text("not a dataset")
    with pytest.raises((OSError, ConfigError)):
        image_sets.rename(workspace, "mine", "yours")
    assert (workspace.images / "yours").read_text() == "not a dataset"
    assert (workspace.images / "mine").is_dir()
    assert configs_of(workspace) == runs
