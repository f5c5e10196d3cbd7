"""A list of adapters that is in sight when a run ends gets the run's adapter."""

import json
from collections.abc import Callable

import gradio as gr

from gralora_diffusion.ui.handlers import PRIVATE
from gralora_diffusion.ui.status_strip import ACTIVE, StatusStrip

COUNT_ENDED = """(run, state, before, count) => {{  // the runs that ended while the list was in sight
    const ended = run !== before || !{active}.includes(state);  // the next run of a queue starts at once
    const inSight = document.getElementById({id})?.offsetParent;
    return [run, inSight && ended ? count + 1 : count];
}}"""


def connect_new_adapters(strip: StatusStrip, lists_event: dict) -> None:
    """lists_event: of a tab, its list of adapters the first input and output."""
    adapters = lists_event["inputs"][0]
    js = COUNT_ENDED.format(id=json.dumps(adapters.elem_id), active=json.dumps(ACTIVE))
    before, ended = gr.Textbox(visible="hidden"), gr.Number(0, visible="hidden")
    changed = [strip.run.change, strip.state.change]
    gr.on(changed, None, [strip.run, strip.state, before, ended], [before, ended], js=js, **PRIVATE)
    ended.change(**lists_event | dict(fn=keeping(lists_event["fn"])))


def keeping(lists: Callable) -> Callable:
    """lists(chosen, suggested, ...) by which what is chosen stays chosen, also where the tab suggested it."""

    def kept(chosen, suggested, *others) -> tuple:
        *updates, newest = lists(chosen, None, *others)
        return *updates, gr.skip() if chosen else newest

    return kept
