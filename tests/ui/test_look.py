"""Header, cards and buttons are updated from one look at the runs, and so never say different things."""

import asyncio
import json

import gradio as gr
import pytest

from gralora_diffusion.ui.look import Look
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.status_strip import STRIP, StatusStrip
from gralora_diffusion.ui.tab_watch import WatchTab


class Restless(RunQueue):
    """A queue whose run has another state each time that it is asked for."""

    def state(self, run):
        self.calls = getattr(self, "calls", 0) + 1
        return dict(state=("running", "stopping", "stopped")[self.calls % 3], message="", step=1, steps=9)


@pytest.fixture
def tab(workspace):
    run = workspace.runs / "dog-1"
    run.mkdir()
    (run / "job.json").write_text(json.dumps(dict(config={}, created=1.0, state="started")))
    queue = Restless(workspace)

    async def build() -> WatchTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return WatchTab(workspace, queue, StatusStrip(queue, gr.Timer(1)))

    return asyncio.run(build())


def test_header_card_and_buttons_have_one_state(tab):
    outputs = tab.refresh_event["outputs"]
    for _ in range(3):
        found = dict(zip(outputs, tab.refresh(None, None, 0.9, None), strict=True))
        state = found[outputs[STRIP.index("State")]]["value"]
        ((_, card),) = found[tab.history.cards]["value"]
        assert card.splitlines()[0] == f"dog-1 · {state}"
        assert found[tab.stop]["visible"] is False  # the header has the button of the current run
        assert found[tab.strip.stop]["interactive"] is (state == "running")
        assert found[tab.resume]["interactive"] is (state == "stopped")


def test_texts_without_a_value_are_hidden(tab):
    now = dict(zip(STRIP, tab.strip.updates(Look(tab.queue), None), strict=False))
    shown = {label for label, update in now.items() if update["visible"] is True}
    assert shown == {"Run", "State", "Step", "Device"} - {"Device" if now["Device"]["value"] == "-" else ""}
    assert all(update["visible"] == "hidden" for label, update in now.items() if label not in shown)


def test_the_header_is_updated_as_watch_does_it(tab):
    tab.queue.calls = 0
    alone = tab.strip.refresh(None)
    tab.queue.calls = 0
    assert alone[-1] == tab.refresh(None, None, 0.9, {})[len(tab.strip.outputs) - 1]
