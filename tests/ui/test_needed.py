"""What an active or queued run reads is neither renamed nor deleted."""

import json
import os
import time

import pytest
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets
from gralora_diffusion.ui.processes import birth_of
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue

PROCESS = dict(pid=os.getpid(), born=birth_of(os.getpid()), started=time.time() + 5)
STATES = [("queued", "queued", "remove dog from the queue"), ("started", "starting", "stop dog")]


def add_run(workspace, name, state="canceled", **config):
    run = workspace.runs / name
    run.mkdir(exist_ok=True)
    job = dict(config=config, created=time.time(), state=state, **PROCESS)
    (run / "job.json").write_text(json.dumps(job))


@pytest.mark.parametrize(("state", "word", "way"), STATES)
@pytest.mark.parametrize("option", ["instance_data_dir", "class_data_dir"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_dataset_that_a_run_reads_stays(workspace, state, word, way, option, absolute):
    for name in ("mine", "mine2"):
        image_sets.create(workspace, name)
        Image.new("RGB", (64, 64)).save(workspace.images / name / "a.png")
    folder = str(workspace.images / "mine") if absolute else "images/mine"
    add_run(workspace, "dog", state, **{option: folder})
    sentence = f"mine is used by dog, which is {word}: {way} before you"
    with pytest.raises(ConfigError, match=f"{sentence} rename mine"):
        image_sets.rename(workspace, "mine", "other")
    with pytest.raises(ConfigError, match=f"{sentence} delete mine"):
        image_sets.delete(workspace, "mine")
    assert (workspace.images / "mine" / "a.png").is_file()
    image_sets.delete(workspace, "mine2")
    add_run(workspace, "dog", "canceled", **{option: folder})
    assert image_sets.rename(workspace, "mine", "other") == "other"
    image_sets.delete(workspace, "other")


@pytest.mark.parametrize(("state", "word", "way"), STATES)
@pytest.mark.parametrize(
    "config",
    [
        dict(start_from="runs/first"),
        dict(start_from="runs/first/checkpoint-10"),
        dict(allocation="runs/first/allocation.json"),
    ],
    ids=["run", "checkpoint", "ranks"],
)
def test_a_run_that_another_one_reads_stays(workspace, state, word, way, config):
    for name in ("first", "first-2"):
        add_run(workspace, name)
    add_run(workspace, "dog", state, **config)
    changes = RunChanges(RunQueue(workspace))
    sentence = f"first is used by dog, which is {word}: {way} before you"
    with pytest.raises(ConfigError, match=f"{sentence} rename first"):
        changes.rename("first", "other")
    with pytest.raises(ConfigError, match=f"{sentence} delete first"):
        changes.delete("first")
    assert set(workspace.run_names()) == {"first", "first-2", "dog"}
    changes.delete("first-2")
    add_run(workspace, "dog", "canceled", **config)
    changes.delete("first")
    assert workspace.run_names() == ["dog"]


def test_a_hostile_config_needs_nothing(workspace):
    image_sets.create(workspace, "mine")
    for number, value in enumerate((1, ["images/mine"], "a\0b", "x" * 9999, {})):
        add_run(workspace, f"evil-{number}", "queued", instance_data_dir=value)
    add_run(workspace, "evil", "queued", no_such_option="images/mine")
    image_sets.delete(workspace, "mine")
    assert workspace.set_names() == ["robot"]
