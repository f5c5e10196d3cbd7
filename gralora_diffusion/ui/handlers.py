"""What every handler of the page does with a mistake: one sentence for the browser, never a path of the machine or a stack of calls.

And what a button does while it draws.
"""

import functools
import html
import inspect
import sys
import traceback

import gradio as gr

from gralora_diffusion.options import ConfigError, TrainingError


def said(error: Exception) -> gr.Error:
    """A sentence, escaped: the page shows messages as HTML."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, ConfigError | TrainingError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"a file could not be read or written: {error.strerror or type(error).__name__}"
    elif type(error).__name__ == "OutOfMemoryError":  # torch's
        text = "there is not enough memory: stop other runs, or take fewer or smaller images"
    else:
        traceback.print_exception(error, file=sys.stderr)
        text = "this did not work; the window in which the page was started says why"
    return gr.Error(html.escape(text, quote=False), print_exception=False, duration=15)


def plain(handler):
    """The handler, its errors as sentences."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def wrapped(*args, **kwargs):
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise said(error) from None
    else:

        @functools.wraps(handler)
        def wrapped(*args, **kwargs):
            try:
                return handler(*args, **kwargs)
            except Exception as error:
                raise said(error) from None

    return wrapped


def tell(text: str, warn: bool = False) -> None:
    """A message on the page."""
    if text:
        (gr.Warning if warn else gr.Info)(html.escape(text, quote=False), duration=10)


def whatever_came(event, *args, **kwargs) -> None:
    """What event.then() is documented to do; in Gradio 6.31 it does not come after a failure."""
    for ended in (event.success, event.failure):
        ended(*args, **kwargs)


def draws(button: gr.Button, halt: gr.Button, fn, inputs: list, outputs: list, **event):
    """`button` runs `fn` and cannot be pressed again until it has ended: a press in between would be lost.  `halt` ends it.  Returns the event."""
    rest, wake = (f"() => ({{__type__: 'update', interactive: {free}}})" for free in ("false", "true"))
    resting = button.click(None, None, button, js=rest, api_visibility="private")
    drawn = resting.then(plain(fn), inputs, outputs, concurrency_id="gpu", concurrency_limit=1, **event)
    whatever_came(drawn, None, None, button, js=wake, api_visibility="private")
    halt.click(None, cancels=[drawn], queue=False, api_visibility="private")  # what is cancelled has failed
    return drawn
