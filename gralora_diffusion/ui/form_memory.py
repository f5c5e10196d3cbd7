"""What the browser keeps of the Train form, so that it survives a reload: names, texts and numbers."""

import hashlib

import gradio as gr

from gralora_diffusion.options import Option
from gralora_diffusion.ui.config_form import BASE, FIELDS, IMAGES, MAX_TEXT, choices, initial_value
from gralora_diffusion.ui.train_questions import THIS, WHAT
from gralora_diffusion.ui.workspace import Workspace

NOTHING = {"fields": {}}  # what an unknown browser has kept


def browser_state(workspace: Workspace, form: str = "train") -> gr.BrowserState:
    """Where the browser keeps a form; what it holds is no secret from who uses the browser."""
    return gr.BrowserState(NOTHING, storage_key=storage_key(workspace, form), secret="none")


def storage_key(workspace: Workspace, form: str = "train") -> str:
    """Another one for each HOME, since the browser keeps values by address alone."""
    return f"gralora-{form}-{hashlib.sha256(str(workspace.root).encode()).hexdigest()[:16]}"


def kept(user: str | None, what: str, card: str, name: str, values: dict) -> dict:
    """What the browser keeps of a user's form: the fields that are not as at first, and no secret."""
    changed = {}
    for field, value in values.items():
        if FIELDS[field].kind != "secret" and value != initial_value(FIELDS[field]):
            changed[field] = value
    return dict(user=user, what=what, card=card, name=name, fields=changed)


def restored(saved, user: str | None, workspace: Workspace) -> dict | None:
    """{"what", "card", "name", "values": of all fields}; None where nothing is kept for this user.

    saved: whatever a browser sends.  A field whose value is no longer offered is as at first; an adapter of
    a renamed run gets its present name.
    """
    if not isinstance(saved, dict) or saved.get("user") != user or not isinstance(saved.get("fields"), dict):
        return None
    values = {name: initial_value(option) for name, option in FIELDS.items()}
    for name, value in saved["fields"].items():
        if name in FIELDS and FIELDS[name].kind in ("adapter", "allocation"):
            names = [*workspace.adapter_names(), *workspace.run_names()]
            value = workspace.name_now(value, names) or value
        if name in FIELDS and is_offered(FIELDS[name], value, workspace):
            values[name] = value
    what, card, name = (saved.get(key) for key in ("what", "card", "name"))
    return dict(
        what=what if what in [value for _, value in WHAT] else "subject",
        card=card if isinstance(card, str) and len(card) <= 8 else THIS,
        name=name if isinstance(name, str) and len(name) <= 64 else "",
        values=values,
    )


def is_offered(option: Option, value, workspace: Workspace) -> bool:
    """Whether a field may get this value: of the right type, short, and still there where it is a name."""
    if option.kind == "secret":
        return False
    if option.type is bool:
        return isinstance(value, bool)
    if not isinstance(value, str):
        return isinstance(value, int | float) and isinstance(initial_value(option), int | float)
    if len(value) > MAX_TEXT:
        return False
    if offered := choices(option):
        return value in offered or value == initial_value(option)
    if option.kind == "images":
        return value in workspace.set_names() or (not value and option.name != IMAGES)
    if option.kind == "adapter":
        return not value or value in workspace.adapter_names()
    return bool(value) or option.name != BASE
