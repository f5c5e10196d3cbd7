"""Dataset: captions and masks from models, with progress, and a button that stops."""

import gradio as gr

from gralora_diffusion.ui import set_models
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, connect_generation, guarded, on_end
from gralora_diffusion.ui.workspace import Workspace

MOST_LINES = 200  # of the results


class SetModels:
    """An accordion of the Dataset tab; refresh: the event that displays the set again."""

    def __init__(self, workspace: Workspace, chosen: gr.Dropdown, refresh: dict):
        self.workspace = workspace
        self.chosen = chosen
        with gr.Accordion("Captions and masks from a model", open=False, elem_id="set-models") as accordion:
            with gr.Row(equal_height=False):
                with gr.Column(min_width=260):
                    self.build_captions()
                with gr.Column(min_width=260):
                    self.build_masks()
            self.results = gr.Textbox(
                label="Results",
                lines=4,
                max_lines=8,
                interactive=False,
                visible=False,
                elem_id="model-results",
            )
        accordion.expand(guarded(self.models), None, [self.captions, self.captioner, self.hint], **QUIET)
        self.connect(refresh)

    def build_captions(self) -> None:
        names = set_models.captioners(self.workspace)
        self.hint = gr.Markdown(set_models.NO_CAPTIONER, visible=not names, elem_id="no-captioner")
        with gr.Column(visible=bool(names)) as self.captions:
            self.captioner = gr.Dropdown(
                names, value=names[0] if names else None, label="Captioning model", elem_id="captioner"
            )
            self.prefix = gr.Textbox(
                label="Prefix for new captions",
                placeholder="a photo of sks dog",
                max_length=200,
                elem_id="caption-prefix",
            )
            self.overwrite = gr.Checkbox(False, label="Replace existing captions", elem_id="replace-captions")
            with gr.Row(elem_classes="tight"):
                self.write = gr.Button("Write captions", elem_id="write-captions", min_width=120)
                self.stop_captions = gr.Button("Stop", elem_id="stop-captions", min_width=70)

    def build_masks(self) -> None:
        names = set_models.saliency_models()
        gr.Markdown(set_models.NO_SALIENCY, visible=not names, elem_id="no-saliency")
        with gr.Column(visible=bool(names)):
            self.saliency = gr.Dropdown(
                names,
                value=names[0] if names else None,
                label="Mask model",
                info="Finds what stands out; used with Masked loss in Train. Check every mask.",
                elem_id="saliency",
            )
            self.threshold = gr.Slider(
                0.05,
                0.95,
                0.5,
                step=0.05,
                label="Threshold",
                info="Lower selects more of the image",
                elem_id="mask-threshold",
            )
            self.overwrite_masks = gr.Checkbox(False, label="Replace existing masks", elem_id="replace-masks")
            with gr.Row(elem_classes="tight"):
                self.make = gr.Button("Make masks", elem_id="make-masks", min_width=120)
                self.stop_masks = gr.Button("Stop", elem_id="stop-masks", min_width=70)

    def connect(self, refresh: dict) -> None:
        captions = [self.chosen, self.captioner, self.prefix, self.overwrite]
        masks = [self.chosen, self.saliency, self.threshold, self.overwrite_masks]
        for button, stop, handler, inputs in (
            (self.write, self.stop_captions, self.write_captions, captions),
            (self.make, self.stop_masks, self.make_masks, masks),
        ):
            ended = connect_generation(button, stop, handler, inputs, self.results, **PRIVATE)
            on_end(ended, **refresh)

    def models(self) -> tuple:
        """The captioning models of now."""
        names = set_models.captioners(self.workspace)
        choice = gr.update(choices=names, value=names[0] if names else None)
        return gr.update(visible=bool(names)), choice, gr.update(visible=not names)

    def write_captions(self, name: str, model: str, prefix: str, overwrite: bool):
        progress = set_models.caption_set(self.workspace, name, model, prefix or "", overwrite is True)
        yield from texts(progress)

    def make_masks(self, name: str, model: str, threshold: float, overwrite: bool):
        progress = set_models.mask_set(self.workspace, name, model, threshold, overwrite is True)
        yield from texts(progress)


def texts(progress):
    """Updates of the results: how far it is, the latest image first."""
    lines = []
    for done, total, text in progress:
        lines = [text, *lines][:MOST_LINES] if done else lines
        head = f"{done} of {total}" if done else text
        yield gr.update(value="\n".join([head, *lines]), visible=True)
