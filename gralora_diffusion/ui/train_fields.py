"""The components of the Train tab's form: a field for each option, and the groups below those in front."""

import gradio as gr

from gralora_diffusion.options import Option
from gralora_diffusion.ui.config_form import (
    BASE,
    FIELDS,
    FRONT,
    IMAGES,
    MAX_TEXT,
    PRESET_NAMES,
    choices,
    grouped_fields,
    hint,
    placeholder,
)
from gralora_diffusion.ui.workspace import BUNDLED, EMBEDDED, Workspace

FIND = """(text) => {  // hide the options that do not contain all words
    const words = text.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const group of document.querySelectorAll('#all-options .group-of-options')) {
        let any = false;
        for (const option of group.querySelectorAll('.option')) {
            const content = (option.id + ' ' + option.innerText).toLowerCase();
            const fits = words.every(word => content.includes(word));
            option.style.display = fits ? '' : 'none'; any = any || fits;
        }
        group.style.display = any ? '' : 'none';
    }
}"""
MARK = """(text) => {  // mistakes as [field's id, sentence], displayed at their fields
    for (const old of document.querySelectorAll('.mistake')) old.remove();
    for (const old of document.querySelectorAll('.mistaken')) old.classList.remove('mistaken');
    for (const [id, sentence] of JSON.parse(text || '[]')) {
        const field = document.getElementById(id);
        if (!field) continue;
        field.classList.add('mistaken');
        const note = field.appendChild(document.createElement('p'));
        note.className = 'mistake'; note.textContent = sentence;
    }
}"""
MARK_AND_SHOW = f"""(text) => {{
    ({MARK})(text);
    document.querySelector('.mistaken')?.scrollIntoView({{block: 'nearest', behavior: 'smooth'}});
}}"""


def build_front(fields: dict, workspace: Workspace) -> gr.Dropdown:
    """The fields above the groups, added to {name: component}; returns the preset's."""
    before = FRONT[:2]
    with gr.Row(elem_id="front"):
        for name in before:
            fields[name] = build_field(FIELDS[name], workspace)
        preset = gr.Dropdown(
            list(PRESET_NAMES),
            value="default",
            label="Preset",
            info="subject and style: what fits this GPU; presets are for SDXL",
            elem_id="preset",
            min_width=220,
        )
        for name in FRONT[len(before) :]:
            fields[name] = build_field(FIELDS[name], workspace)
    return preset


def build_groups(fields: dict, workspace: Workspace) -> None:
    """All other fields by group, added to {name: component}, with a search box."""
    with gr.Accordion("All options", open=False, elem_id="all-options"):
        find = gr.Textbox(label="Find an option", placeholder="learning rate", elem_id="find-option")
        for title, options in grouped_fields().items():
            with gr.Group(elem_classes="group-of-options"):
                gr.Markdown(f"#### {title}", elem_classes="group-title")
                with gr.Row(elem_classes="options"):
                    for option in options:
                        fields[option.name] = build_field(option, workspace)
    find.change(None, find, None, js=FIND)


def build_field(option: Option, workspace: Workspace):
    """The component of an option."""
    common = dict(
        label=option.label,
        info=hint(option),
        elem_id=f"option-{option.name}",
        elem_classes="option",
        min_width=220,
    )
    if option.name == IMAGES:
        return gr.Dropdown(workspace.set_names(), value=BUNDLED, allow_custom_value=True, **common)
    if option.kind == "images":
        return gr.Dropdown(["", *workspace.set_names()], value="", allow_custom_value=True, **common)
    if option.kind == "adapter":
        return gr.Dropdown(["", *workspace.adapter_names()], value="", allow_custom_value=True, **common)
    if option.name == BASE:
        return gr.Dropdown(workspace.base_names(), value=EMBEDDED, allow_custom_value=True, **common)
    if option.type is bool:
        return gr.Checkbox(bool(option.default), **common)
    if choices(option) and option.default is None:
        return gr.Dropdown([("by default", ""), *choices(option)], value="", **common)
    if choices(option):
        return gr.Dropdown(list(choices(option)), value=option.default, **common)
    if option.type in (int, float) and option.default is not None:
        return gr.Number(option.default, step=1 if option.type is int else 0.1, **common)
    return gr.Textbox(  # for optional numbers too, since a Number cannot be blank
        "" if option.default in (None, {}) else str(option.default),
        placeholder=placeholder(option),
        max_lines=1,
        max_length=MAX_TEXT,
        type="password" if option.kind == "secret" else "text",
        **common,
    )
