"""The three questions at the top of Train, what, which base and which card, and the options that follow."""

from typing import NamedTuple

import gradio as gr

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import from_flat
from gralora_diffusion.presets import BY_CARD, PRESETS, largest_fitting, presets_of
from gralora_diffusion.ui.card import NOT_KNOWN, device_memory, device_name
from gralora_diffusion.ui.config_form import BASE, FIELDS, IMAGES, form_values
from gralora_diffusion.ui.train_fields import build_field
from gralora_diffusion.ui.workspace import BUNDLED, Workspace

WHAT = (("A subject: one person, animal or thing", "subject"), ("A style: the look of all images", "style"))
THIS = "this"  # the card of this computer
FOLLOWING = sorted(set().union(*(preset["options"] for preset in PRESETS.values())))  # from the answers
OWN_IMAGES = (
    "**The demo model cannot learn photos.** It generates emoji of 64 x 64 pixels and lets you try the "
    "page without a download. For your own images, choose a real base model, such as SDXL 1.0."
)
NO_GPU = (
    "**This computer has no GPU.** On a CPU, SDXL takes minutes per step: "
    "use the equivalent command on a computer with a GPU."
)
SMALL_GPU = "**The GPU of this computer may be too small.** Compare its free memory with the estimate below."


class Questions(NamedTuple):
    """The fields that are no options, and the warnings, each below the answer that it is about."""

    what: gr.Radio
    card: gr.Dropdown
    base_warning: gr.Markdown
    card_warning: gr.Markdown


class Answers(NamedTuple):
    """what: subject or style.  base: a value of Workspace.base().  card: THIS, or a size such as 12gb."""

    what: str
    base: str | None
    card: str


def build_questions(fields: dict, workspace: Workspace) -> Questions:
    """The fields of the questions: those of options are added to {name: component}, the others returned."""
    with gr.Row(elem_id="questions", equal_height=True):
        with gr.Column(min_width=260, elem_classes="question"):
            title("1. What are you training?")
            what = gr.Radio(
                list(WHAT),
                value="subject",
                label="What are you training?",
                show_label=False,
                container=False,
                elem_id="what",
            )
            fields[IMAGES] = build_field(FIELDS[IMAGES], workspace)
        with gr.Column(min_width=260, elem_classes="question"):
            title("2. Which base model?")
            fields[BASE] = build_field(FIELDS[BASE], workspace)
            base_warning = gr.Markdown(visible=False, elem_id="base-warning", elem_classes="warning")
        with gr.Column(min_width=260, elem_classes="question"):
            title("3. Which graphics card?")
            card = gr.Dropdown(
                card_choices("subject"),
                value=THIS,
                label="Graphics card (GPU)",
                info="Sets rank, steps, batch size and precision to what fits its memory",
                elem_id="card",
            )
            card_warning = gr.Markdown(visible=False, elem_id="card-warning", elem_classes="warning")
    return Questions(what, card, base_warning, card_warning)


def title(text: str) -> None:
    gr.Markdown(f"#### {text}", elem_classes="group-title")


def card_choices(what: str) -> list[tuple[str, str]]:
    """(what the list displays, its value): this computer's card, and the sizes that have presets."""
    name = device_name()
    own = "This computer" if name == NOT_KNOWN else f"This computer: {name}"
    sizes = [preset.rpartition("-")[2] for preset in presets_of(what)]
    return [(own, THIS), *((f"{size.removesuffix('gb')} GB", size) for size in sizes)]


def base_warning_of(base: str | None, image_set: str | None) -> str:
    """Why the base, a value of Workspace.base(), does not suit the dataset, in Markdown; "" where it does."""
    return OWN_IMAGES if base is None and image_set not in (None, "", BUNDLED) else ""


def card_warning_of(answers: Answers) -> str:
    """Why the card does not suit the base, in Markdown; "" where it does."""
    if answers.base is None or answers.card != THIS or device_name() == NOT_KNOWN:
        return ""
    free = device_memory()
    if free is None:
        return NO_GPU
    return "" if largest_fitting(answers.what, free) else SMALL_GPU


def preset_of(answers: Answers) -> str | None:
    """The preset that follows from the answers; None, for the defaults: on the demo model, without a GPU."""
    if answers.base is None or answers.what not in BY_CARD:
        return None
    presets = presets_of(answers.what)
    if answers.card != THIS:
        wanted = f"{answers.what}-{answers.card}"
        return wanted if wanted in presets else presets[0]
    free = device_memory()
    return None if free is None else largest_fitting(answers.what, free) or presets[0]


def recommended(preset: str | None, workspace: Workspace) -> dict:
    """{option: value of its field} of a preset, for all options that any preset has."""
    options = PRESETS[preset]["options"] if preset else {}
    filled = form_values(from_flat(TrainConfig, options), workspace)
    return {name: filled[name] for name in FOLLOWING}


def with_answers(values: dict, last_base: str | None, now: Answers, workspace: Workspace) -> dict:
    """The form's values after other answers.

    What was changed by hand, to a value that no preset has, stays; unless the demo model is left or chosen.
    """
    new = recommended(preset_of(now), workspace)
    if (last_base is None) != (now.base is None):
        return values | new
    known = [recommended(preset, workspace) for preset in (None, *PRESETS)]
    untouched = [name for name in new if values.get(name) in [each[name] for each in known]]
    return values | {name: new[name] for name in untouched}
