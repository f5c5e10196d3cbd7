"""The log on the page: fields by their labels, datasets and runs by their names."""

import asyncio
import os
import shutil

import gradio as gr
import pytest

from gralora_diffusion.training.run_plan import EMBEDDED_BASE
from gralora_diffusion.ui.page_words import page_words
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.status_strip import StatusStrip
from gralora_diffusion.ui.tab_watch import NO_LOG, WatchTab

LINES = {
    "note: the run ends after 300 steps (--max_train_steps 300)": (
        "note: the run ends after 300 steps (“Steps” 300)"
    ),
    "warning: {images}/mine/a.png is 20 x 20 pixels; see --resolution": (
        "warning: mine/a.png is 20 x 20 pixels; see “Resolution (pixels)”"
    ),
    "step 10/300 loss 0.1234": "step 10/300 loss 0.1234",
    "saved {runs}/dog-1/adapter.safetensors": "saved dog-1/adapter.safetensors",
    "the words of the caption '--rank 3' stay": "the words of the caption '--rank 3' stay",
    "use \x1b[31m--rank\x1b[0m 8": "use “Rank: 8”",
}


@pytest.fixture
def tab(workspace):
    async def build() -> WatchTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            queue = RunQueue(workspace)
            return WatchTab(workspace, queue, StatusStrip(queue, gr.Timer(1)))

    return asyncio.run(build())


def test_the_log_has_the_labels_of_the_form(tab, workspace):
    run = workspace.runs / "dog-1"
    run.mkdir()
    written = [line.format(images=workspace.images, runs=workspace.runs) for line in LINES]
    (run / "log.txt").write_text("\n".join(written) + "\n")
    assert tab.log_of(run).split("\n") == list(LINES.values())


def test_a_run_without_a_log_has_none(tab, workspace):
    assert tab.log_of(workspace.runs / "none") == ""


def test_the_base_line_names_the_field_that_selects_another(tab, workspace):
    words = page_words(f"base: {EMBEDDED_BASE}", workspace)
    assert words.startswith("base: the embedded one (64 x 64 pixels), which cannot learn photos and ")
    assert words.endswith(" fit SDXL; “Base model” selects another")


@pytest.mark.parametrize(("steps", "visible"), [(0, "hidden"), (1, True)])
def test_smoothing_is_shown_with_the_loss_curve(tab, workspace, steps, visible):
    run = workspace.runs / "dog-1"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "seconds": 1.0}\n' * steps)
    updates = tab.refresh(None, run.name, 0.9, None)
    found = dict(zip(tab.refresh_event["outputs"], updates, strict=True))
    assert found[tab.smoothing]["visible"] == visible
    assert found[tab.losses]["visible"] is bool(steps)


def log_update(tab, run) -> dict:
    """What the browser gets for the log of the chosen run."""
    updates = tab.refresh(None, run.name, 0.9, None)
    return updates[tab.refresh_event["outputs"].index(tab.log)]


def test_a_run_of_the_command_line_says_where_its_output_is(tab, workspace, finished_run):
    run = workspace.runs / "robot-1"
    shutil.copytree(finished_run, run)
    for name in ("log.txt", "job.json"):
        (run / name).unlink(missing_ok=True)
    assert log_update(tab, run) == gr.update(value="", placeholder=NO_LOG, visible=True)
    (run / "log.txt").write_text("step 1/2\n")
    assert log_update(tab, run) == gr.update(value="step 1/2", placeholder="", visible=True)


def test_a_new_run_of_an_old_name_gets_a_new_plot(tab, workspace):
    run = workspace.runs / "dog-1"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "seconds": 1.0}\n')
    seen = None
    changed = []
    for written in (1, 1, 2):
        (run / "config.json").write_text("{}")
        os.utime(run / "config.json", (written, written))
        updates = dict(zip(tab.refresh_event["outputs"], tab.refresh(None, run.name, 0.9, seen), strict=True))
        seen = updates[tab.seen]
        changed.append("value" in updates[tab.losses])
    assert changed == [True, False, True]
