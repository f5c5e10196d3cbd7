"""What the page shows after kill -9 of itself, and of a run."""

import json
import os
import signal
from pathlib import Path

import pytest
from page_browser import Tab
from page_server import Page, end_runs, until

pytestmark = pytest.mark.browser


def start(page: Page) -> Path:
    """The folder of a run that goes on until it is ended, and has done two steps."""
    settings = dict(
        name="long",
        max_train_steps="5000",
        rank=8,
        k="1",
        train_batch_size="1",
        skip_final_inference=True,
        checkpointing_steps=20,
    )
    assert "error" not in page.call("start", *page.form(**settings))
    run = page.home / "runs" / "long"
    until(lambda: steps_of(run) > 1, "it steps")
    return run


def steps_of(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.is_file() else 0


def test_a_run_goes_on_when_the_page_is_killed_and_a_new_page_displays_it(chromium, tmp_path):
    page = Page(tmp_path / "h")
    try:
        run = start(page)
        page.close(signal.SIGKILL)
        before = steps_of(run)
        page = Page(tmp_path / "h")
        until(lambda: steps_of(run) > before, "it goes on")
        tab = Tab(chromium, page.url)
        tab.wait_state("running")
        tab.context.close()  # it would find the next server on this port
    finally:
        end_runs(page.home)
        page.close()


def test_a_run_that_is_killed_is_resumed(chromium, tmp_path):
    page = Page(tmp_path / "h")
    try:
        run = start(page)
        until(lambda: (run / "checkpoint-20").is_dir(), "a checkpoint")
        os.kill(json.loads((run / "status.json").read_text())["pid"], signal.SIGKILL)
        tab = Tab(chromium, page.url)
        assert tab.wait_state("killed", "failed", "done") == "killed"
        tab.go("Watch")
        until(lambda: "Resume continues from checkpoint-" in tab.value("message"), "the message")
        until(lambda: "training:" in tab.value("log") or "estimate" in tab.value("log"), "the log")
        tab.page.click("#resume")
        tab.wait_state("running")
        until(lambda: tab.step() >= 21, "it goes on from the checkpoint")
        tab.page.click("#strip-stop")
        tab.wait_state("stopped")
        tab.context.close()
    finally:
        end_runs(page.home)
        page.close()
