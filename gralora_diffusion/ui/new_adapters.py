"""A list of adapters that is in sight when a run ends gets the run's adapter."""

import json
from collections.abc import Callable

import gradio as gr

from gralora_diffusion.ui.handlers import PRIVATE
from gralora_diffusion.ui.status_strip import ACTIVE

COUNT = """(state, count) => {{  // count the runs that ended while the list was in sight
    const inSight = document.getElementById({id})?.offsetParent;
    return inSight && !{active}.includes(state) ? count + 1 : count;
}}"""


def connect_new_adapters(state: gr.Textbox, lists_event: dict) -> None:
    """state: of the status strip; lists_event: of a tab, its list of adapters the first input and output."""
    adapters = lists_event["inputs"][0]
    js = COUNT.format(id=json.dumps(adapters.elem_id), active=json.dumps(ACTIVE))
    ended = gr.Number(0, visible="hidden")
    state.change(None, [state, ended], ended, js=js, **PRIVATE)
    ended.change(**lists_event | dict(fn=keeping(lists_event["fn"])))


def keeping(lists: Callable) -> Callable:
    """lists(chosen, suggested, ...) by which what is chosen stays chosen, also where the tab suggested it."""

    def kept(chosen, suggested, *others) -> tuple:
        *updates, newest = lists(chosen, None, *others)
        return *updates, gr.skip() if chosen else newest

    return kept
