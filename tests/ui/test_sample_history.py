"""The history of generated images: kept over a restart, bounded, and never more than what is really there."""

import dataclasses
import json

import pytest
from PIL import Image

from gralora_diffusion import files
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.image_text import OWN, PARAMETERS
from gralora_diffusion.ui import removed, sample_history
from gralora_diffusion.ui.removed_history import delete, deleted, undo_delete
from gralora_diffusion.ui.sampler import ImageRequest
from gralora_diffusion.ui.workspace import Workspace

REQUEST = ImageRequest("a robot", 3, (("dog", 0.7), ("cat", 0.2)), 4, 2.5, "red", "96x64", "dpm++_2m")


def image(color: str = "red") -> Image.Image:
    found = Image.new("RGB", (64, 48), color)
    found.info |= {PARAMETERS: "a robot\nSteps: 4", OWN: '{"seed": 3}'}
    return found


def test_an_image_is_kept_with_its_texts_and_request(workspace):
    name = sample_history.keep(workspace, image(), REQUEST, "embedded")
    again = Workspace(workspace.root)
    again.delete_served()  # as at a start of the page
    (entry,) = sample_history.entries(again)
    assert (entry.id, entry.request, entry.base, entry.favorite) == (name, REQUEST, "embedded", False)
    with Image.open(sample_history.served_image(again, entry)) as served:
        assert served.text[PARAMETERS] == "a robot\nSteps: 4"
        assert served.text[OWN] == '{"seed": 3}'
    with Image.open(sample_history.thumbnail(again, entry)) as small:
        assert small.format == "JPEG"
    assert str(again.served) in sample_history.thumbnail(again, entry)


def test_favorites_are_kept_when_the_history_is_full(workspace, monkeypatch):
    monkeypatch.setattr(sample_history, "MOST", 2)
    first = sample_history.keep(workspace, image(), REQUEST, "")
    assert sample_history.toggle_favorite(workspace, first).favorite
    others = [
        sample_history.keep(workspace, image(), dataclasses.replace(REQUEST, seed=n), "") for n in (4, 5, 6)
    ]
    assert [entry.id for entry in sample_history.entries(workspace)] == [others[2], others[1], first]
    assert [entry.id for entry in sample_history.entries(workspace, favorites=True)] == [first]
    assert not sample_history.toggle_favorite(workspace, first).favorite
    delete(workspace, first)
    assert len(list(workspace.history.glob("*.*"))) == 4 + 1  # two images with their requests, and the bin


@pytest.mark.parametrize("name", [None, 7, "", "..", "../../runs/x", "/etc/passwd", "0" * 20 + "-" + "0" * 8])
def test_only_images_of_the_history_can_be_named(workspace, name):
    sample_history.keep(workspace, image(), REQUEST, "")
    for change in (sample_history.entry_of, sample_history.toggle_favorite, delete):
        with pytest.raises(ConfigError, match="the history has no image"):
            change(workspace, name)
    assert len(sample_history.entries(workspace)) == 1


@pytest.mark.parametrize(
    "facts",
    [
        "[",
        "[1]",
        "[" * 100_000,
        "{}",
        dict(request=[], base=""),
        dict(request=dataclasses.asdict(REQUEST), base=None),
        dict(request=dataclasses.asdict(REQUEST) | dict(adapters=[["../../x"]]), base=""),
        dict(request=dataclasses.asdict(REQUEST) | dict(adapters={"a": 1}), base=""),
        dict(request=dataclasses.asdict(REQUEST) | dict(seed="1"), base=""),
    ],
)
def test_foreign_files_in_the_folder_are_no_images_of_it(workspace, facts):
    name = sample_history.keep(workspace, image(), REQUEST, "")
    folder = workspace.history
    (folder / f"{name}.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    assert sample_history.entries(workspace) == []
    with pytest.raises(ConfigError, match="the history has no image"):
        sample_history.entry_of(workspace, name)


def test_links_are_not_followed(workspace, tmp_path):
    name = sample_history.keep(workspace, image(), REQUEST, "")
    folder = workspace.history
    (folder / f"{name}.png").unlink()
    (folder / f"{name}.png").symlink_to("/etc/passwd")
    assert sample_history.entries(workspace) == []


def test_a_deleted_image_comes_back_as_it_was(workspace):
    kept = [sample_history.keep(workspace, image(), dataclasses.replace(REQUEST, seed=n), "") for n in (1, 2)]
    sample_history.toggle_favorite(workspace, kept[0])
    before = sample_history.entries(workspace)
    for name in kept:
        delete(workspace, name)
    again = Workspace(workspace.root)  # as at a start of the page
    assert sample_history.entries(again) == []
    assert [entry.id for _, entry in deleted(again)] == kept
    assert [undo_delete(again).id for _ in kept] == kept[::-1]
    assert sample_history.entries(again) == before
    assert deleted(again) == []
    assert not list(again.removed_history.iterdir())
    with pytest.raises(ConfigError, match="no image was deleted"):
        undo_delete(again)


def test_images_leave_the_bin_after_a_week(workspace, monkeypatch):
    name = sample_history.keep(workspace, image(), REQUEST, "")
    delete(workspace, name)
    (removal,) = removed.removals(workspace.removed_history)
    now = int(removal.name)
    for days, there in ((6, True), (8, True), (8.5, True), (9.1, False)):  # old ones at the second check
        monkeypatch.setattr(removed.time, "time_ns", lambda days=days: int(now + days * removed.A_DAY))
        removed.delete_old(workspace)
        assert removal.is_dir() == there


def test_a_bin_that_is_a_link_is_left_alone(workspace, tmp_path):
    name = sample_history.keep(workspace, image(), REQUEST, "")
    outside = tmp_path / "outside"
    (outside / f"{1:020d}").mkdir(parents=True)
    workspace.removed_history.symlink_to(outside)
    with pytest.raises(ConfigError, match="is a link"):
        delete(workspace, name)
    with pytest.raises(ConfigError, match="no image was deleted"):
        undo_delete(workspace)
    removed.delete_old(workspace)
    assert (outside / f"{1:020d}").is_dir()
    assert [entry.id for entry in sample_history.entries(workspace)] == [name]


def test_an_image_that_cannot_be_moved_stays(workspace, monkeypatch):
    name = sample_history.keep(workspace, image(), REQUEST, "")
    real = files.os.replace

    def full(source, target):
        if str(target).endswith(".json"):
            raise OSError("no space left")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        delete(workspace, name)
    assert [entry.id for entry in sample_history.entries(workspace)] == [name]
    assert not list(workspace.removed_history.iterdir())
