"""Texts of people within Markdown."""

import re


def literal(text: str) -> str:
    """The text for a gr.Markdown, which shows it as it is, without formatting, links or HTML."""
    return re.sub(r"[^\w\s]|_", lambda found: f"&#{ord(found[0])};", text)
