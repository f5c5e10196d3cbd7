"""Updates of the parts of a page that a browser has not got yet."""

from collections.abc import Callable

import gradio as gr


class Changes:
    """Updates of parts of the page, skipped where a part has not changed since the browser got it.

    before: {part: its version} of the browser; versions: those of now.
    """

    def __init__(self, before: dict | None):
        self.before = before or {}
        self.versions = {}
        self.updates = []

    def add(self, part: str, version, update: Callable) -> None:
        """update: makes the value of the part, where it is needed."""
        self.versions[part] = version
        changed = self.before.get(part) != version
        self.updates.append(update() if changed else gr.skip())
