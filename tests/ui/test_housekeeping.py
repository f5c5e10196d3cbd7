"""Served files stay bounded, and nobody loses one that they may be looking at."""

import asyncio
import os
import time

import gradio as gr
import pytest
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import housekeeping, served
from gralora_diffusion.ui.form_memory import browser_state
from gralora_diffusion.ui.housekeeping import LARGE, OLD, SAFE, delete_old_served
from gralora_diffusion.ui.sampler import Sampler
from gralora_diffusion.ui.tab_sample import SampleTab


def made(workspace, name: str, age: float, size: int = 1000):
    """A served file of a size in bytes that was handed out `age` seconds ago."""
    path = workspace.new_served_path(name)
    path.write_bytes(bytes(size))
    for part in (path, path.parent):
        os.utime(part, (time.time() - age,) * 2)
    return path


def test_what_is_old_goes_and_what_is_new_stays(workspace):
    old = [made(workspace, f"{n}.png", OLD + 60 + n) for n in range(20)]
    new = [made(workspace, f"{n}.png", age) for n, age in enumerate((0, SAFE + 60, OLD - 60))]
    delete_old_served(workspace.served)
    assert not any(path.parent.exists() for path in old)
    assert all(path.is_file() for path in new)


def test_beyond_the_size_the_oldest_go_first_and_none_of_the_last_hour(workspace):
    ages = (OLD - 60, 5 * SAFE, 3 * SAFE, 2 * SAFE, SAFE - 60, 0)
    files = [made(workspace, "image.png", age, 100_000) for age in ages]
    delete_old_served(workspace.served, 420_000)
    assert [path.is_file() for path in files] == [False, False, True, True, True, True]
    delete_old_served(workspace.served, 0)
    assert [path.is_file() for path in files] == [False] * 4 + [True, True]


def test_a_file_that_is_handed_out_again_is_kept(workspace, tmp_path):
    source = tmp_path / "source.png"
    Image.new("RGB", (32, 32), "red").save(source)
    first = served.served_copy(workspace, source)
    for part in (first, os.path.dirname(first)):
        os.utime(part, (time.time() - 2 * OLD,) * 2)
    assert served.served_copy(workspace, source) == first
    delete_old_served(workspace.served, 0)
    assert os.path.isfile(first)


def test_a_large_export_displaces_no_image(workspace):
    """As of a merged checkpoint: neither while it is new nor later."""
    images = [made(workspace, "image.png", SAFE + 60 + n) for n in range(20)]
    export = made(workspace, "merged.safetensors", 0)
    os.truncate(export, 6_900_000_000)  # takes no space on the disk
    delete_old_served(workspace.served)
    assert all(path.is_file() for path in (*images, export))
    for age in (2 * SAFE, 3 * SAFE):
        other = made(workspace, "merged.safetensors", 0)
        os.truncate(other, 6_900_000_000)
        for part in (other, other.parent):
            os.utime(part, (time.time() - age,) * 2)
    delete_old_served(workspace.served)
    assert all(path.is_file() for path in (*images, export))
    assert not other.exists()  # the oldest of three
    assert sum(path.stat().st_size > LARGE for path in workspace.served.glob("*/*")) == 2


def test_a_file_that_a_browser_fetches_is_kept_and_its_download_can_be_resumed(page):
    folder = page.home / ".page" / "served"
    paths = [folder / name / "export.safetensors" for name in ("fetched", "refused", "forgotten")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1000))
        for part in (path, path.parent):
            os.utime(part, (time.time() - 2 * SAFE,) * 2)
    place = f"/gradio_api/file={paths[0]}"
    first = page.client.get(place, headers=dict(range="bytes=0-499"))
    assert (first.status_code, len(first.content)) == (206, 500)
    rest = page.client.get(place, headers=dict(range="bytes=500-"))
    assert (rest.status_code, len(rest.content)) == (206, 500)
    assert time.time() - paths[0].stat().st_mtime > SAFE  # by which a browser knows that it is the same file
    evil = {"host": "evil.example"}
    assert page.client.get(f"/gradio_api/file={paths[1]}", headers=evil).status_code == 400
    assert page.client.get(f"/gradio_api/file={paths[1]}/../none").status_code >= 400
    delete_old_served(folder, 0)
    assert [path.exists() for path in paths] == [True, False, False]


def test_a_link_is_deleted_and_not_what_it_leads_to(workspace, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    workspace.served.mkdir(parents=True)
    link = workspace.served / "link"
    link.symlink_to(outside)
    os.utime(link, (time.time() - 2 * OLD,) * 2, follow_symlinks=False)
    delete_old_served(workspace.served)
    assert not link.is_symlink()
    assert (outside / "mine.txt").read_text() == "mine"


def test_the_page_looks_again_and_again(workspace, monkeypatch):
    """Also after a look that failed, here since there is no such folder yet."""
    old = []

    def pause(_seconds):
        if old and not old[0].exists():
            raise InterruptedError
        if not old:
            old.append(made(workspace, "image.png", 2 * OLD))

    monkeypatch.setattr(housekeeping.time, "sleep", pause)
    with pytest.raises(InterruptedError):
        housekeeping.keep_tidy(workspace)


def test_a_click_on_an_image_that_is_gone_says_what_to_do(workspace):

    async def build() -> SampleTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return SampleTab(workspace, Sampler(workspace), browser_state(workspace, "sample"))

    tab = asyncio.run(build())
    path = made(workspace, "seed-1.png", 0)
    event = gr.SelectData(None, dict(index=0, value=None))
    assert tab.pair_of_image([[str(path), str(path)]], event) == (str(path), str(path))
    path.unlink()
    with pytest.raises(ConfigError, match="too long ago: choose one under History"):
        tab.pair_of_image([[str(path), str(path)]], event)
