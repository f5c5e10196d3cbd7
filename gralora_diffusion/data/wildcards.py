"""Wildcards in captions: "a {red|blue} dog" is trained as "a red dog" and as "a blue dog".

As in sd-scripts, {{text}} is {text} in braces and {text} is text; here a wildcard may hold others.
"""

import hashlib
import re

import torch

from gralora_diffusion.seeding import generator

FORMS = 16  # of a caption; bounded, since their embeddings are cached
GROUP = re.compile(r"\{([^{}]+)\}")  # the innermost
CHOICE = re.compile(r"\{[^{}]*\|[^{}]*\}")
ESCAPED = re.compile(r"\{\{([^{}]*)\}\}")
OPEN, CLOSE = "\ue000", "\ue001"  # stand for escaped braces


def has_wildcards(caption: str) -> bool:
    """Whether there is something to choose in the caption."""
    return bool(CHOICE.search(ESCAPED.sub("", caption)))


def wildcard_forms(caption: str) -> list[str]:
    """All forms of a caption, or FORMS of them drawn by the caption alone where there are more.

    A form that is there twice comes twice as often. Later runs find the embeddings in the cache.
    """
    escaped = ESCAPED.sub(rf"{OPEN}\1{CLOSE}", caption)
    forms = [escaped]
    while any(GROUP.search(form) for form in forms):
        grown = []
        for form in forms:
            grown += first_choice(form)
        if len(grown) > FORMS:
            forms = [drawn(escaped, number) for number in range(FORMS)]
            break
        forms = grown
    return [" ".join(form.replace(OPEN, "{").replace(CLOSE, "}").split()) for form in forms]


def first_choice(form: str) -> list[str]:
    """The form with each alternative of its first wildcard; itself without one."""
    group = GROUP.search(form)
    if group is None:
        return [form]
    before, after = form[: group.start()], form[group.end() :]
    return [before + alternative + after for alternative in group[1].split("|")]


def drawn(caption: str, number: int) -> str:
    """The form of this number of a caption with many."""
    key = int.from_bytes(hashlib.sha256(caption.encode(errors="replace")).digest()[:7], "big")
    random = generator(key, number)
    while GROUP.search(caption):
        choices = first_choice(caption)
        caption = choices[torch.randint(len(choices), (1,), generator=random).item()]
    return caption
