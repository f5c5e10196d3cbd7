"""What all handlers of the page share: errors as sentences, messages, buttons that generate."""

import functools
import html
import inspect
import sys
import traceback

import gradio as gr

from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.ui.into_view import showing
from gralora_diffusion.ui.tab_words import tab_words

PRIVATE = dict(api_visibility="private")  # not in the page's API
QUIET = dict(queue=False, show_progress="hidden", api_visibility="private")  # an event that takes no time


def browser_error(error: Exception) -> gr.Error:
    """An error as one sentence, without paths of the machine or a traceback; escaped, since it is HTML."""
    from gralora_diffusion.devices import is_out_of_memory  # torch takes seconds

    if isinstance(error, gr.Error):
        return error
    if isinstance(error, ConfigError | TrainingError):
        text = tab_words(str(error))
    elif isinstance(error, OSError):
        text = f"a file could not be read or written: {error.strerror or type(error).__name__}"
    elif is_out_of_memory(error):
        text = "there is not enough memory: stop other runs, or generate fewer or smaller images"
    else:
        traceback.print_exception(error, file=sys.stderr)
        text = "internal error: see the terminal where the page was started"
    return gr.Error(html.escape(text, quote=False), print_exception=False, duration=15)


def guarded(handler):
    """The handler of an event, with browser_error() for whatever it raises."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def wrapped(*args, **kwargs):
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise browser_error(error) from None
    else:

        @functools.wraps(handler)
        def wrapped(*args, **kwargs):
            try:
                return handler(*args, **kwargs)
            except Exception as error:
                raise browser_error(error) from None

    return wrapped


def optional_number(text, what: str) -> float | None:
    """The number in a text field that may be blank; raises ConfigError, which names the field."""
    text = str(text if text is not None else "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"the {what} is {text[:80]!r}; it must be a number, or blank") from None


def unless_same(value, before):
    """An update to `value`, skipped if the browser sent it: it may have been edited since."""
    return gr.skip() if value == before else value


def list_update(choices: list, value, before) -> dict:
    """An update of a list's choices, and of what is chosen unless the browser sent it."""
    return gr.update(choices=choices) if value == before else gr.update(choices=choices, value=value)


def notify(text: str) -> None:
    """Show a message on the page for some seconds."""
    if text:
        gr.Info(html.escape(text, quote=False), duration=10)


def on_end(event, *args, **kwargs) -> None:
    """What event.then() is documented to do; in Gradio 6.31 it does nothing after a failure."""
    for ended in (event.success, event.failure):
        ended(*args, **kwargs)


def connect_generation(
    button: gr.Button, stop: gr.Button, handler, inputs: list, outputs: list, *, needing: tuple = (), **event
):
    """`button` runs the handler and is disabled until it has ended, since another click would be lost.

    `stop` ends it, and is enabled only meanwhile.  needing: other buttons, which need what is generated and
    are disabled meanwhile.  `show_progress_on` is scrolled into view.  Returns the event of the handler.
    """
    others = [button, *needing]
    begin, end = (enabled([stop_on, *[not stop_on] * len(others)]) for stop_on in (True, False))
    disabled = button.click(None, None, [stop, *others], js=begin, **PRIVATE)
    if progress := event.get("show_progress_on"):
        disabled.then(None, None, None, js=showing(progress.elem_id), **PRIVATE)
    event |= dict(concurrency_id="gpu", concurrency_limit=1)
    event |= dict(trigger_mode="multiple")  # "once" skips a click that follows the end at once
    generated = disabled.then(guarded(handler), inputs, outputs, **event)
    on_end(generated, None, None, [stop, *others], js=end, **PRIVATE)
    stop.click(None, cancels=[generated], queue=False, **PRIVATE)  # a canceled event counts as failed
    return generated


def enabled(states: list[bool]) -> str:
    """JavaScript that enables or disables as many outputs."""
    updates = [f"{{__type__: 'update', interactive: {str(on).lower()}}}" for on in states]
    return f"() => [{', '.join(updates)}]"
