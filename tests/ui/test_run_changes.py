"""Runs are renamed, deleted, brought back and reordered, and nothing of them is lost."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time

import gradio as gr
import pytest
from PIL import Image

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.report import write_report
from gralora_diffusion.training.run_folder import Run
from gralora_diffusion.ui import run_cards
from gralora_diffusion.ui.processes import birth_of
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.status_strip import StatusStrip
from gralora_diffusion.ui.tab_watch import WatchTab

NAMES = ["../x", "/etc/x", "a/b", "..", "", "a\0b", "a\nb", "CON", "x" * 300, "--help", "$(id)", "%2e%2e"]


@pytest.fixture
def changes(workspace, finished_run):
    """A finished run, robot-1, whose exported file is named after it."""
    run = workspace.runs / "robot-1"
    shutil.copytree(finished_run, run)
    for suffix in (".safetensors", ".png"):
        if (run / f"{finished_run.name}{suffix}").is_file():
            os.rename(run / f"{finished_run.name}{suffix}", run / f"robot-1{suffix}")
    return RunChanges(RunQueue(workspace))


def contents(folder) -> dict:
    """{file: its size}; not of a report, which has the run's name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    return sizes | {str(path.relative_to(folder)): None for path in files if path.name == "report.html"}


def test_a_renamed_run_keeps_its_files_and_those_named_after_it_follow(changes, workspace):
    before = contents(workspace.runs / "robot-1")
    assert "robot-1.safetensors" in before
    assert changes.rename("robot-1", "my robot") == "my-robot"
    expected = {name.replace("robot-1", "my-robot"): size for name, size in before.items()}
    assert contents(workspace.runs / "my-robot") == expected
    assert workspace.run_names() == ["my-robot"]
    assert "my-robot" in workspace.adapter_names()


def names_in_report(run) -> tuple[str, list[str], list[str]]:
    """(title, files, training images) of a report."""
    text = (run / "report.html").read_text()
    (title,) = re.findall("<title>(.*)</title>", text.partition("</head>")[0])  # not those of the charts
    files = re.findall(r"<code>([\w.-]+\.(?:safetensors|png|json|html))</code></td><td>[\d.]+ [kM]B", text)
    return title, files, re.findall('src="([^"]+)" alt="training image', text)


def test_the_report_of_a_renamed_run_has_the_new_names(changes, workspace):
    run = workspace.runs / "robot-1"
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | dict(output_dir="runs/robot-1")))
    write_report(run, [Image.new("RGB", (8, 8), color) for color in ("red", "blue")])
    title, files, images = names_in_report(run)
    assert (title, len(images)) == ("robot-1", 2)
    changes.rename("robot-1", "hero")
    renamed = [name.replace("robot-1", "hero") for name in files]
    title, files, same = names_in_report(workspace.runs / "hero")
    assert (title, sorted(files), same) == ("hero", sorted(renamed), images)
    assert "hero.safetensors" in files
    assert "robot-1" not in (workspace.runs / "hero" / "report.html").read_text()
    changes.delete("hero")
    (workspace.runs / "hero").mkdir()
    changes.undo_delete()
    title, files, same = names_in_report(workspace.runs / "hero-1")
    assert (title, same) == ("hero-1", images)
    assert "hero-1.safetensors" in files


def without_config(run) -> None:
    (run / "config.json").unlink()
    (run / "job.json").write_text("{}")


def with_a_strange_config(run) -> None:
    (run / "config.json").write_text('{"adapter": 3}')


def with_a_broken_image(run) -> None:
    folder = run / "samples" / "step-00000"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "00.png").write_bytes(b"<html>")


def with_a_link(run) -> None:
    folder = run / "samples" / "step-00000"
    folder.mkdir(parents=True, exist_ok=True)
    secret = run.parent.parent / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (folder / "99.png").symlink_to(secret)


@pytest.mark.parametrize("spoil", [without_config, with_a_strange_config, with_a_broken_image, with_a_link])
def test_a_run_of_which_no_report_can_be_made_is_renamed_and_keeps_what_it_has(changes, workspace, spoil):
    run = workspace.runs / "robot-1"
    (run / "report.html").write_text("the earlier report")
    spoil(run)
    assert changes.rename("robot-1", "hero") == "hero"
    assert (workspace.runs / "hero" / "report.html").read_text() == "the earlier report"


def test_a_run_without_a_report_gets_none_by_a_new_name(changes, workspace):
    (workspace.runs / "robot-1" / "report.html").unlink(missing_ok=True)
    changes.rename("robot-1", "hero")
    assert not (workspace.runs / "hero" / "report.html").exists()


@pytest.mark.parametrize("name", [*NAMES, "other", "OTHER"])
def test_a1_a_run_gets_no_name_that_leads_away_or_is_taken(changes, workspace, name):
    (workspace.runs / "other").mkdir()
    before = contents(workspace.root)
    with pytest.raises(ConfigError):
        changes.rename("robot-1", name)
    with pytest.raises(ConfigError):
        changes.rename(name, "free-name")
    with pytest.raises(ConfigError):
        changes.delete(name)
    assert contents(workspace.root) == before


def test_a_deleted_run_comes_back_whole(changes, workspace):
    before = contents(workspace.runs / "robot-1")
    changes.delete("robot-1")
    assert workspace.run_names() == []
    (workspace.runs / "robot-1").mkdir()  # its name is taken meanwhile
    assert changes.undo_delete() == "robot-1-1"
    expected = {name.replace("robot-1", "robot-1-1"): size for name, size in before.items()}
    assert contents(workspace.runs / "robot-1-1") == expected
    with pytest.raises(ConfigError, match="no deleted run"):
        changes.undo_delete()


def test_a_reloaded_page_offers_to_undo_a_delete(changes, workspace):
    async def build() -> WatchTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            queue = changes.queue
            return WatchTab(workspace, queue, StatusStrip(queue, gr.Timer(1)))

    tab = asyncio.run(build())
    place = tab.refresh_event["outputs"].index(tab.history.undo)

    def refreshed(before: dict | None) -> tuple:
        *updates, seen = tab.refresh(None, None, 0.9, before)
        return updates[place].get("visible"), seen

    assert refreshed(None)[0] is False
    tab.history.changes.delete("robot-1")
    visible, seen = refreshed(None)  # as after a reload
    assert visible is True
    assert refreshed(seen)[0] is None
    tab.history.changes.undo_delete()
    assert refreshed(seen)[0] is False


@pytest.mark.parametrize(("state", "offered"), [("started", False), ("queued", False), ("canceled", True)])
def test_no_change_is_offered_of_a_run_that_is_active_or_queued(changes, workspace, state, offered):
    async def build() -> WatchTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return WatchTab(workspace, changes.queue, StatusStrip(changes.queue, gr.Timer(1)))

    tab = asyncio.run(build())
    me = dict(pid=os.getpid(), born=birth_of(os.getpid()), started=time.time() + 5)
    job = dict(config={}, created=time.time(), state=state) | (me if state == "started" else {})
    (workspace.runs / "other").mkdir()
    (workspace.runs / "other" / "job.json").write_text(json.dumps(job))
    *updates, _ = tab.refresh(None, "other", 0.9, None)
    outputs = tab.refresh_event["outputs"]
    for button in (tab.history.rename, tab.history.delete):
        assert updates[outputs.index(button)]["interactive"] is offered
    assert updates[outputs.index(tab.clone)]["interactive"] is True
    shutil.rmtree(workspace.runs / "other")  # or the queue would start it


def test_a_run_that_is_active_or_queued_is_neither_renamed_nor_deleted(changes, workspace):
    me = dict(pid=os.getpid(), born=birth_of(os.getpid()), started=time.time() + 5)
    for name, job in (("busy", dict(state="started", **me)), ("waits", dict(state="queued"))):
        (workspace.runs / name).mkdir()
        job = dict(config={}, created=time.time()) | job
        (workspace.runs / name / "job.json").write_text(json.dumps(job))
        for change in (lambda n: changes.rename(n, "free-name"), changes.delete):
            way = "stop it" if name == "busy" else "remove it from the queue"
            with pytest.raises(ConfigError, match=f"{way} before you"):
                change(name)
        assert (workspace.runs / name / "job.json").is_file()


@pytest.mark.parametrize("state", ["queued", "canceled", "withdrawn", "broken"])
def test_a_run_that_its_command_trains_is_neither_renamed_nor_deleted(changes, workspace, state):
    """Whatever the page had last noted about it."""
    job = dict(config={}, created=time.time(), state=state, message="")
    path = workspace.runs / "robot-1"
    (path / "job.json").write_text(json.dumps(job))
    with Run(path) as run:
        run.status("running", step=3)
        for change in (lambda n: changes.rename(n, "free-name"), changes.delete):
            with pytest.raises(ConfigError, match="robot-1 is running: stop it before"):
                change("robot-1")
        assert changes.queue.start_next() == ""
        assert changes.queue.queued() == []
        with pytest.raises(ConfigError, match="is running"):
            changes.queue.resume("robot-1")
        run.status("stopped", message="asked to")
    assert changes.queue.state(path)["state"] == ("queued" if state == "queued" else "stopped")
    (path / "job.json").write_text(json.dumps(job | dict(state="canceled")))
    changes.delete("robot-1")


def test_a_queued_run_that_its_command_trains_is_stopped_and_leaves_the_queue(changes, workspace):
    path = workspace.runs / "robot-1"
    (path / "job.json").write_text(json.dumps(dict(config={}, created=time.time(), state="queued")))
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with Run(path) as run:
            run.status("running", step=3)
            status = json.loads((path / "status.json").read_text())
            (path / "status.json").write_text(json.dumps(status | dict(pid=sleeper.pid)))
            assert changes.queue.stop("robot-1").startswith("Stopping robot-1")
            assert sleeper.wait(30) != 0
            assert changes.queue.state(path)["state"] == "stopping"
        assert changes.queue.start_next() == ""
        assert changes.queue.state(path)["state"] == "killed"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_link_is_not_a_run(changes, workspace, tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(workspace.runs / "robot-1", outside)
    (workspace.runs / "link").symlink_to(outside)
    with pytest.raises(ConfigError):
        changes.delete("link")
    assert outside.is_dir()


def test_the_order_of_the_queue_is_changed(changes, workspace):
    queue = changes.queue
    busy = workspace.runs / "busy"
    busy.mkdir()
    me = dict(pid=os.getpid(), born=birth_of(os.getpid()), started=time.time() + 5)
    (busy / "job.json").write_text(json.dumps(dict(config={}, created=1.0, state="started", **me)))
    for name in ("one", "two", "three"):
        queue.add(name, TrainConfig())
    assert queue.queued() == ["one", "two", "three"]
    assert queue.move("three", -1) == "three is number 2 of 3 in the queue"
    assert queue.move("three", -9) == "three is number 1 of 3 in the queue"
    assert queue.move("one", 5) == "one is number 3 of 3 in the queue"
    assert queue.queued() == ["three", "two", "one"]
    for name in ("robot-1", "busy", "../one"):
        with pytest.raises(ConfigError):
            queue.move(name, 1)
    states = [lines.splitlines()[0] for _, lines in run_cards.cards(queue)]
    assert {"three · number 1 in the queue", "one · number 3 in the queue", "robot-1 · done"} < set(states)


def test_only_the_newest_runs_have_cards_whose_facts_are_found_once(workspace, monkeypatch):
    for number in range(run_cards.MOST + 2):
        run = workspace.runs / f"run-{number:03d}"
        run.mkdir()
        job = dict(config={}, created=1.0, state="canceled")
        (run / "job.json").write_text(json.dumps(job))
        os.utime(run / "job.json", (number, number))
    found = []
    facts_of = run_cards.facts_of
    monkeypatch.setattr(run_cards, "facts_of", lambda *given: found.append(given[1].name) or facts_of(*given))
    first = run_cards.cards(RunQueue(workspace))
    newest = workspace.run_names()[: run_cards.MOST]
    assert [text.split(" · ")[0] for _, text in first] == newest == found
    assert newest[0] == "run-101"
    assert run_cards.cards(RunQueue(workspace)) == first
    assert found == newest


def test_a_card_tells_date_duration_base_rank_and_best_score(changes, workspace):
    run = workspace.runs / "robot-1"
    lines = [dict(step=0, score=0.0), dict(step=20, score=0.25)]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ((image, text),) = run_cards.cards(changes.queue)
    assert workspace.served in (workspace.root / image).parents
    first, date, base, score = text.splitlines()
    assert first == "robot-1 · done"
    assert str(time.localtime().tm_year) in date
    assert date.split(" · ")[1][0].isdigit()
    assert base == "Demo model · gralora, rank 16"
    assert score == "best score 0.25 at step 20"
