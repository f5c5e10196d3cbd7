"""What the page shows after kill -9 of itself, and of a run."""

import json
import os
import signal
from pathlib import Path

import pytest
from page_browser import Tab
from page_server import Page, end_runs, until

pytestmark = pytest.mark.browser


@pytest.fixture
def page(tmp_path):
    """A page that trains: its process and its run may be killed."""
    page = Page(tmp_path / "h")
    start(page)
    yield page
    end_runs(page.home)
    page.close()


def start(page: Page) -> None:
    """Start the run "long", which goes on until it is ended, and wait for two steps."""
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
    until(lambda: steps_of(page) > 1, "it steps")


def run_of(page: Page) -> Path:
    return page.home / "runs" / "long"


def steps_of(page: Page) -> int:
    metrics = run_of(page) / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.is_file() else 0


def test_a_run_goes_on_when_the_page_is_killed_and_a_new_page_displays_it(chromium, page):
    page.close(signal.SIGKILL)
    before = steps_of(page)
    other = Page(page.home)
    try:
        until(lambda: steps_of(page) > before, "it goes on")
        tab = Tab(chromium, other.url)
        tab.wait_state("running")
        tab.context.close()  # it would find the next server on this port
    finally:
        other.close()


def test_a_run_that_is_killed_is_resumed(chromium, page):
    until(lambda: (run_of(page) / "checkpoint-20").is_dir(), "a checkpoint")
    os.kill(json.loads((run_of(page) / "status.json").read_text())["pid"], signal.SIGKILL)
    tab = Tab(chromium, page.url)
    assert tab.wait_state("killed", "failed", "done") == "killed"
    tab.go("Watch")
    until(lambda: "Resume continues from checkpoint-" in tab.value("message"), "the message")
    until(lambda: "training:" in tab.value("log") or "estimate" in tab.value("log"), "the log")
    tab.page.click("#resume")
    tab.wait_state("running")
    until(lambda: tab.step() >= 21, "it goes on from the checkpoint")
    tab.context.close()
