"""Compare: the blind comparison, two images without names and three buttons."""

from functools import partial

import gradio as gr

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import blind
from gralora_diffusion.ui.grid import AGAIN, Cell
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded
from gralora_diffusion.ui.served import check_served, save_served
from gralora_diffusion.ui.workspace import Workspace

ABOUT = (
    "Which is better? Two images of the same prompt and seed, side by side in random order, without names. "
    "The names and the count are revealed at the end."
)
BUTTONS = (("left", "Left is better"), ("tie", "No difference"), ("right", "Right is better"))


class BlindComparison:
    """An accordion of Compare; `refresh` is the event that displays the comparison as it is now."""

    def __init__(self, workspace: Workspace, cells: gr.State):
        self.workspace = workspace
        self.shown = gr.State("")  # the id of the trial that this browser displays
        with gr.Accordion("Blind comparison", open=False, elem_id="blind") as self.accordion:
            gr.Markdown(ABOUT, elem_classes="hint")
            self.build_start()
            with gr.Column(visible=False) as self.trial:
                self.build_trial()
            self.result = gr.Textbox(
                label="Result of the last comparison",
                lines=2,
                interactive=False,
                visible=False,
                elem_id="blind-result",
            )
        outputs = [self.trial, self.text, self.left, self.right, self.result, self.shown, self.accordion]
        self.refresh = dict(fn=guarded(self.view), inputs=None, outputs=outputs, **QUIET)
        self.groups = dict(fn=guarded(groups), inputs=cells, outputs=[self.first, self.second], **QUIET)
        names = [cells, self.first, self.second]
        self.start.click(guarded(self.begin), names, outputs, **PRIVATE)
        for choice, button in self.buttons.items():
            button.click(guarded(partial(self.vote, choice)), self.shown, outputs, **PRIVATE)
        self.end.click(guarded(self.reveal), None, outputs, **PRIVATE)

    def build_start(self) -> None:
        with gr.Row(elem_classes="tight"):
            self.first = gr.Dropdown([], label="First", elem_id="blind-first", min_width=160)
            self.second = gr.Dropdown([], label="Second", elem_id="blind-second", min_width=160)
            self.start = gr.Button("Start blind comparison", elem_id="blind-start", min_width=160)

    def build_trial(self) -> None:
        self.text = gr.Textbox(label="Prompt", interactive=False, elem_id="blind-text")
        with gr.Row():
            self.left = self.build_side("Left", "blind-left")
            self.right = self.build_side("Right", "blind-right")
        with gr.Row(elem_classes="tight"):
            self.buttons = {}
            for choice, label in BUTTONS:
                self.buttons[choice] = gr.Button(label, elem_id=f"blind-vote-{choice}", min_width=100)
            self.end = gr.Button("End and reveal", elem_id="blind-end", min_width=110)

    @staticmethod
    def build_side(label: str, name: str) -> gr.Image:
        return gr.Image(
            label=label,
            type="filepath",
            format="png",
            interactive=False,
            buttons=["fullscreen"],
            height=340,
            min_width=150,
            elem_id=name,
        )

    def begin(self, cells: list, first: str, second: str) -> tuple:
        found = [cell for cell in cells or [] if isinstance(cell, Cell)]
        if not found or not isinstance(first, str) or not isinstance(second, str):
            raise ConfigError("generate a grid first, then choose two of its adapters or strengths")
        check_served([cell.path for cell in found], AGAIN)
        blind.start(self.workspace, found, first, second)
        return self.view()

    def vote(self, choice: str, shown: str) -> tuple:
        blind.vote(self.workspace, shown, choice)
        return self.view()

    def reveal(self) -> tuple:
        blind.end(self.workspace)
        return self.view()

    def view(self) -> tuple:
        """Updates of the outputs: the trial that is to be judged, or the result, or nothing."""
        comparison = blind.load(self.workspace)
        hidden = gr.update(visible=False)
        if comparison is None:
            return hidden, "", None, None, hidden, "", gr.skip()
        trial = comparison.current
        if trial is None:
            result = gr.update(value=blind.result_text(comparison), visible=True)
            return hidden, "", None, None, result, "", gr.skip()
        left, right = (self.served(path) for path in blind.sides_of(self.workspace, trial))
        label = f"{comparison.votes + 1} of {len(comparison.trials)}: the prompt"
        prompt = gr.update(value=trial.prompt, label=label)
        return gr.update(visible=True), prompt, left, right, hidden, trial.id, gr.update(open=True)

    def served(self, path) -> str:
        return save_served(self.workspace, blind.open_image(path), "image.png")


def groups(cells: list) -> tuple:
    """The groups of a grid's cells; two adapters are chosen at their highest strength, or two strengths."""
    cells = [cell for cell in cells or [] if isinstance(cell, Cell)]
    names = list(dict.fromkeys(cell.group for cell in cells))
    strongest = sorted(cells, key=lambda cell: -cell.strength)
    of_adapters = {}
    for cell in strongest:
        of_adapters.setdefault(cell.adapter, cell.group)
    wanted = [*of_adapters.values(), *(cell.group for cell in strongest)]
    chosen = list(dict.fromkeys(wanted))[:2]
    first, second = [*sorted(chosen, key=names.index), None, None][:2]
    return gr.update(choices=names, value=first), gr.update(choices=names, value=second)
