"""A text that the server suggests for a field; the browser drops it where the field was edited meanwhile."""

import itertools
import json

import gradio as gr

from gralora_diffusion.ui.handlers import PRIVATE

TAKE = """(suggested, now) => {
    const {value, before} = JSON.parse(suggested);
    return (now ?? '') === before ? value : {__type__: 'update'};
}"""
_numbers = itertools.count()  # or the same text, suggested again, would be no change


class Suggestion:
    """`received` is the output of the events that suggest a text for `field`."""

    def __init__(self, field: gr.Textbox):
        self.received = gr.Textbox(visible="hidden")
        self.received.change(None, [self.received, field], field, js=TAKE, **PRIVATE)

    @staticmethod
    def of(value: str, before: str | None):
        """What `received` gets; before: the text of the field when the suggestion was asked for."""
        if value == (before or ""):
            return gr.skip()
        return json.dumps(dict(value=value, before=before or "", number=next(_numbers)))
