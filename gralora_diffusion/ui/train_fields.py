"""The components of the Train tab's form: a field for each option, some always in sight, the others below."""

import gradio as gr

from gralora_diffusion.options import Option
from gralora_diffusion.ui.config_form import (
    BASE,
    FIELDS,
    MAX_TEXT,
    MIDDLE,
    choices,
    grouped_fields,
    initial_value,
    placeholder,
)
from gralora_diffusion.ui.workspace import Workspace

FIND = """(text) => {  // hide the options that do not contain all words
    let found = false;
    const words = text.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const group of document.querySelectorAll('#all-options .group-of-options')) {
        let any = false;
        for (const option of group.querySelectorAll('.option')) {
            const content = (option.id + ' ' + option.innerText).toLowerCase();
            const fits = words.every(word => content.includes(word));
            option.style.display = fits ? '' : 'none'; any = any || fits;
        }
        group.style.display = any ? '' : 'none'; found = found || any;
    }
    document.getElementById('no-option').style.display = found ? 'none' : 'block';
}"""


def build_middle(fields: dict, workspace: Workspace) -> gr.Textbox:
    """The options always in sight, added to {name: component}; returns the field of the run's name."""
    with gr.Row(elem_id="front"):
        name = gr.Textbox(
            label="Name of the run",
            info="Also the name of its folder under runs",
            max_length=64,
            elem_id="run-name",
            min_width=200,
        )
        for option in MIDDLE:
            fields[option] = build_field(FIELDS[option], workspace)
    return name


def build_groups(fields: dict, workspace: Workspace) -> None:
    """All other fields by group, added to {name: component}, with a search box."""
    groups = grouped_fields()
    count = sum(map(len, groups.values()))
    with gr.Accordion(f"All other options ({count})", open=False, elem_id="all-options"):
        find = gr.Textbox(
            label="Find an option",
            info="By words of its name or help",
            placeholder="weight decay",
            elem_id="find-option",
        )
        gr.Markdown("No option has all of these words.", elem_id="no-option", elem_classes="hint")
        for title, options in groups.items():
            if not options:
                continue
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
        info=option.hint,
        elem_id=f"option-{option.name}",
        elem_classes="option",
        min_width=220,
    )
    value = initial_value(option)
    offered = names_offered(option, workspace)
    if offered is not None:
        return gr.Dropdown(offered, value=value, allow_custom_value=True, **common)
    if option.type is bool:
        return gr.Checkbox(bool(value), **common)
    if choices(option) and value == "":
        return gr.Dropdown([(option.blank, ""), *choices(option)], value="", **common)
    if choices(option):
        return gr.Dropdown(list(choices(option)), value=value, **common)
    if option.type in (int, float) and value != "":
        return gr.Number(value, step=1 if option.type is int else 0.1, **common)
    return gr.Textbox(  # for optional numbers too, since a Number cannot be blank
        str(value),
        placeholder=placeholder(option, None),
        max_lines=1,
        max_length=MAX_TEXT,
        type="password" if option.kind == "secret" else "text",
        **common,
    )


def names_offered(option: Option, workspace: Workspace) -> list | None:
    """The choices of a field whose values are names in the workspace now; None for other fields."""
    if option.name == BASE:
        return workspace.base_choices()
    if option.kind == "images":
        own = workspace.set_names()
        return own if initial_value(option) else [("none", ""), *own]
    if option.kind == "adapter":
        return [("none", ""), *workspace.adapter_choices()]
    if option.kind == "allocation":
        return [("none", ""), *workspace.runs_with_ranks()]
    return None
