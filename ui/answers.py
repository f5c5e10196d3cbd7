"""What every handler of the page does with a mistake: one sentence for the browser, never a path of the machine or a stack of calls."""

import functools
import html
import inspect
import sys
import traceback

import gradio as gr

from gralora_diffusion.config import ConfigError, TrainingError


def said(error: Exception) -> gr.Error:
    """A sentence, escaped: the page shows messages as HTML."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, ConfigError | TrainingError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"a file could not be read or written: {error.strerror or type(error).__name__}"
    elif type(error).__name__ == "OutOfMemoryError":  # torch's
        text = "there is not enough memory: stop other runs, or take fewer or smaller pictures"
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
