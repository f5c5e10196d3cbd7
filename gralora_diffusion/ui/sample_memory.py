"""What the browser keeps of the fields of Sample, so that they survive a reload, as those of Train do."""

import gradio as gr

from gralora_diffusion.config.choices import SAMPLERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.adapter_files import AS_TRAINED
from gralora_diffusion.ui.sample_fields import (
    DEFAULT_SCHEDULER,
    MORE_ADAPTERS,
    NAMES,
    NO_ADAPTER,
    SampleFields,
)
from gralora_diffusion.ui.sampler import MAX_SEED
from gralora_diffusion.ui.workspace import Workspace


def kept(user: str | None, fields: SampleFields, values: dict, filled: dict) -> dict:
    """What the browser keeps of a user's fields: those that are not as at first.

    filled: the adapter that the tab chose by itself, and its prompt, which are not kept: there may be a newer
    one then.
    """
    changed = {}
    for name, value in values.items():
        if value != fields[name].value and value != filled.get(name):
            changed[name] = value
    return dict(user=user, fields=changed)


def restored(saved, user: str | None, fields: SampleFields, workspace: Workspace) -> dict:
    """The values to fill in; {} where nothing is kept for this user.

    saved: whatever a browser sends.  A field whose value is no longer offered is as at first; an adapter of
    a renamed run gets its present name.
    """
    if not isinstance(saved, dict) or saved.get("user") != user or not isinstance(saved.get("fields"), dict):
        return {}
    values = {name: saved["fields"][name] for name in NAMES if name in saved["fields"]}
    for name in values.keys() & {"adapter", *MORE_ADAPTERS}:
        values[name] = workspace.name_now(values[name], workspace.adapter_names()) or values[name]
    return {name: value for name, value in values.items() if is_offered(fields, name, value, workspace)}


def is_offered(fields: SampleFields, name: str, value, workspace: Workspace) -> bool:
    """Whether a field may get this value: one that a person could have given it, and still there."""
    field = fields[name]
    if isinstance(field, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(field, gr.Slider | gr.Number):
        whole = isinstance(field, gr.Number) or field.step == 1
        low, high = (field.minimum, field.maximum) if isinstance(field, gr.Slider) else (0, MAX_SEED)
        is_number = type(value) is int or (type(value) is float and not whole)
        return is_number and low <= value <= high
    if not isinstance(value, str):
        return False
    if isinstance(field, gr.Textbox):
        return len(value) <= field.max_length
    if name == "scheduler":
        return value in (DEFAULT_SCHEDULER, *SAMPLERS)
    if name == "base":
        return value == AS_TRAINED or is_base(workspace, value)
    return value in workspace.adapter_names() or (name in MORE_ADAPTERS and value == NO_ADAPTER)


def is_base(workspace: Workspace, name: str) -> bool:
    try:
        workspace.base(name)
    except ConfigError:
        return False
    return bool(name)
