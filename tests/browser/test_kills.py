"""What the page shows after kill -9 of itself, and of a run."""

import json
import os
import signal

import pytest
from page_browser import Tab
from page_server import Page, end_runs, until

pytestmark = pytest.mark.browser


def test_kills_leave_a_truthful_state(chromium, tmp_path):
    """kill -9 of the page: the run goes on, and a new page displays it.  kill -9 of the run: Resume works."""
    page = Page(tmp_path / "h")
    try:
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
        metrics = page.home / "runs" / "long" / "metrics.jsonl"
        lines = lambda: metrics.read_text().count("\n") if metrics.is_file() else 0  # noqa: E731
        until(lambda: lines() > 1, "it steps")
        page.close(signal.SIGKILL)
        before = lines()
        page = Page(tmp_path / "h")
        until(lambda: lines() > before, "it goes on")
        tab = Tab(chromium, page.url)
        tab.wait_state("running")
        until(lambda: (page.home / "runs" / "long" / "checkpoint-20").is_dir(), "a checkpoint")
        os.kill(json.loads((page.home / "runs" / "long" / "status.json").read_text())["pid"], signal.SIGKILL)
        assert tab.wait_state("killed", "failed", "done") == "killed"
        tab.go("Watch")
        until(lambda: "Resume continues from checkpoint-" in tab.value("message"), "the message")
        until(lambda: "training:" in tab.value("log") or "estimate" in tab.value("log"), "the log")
        tab.page.click("#resume")
        tab.wait_state("running")
        until(lambda: tab.step() >= 21, "it goes on from the checkpoint")
        tab.page.click("#strip-stop")
        tab.wait_state("stopped")
        tab.context.close()  # it would find the next server on this port
    finally:
        end_runs(page.home)
        page.close()
