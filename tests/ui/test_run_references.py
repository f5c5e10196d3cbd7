"""When a run gets another name, what refers to it follows; another adapter of the same name is noticed."""

import dataclasses
import json
import os
import time

import pytest
from PIL import Image

from gralora_diffusion.sdxl.image_text import OWN
from gralora_diffusion.ui import blind, run_references, sample_history
from gralora_diffusion.ui.grid import Cell
from gralora_diffusion.ui.history_adapters import problem_of
from gralora_diffusion.ui.removed_history import delete, undo_delete
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.run_references import free_run_name
from gralora_diffusion.ui.sampler import ImageRequest, Sampler
from gralora_diffusion.ui.tab_sample_history import facts_of

REPLACED = "is not the adapter that this image was generated with: these settings give another image"


def make_run(workspace, name: str, content: str, **config):
    """A run with an adapter and a checkpoint of this content."""
    run = workspace.runs / name
    (run / "checkpoint-20").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config))
    for folder, text in ((run, content), (run / "checkpoint-20", content + " at 20")):
        (folder / "adapter.safetensors").write_text(text)


@pytest.fixture
def changes(workspace):
    make_run(workspace, "red-1", "first")
    for path in (workspace.runs / "red-1").rglob("*"):
        os.utime(path, (1, time.time() - 60))  # it was trained before what refers to it
    return RunChanges(RunQueue(workspace))


def keep(workspace, *names: str, with_hashes: bool = True) -> str:
    """Keep an image of these adapters in the history, as Sample does."""
    request = ImageRequest("a hero", 3, tuple((name, 0.5) for name in names), 4, None)
    image = Image.new("RGB", (64, 64), "red")
    if with_hashes:
        used = [dict(sha256=run_references.hash_of(workspace.adapter(name))) for name in names]
        image.info[OWN] = json.dumps(dict(adapters=used))
    return sample_history.keep(workspace, image, request, "")


def names_of(workspace, entry: str) -> list[str]:
    return [name for name, _ in sample_history.entry_of(workspace, entry).request.adapters]


def problem(workspace, entry: str) -> str:
    return problem_of(workspace, sample_history.entry_of(workspace, entry))


def test_without_a_hash_images_that_are_older_than_a_run_are_of_another_one(workspace):
    """Also where that one was deleted for good."""
    make_run(workspace, "red-1", "first")
    older = keep(workspace, "red-1", with_hashes=False)
    changes = RunChanges(RunQueue(workspace))
    changes.delete("red-1")
    changes.delete_for_good()
    make_run(workspace, "red-1", "second")
    newer = keep(workspace, "red-1", with_hashes=False)
    changes.rename("red-1", "mine")
    assert (names_of(workspace, older), names_of(workspace, newer)) == (["red-1"], ["mine"])


def test_an_image_holds_the_content_of_its_adapter(workspace, finished_run):
    run = workspace.runs / "robot-1"
    run.mkdir()
    for name in ("adapter.safetensors", "config.json"):
        (run / name).write_bytes((finished_run / name).read_bytes())
    request = ImageRequest("a robot", 0, (("robot-1", 1.0),), 1, None)
    image = Sampler(workspace).generate(request, None)
    name = sample_history.keep(workspace, image, request, "")
    assert problem(workspace, name) == ""
    (run / "adapter.safetensors").write_bytes((finished_run / "robot.safetensors").read_bytes())
    assert problem(workspace, name).endswith(REPLACED)


@pytest.mark.parametrize("with_hashes", [True, False])
def test_the_history_follows_a_run_to_its_new_name(changes, workspace, with_hashes):
    for name in ("second", "third", "red-10"):
        make_run(workspace, name, name)
    names = "red-1", "second", "red-1/checkpoint-20", "red-10"
    kept = keep(workspace, *names, with_hashes=with_hashes)
    before = sample_history.entry_of(workspace, kept)
    changes.rename("red-1", "mine")
    assert names_of(workspace, kept) == ["mine", "second", "mine/checkpoint-20", "red-10"]
    after = sample_history.entry_of(workspace, kept)
    assert dataclasses.replace(after, request=before.request) == before
    assert problem(workspace, kept) == ""
    assert "mine at 0.5" in facts_of(after)


def test_another_run_of_the_old_name_is_never_used_silently(changes, workspace):
    kept = keep(workspace, "red-1")
    changes.rename("red-1", "mine")
    make_run(workspace, "red-1", "another")
    assert names_of(workspace, kept) == ["mine"]
    assert problem(workspace, kept) == ""
    changes.delete("mine")
    assert problem(workspace, kept) == "no longer available: mine; choose another adapter"
    make_run(workspace, "mine", "another still")
    assert problem(workspace, kept) == f"mine {REPLACED}"
    old = keep(workspace, "mine", with_hashes=False)  # of an earlier version
    assert problem(workspace, old) == ""


@pytest.mark.parametrize("with_hashes", [True, False])
def test_a_restored_run_gets_its_images_back_and_no_others(changes, workspace, with_hashes):
    first = keep(workspace, "red-1", "red-1/checkpoint-20", with_hashes=with_hashes)
    changes.delete("red-1")
    make_run(workspace, "red-1", "second")
    second = keep(workspace, "red-1", "red-1/checkpoint-20", with_hashes=with_hashes)
    restored = changes.undo_delete()
    assert restored != "red-1"
    assert names_of(workspace, first) == [restored, f"{restored}/checkpoint-20"]
    assert names_of(workspace, second) == ["red-1", "red-1/checkpoint-20"]
    assert problem(workspace, first) == problem(workspace, second) == ""


@pytest.mark.parametrize("with_hashes", [True, False])
def test_images_of_a_deleted_run_do_not_follow_another_of_its_name(changes, workspace, with_hashes):
    first = keep(workspace, "red-1", with_hashes=with_hashes)
    changes.delete("red-1")
    make_run(workspace, "red-1", "second")
    second = keep(workspace, "red-1", with_hashes=with_hashes)
    changes.rename("red-1", "mine")
    assert (names_of(workspace, first), names_of(workspace, second)) == (["red-1"], ["mine"])
    assert changes.undo_delete() == "red-1"
    assert problem(workspace, first) == problem(workspace, second) == ""


def test_an_image_in_the_bin_follows_too(changes, workspace):
    kept = keep(workspace, "red-1")
    delete(workspace, kept)
    changes.rename("red-1", "mine")
    undo_delete(workspace)
    assert names_of(workspace, kept) == ["mine"]


def test_no_new_run_is_offered_a_name_that_something_refers_to(changes, workspace):
    assert free_run_name(workspace, "red") == "red-2"
    make_run(workspace, "red-2", "second")
    keep(workspace, "red-2")
    delete(workspace, keep(workspace, "red-2/checkpoint-20"))
    changes.delete("red-2")
    assert free_run_name(workspace, "red") == "red-3"
    changes.delete_for_good()
    assert free_run_name(workspace, "red") == "red-3"
    changes.delete("red-1")
    assert free_run_name(workspace, "red") == "red-3"  # red-1 can be restored


def test_configs_of_other_runs_follow(changes, workspace):
    """Also of a run that was deleted, and runs stay in their order."""
    start = dict(start_from="runs/red-1/checkpoint-20", allocation="runs/red-1/allocation.json")
    for name in ("third", "second"):
        make_run(workspace, name, name, **start)
        job = dict(state="canceled", created=1.0, config=start)
        (workspace.runs / name / "job.json").write_text(json.dumps(job))
        os.utime(workspace.runs / name / "job.json", (1, time.time() - 5))
    make_run(workspace, "other", "other", start_from="runs/red-10")
    changes.delete("third")
    before = workspace.run_names()
    changes.rename("red-1", "red-1-old")
    assert changes.undo_delete() == "third"
    changes.rename("red-1-old", "mine")
    assert [name for name in workspace.run_names() if name not in ("mine", "third")] == [
        name for name in before if name != "red-1"
    ]
    expected = dict(start_from="runs/mine/checkpoint-20", allocation="runs/mine/allocation.json")
    for name in ("third", "second"):
        for file, part in (("config.json", lambda found: found), ("job.json", lambda found: found["config"])):
            assert part(json.loads((workspace.runs / name / file).read_text())) == expected
    assert json.loads((workspace.runs / "other" / "config.json").read_text()) == dict(
        start_from="runs/red-10"
    )


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", '{"start_from": ["runs/red-1"]}', '{"config": 7}', ""]
)
def test_configs_that_are_none_are_left_as_they_are(changes, workspace, text):
    make_run(workspace, "other", "other")
    for file in ("config.json", "job.json"):
        (workspace.runs / "other" / file).write_text(text)
    changes.rename("red-1", "mine")
    for file in ("config.json", "job.json"):
        assert (workspace.runs / "other" / file).read_text() == text


def test_the_blind_comparison_follows(changes, workspace):
    path = workspace.new_served_path("cell.png")
    Image.new("RGB", (64, 64)).save(path)
    groups = [("red-1", 1.0), ("red-1/checkpoint-20", 0.5)]
    cells = [Cell(name, strength, 0, "a hero", str(path)) for name, strength in groups]
    comparison = blind.start(workspace, cells, *(cell.group for cell in cells))
    changes.rename("red-1", "mine")
    followed = blind.load(workspace)
    assert followed.names == ("mine at 1", "mine/checkpoint-20 at 0.5")
    assert followed.trials == comparison.trials
    changes.delete("mine")
    make_run(workspace, "mine", "another")
    restored = changes.undo_delete()
    assert blind.load(workspace).names[0] == f"{restored} at 1"


def test_where_the_disk_is_full_nothing_is_renamed(changes, workspace, monkeypatch):
    kept = [keep(workspace, "red-1"), keep(workspace, "red-1/checkpoint-20")]
    real, written = sample_history.write, []

    def full(folder, entry):
        written.append(entry)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(folder, entry)

    monkeypatch.setattr(sample_history, "write", full)
    with pytest.raises(OSError, match="No space"):
        changes.rename("red-1", "mine")
    assert workspace.run_names() == ["red-1"]
    assert [names_of(workspace, name) for name in kept] == [["red-1"], ["red-1/checkpoint-20"]]
