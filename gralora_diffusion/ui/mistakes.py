"""What is wrong with the Train form: one sentence, above Start and at the field that it is about."""

import html
import json

import gradio as gr

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.config_form import FIELDS

NAME = "name"  # what a ConfigError about the run's name has instead of an option
MARK = """(text) => {  // mistakes as [field's id, sentence], displayed at their fields
    for (const old of document.querySelectorAll('.mistake')) old.remove();
    for (const old of document.querySelectorAll('.mistaken')) old.classList.remove('mistaken');
    for (const [id, sentence] of JSON.parse(text || '[]')) {
        const field = document.getElementById(id);
        if (!field) continue;
        field.classList.add('mistaken');
        const note = field.appendChild(document.createElement('p'));
        note.className = 'mistake'; note.textContent = sentence; note.setAttribute('role', 'alert');
    }
}"""
MARK_AND_SHOW = f"""(text) => {{  // and opens the list for a field in it, which is built only then
    const mark = {MARK};
    const [id] = JSON.parse(text || '[]')[0] ?? [];
    const inSight = () => document.getElementById(id)?.checkVisibility();
    const show = frames => {{
        if (id && !inSight() && frames > 0) return requestAnimationFrame(() => show(frames - 1));
        mark(text);
        document.getElementById(id)?.scrollIntoView({{block: 'center', behavior: 'smooth'}});
    }};
    if (id && !inSight()) {{
        for (const hidden of document.querySelectorAll('#all-options [style*="display: none"]'))
            hidden.style.display = '';
        const button = document.querySelector('#all-options > button');
        if (button && !button.classList.contains('open')) button.click();
    }}
    show(120);
}}"""


def field_of(problem: ConfigError) -> str | None:
    """The id of the field that is wrong; None where no field of the form is."""
    if problem.option == NAME or problem.option == "output_dir":
        return "run-name"
    return f"option-{problem.option}" if problem.option in FIELDS else None


def mistake_updates(problem: ConfigError | None) -> tuple:
    """Updates of the box above Start and of the marks: the sentence is in the box, and at its field."""
    if problem is None:
        return gr.update(visible=False), "[]"
    field = field_of(problem)
    marks = [[field, str(problem)]] if field else []
    return gr.update(value=str(problem), visible=True), json.dumps(marks)


def refusal(problem: ConfigError) -> gr.Error:
    """The answer to a request that is refused; the page has the sentence at its field already."""
    return gr.Error(html.escape(str(problem), quote=False), visible=False, print_exception=False)
