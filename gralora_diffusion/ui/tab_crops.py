"""Dataset: what training cuts of each image."""

import gradio as gr

from gralora_diffusion.ui import crop_preview
from gralora_diffusion.ui.handlers import PRIVATE, guarded
from gralora_diffusion.ui.served import save_small
from gralora_diffusion.ui.workspace import Workspace

HELP = (
    "Training resizes each image and crops it to a square. **Aspect-ratio buckets** are shapes with about as "
    "many pixels: each image is cropped to the nearest, so that less is cut away. **Center crop** keeps the "
    "middle instead of random parts."
)


class CropPreview:
    """The options beside the resolution, a button, and where the previews are displayed."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        gr.Markdown(HELP, elem_id="crop-help", elem_classes="hint")
        with gr.Row(elem_classes="pair"):
            self.buckets = gr.Checkbox(
                False, label="Aspect-ratio buckets", elem_id="crop-buckets", container=False, min_width=120
            )
            self.center = gr.Checkbox(
                False, label="Center crop", elem_id="crop-center", container=False, min_width=100
            )
        self.button = gr.Button("Preview crops", elem_id="preview-crops")

    def build_gallery(self) -> None:
        self.gallery = gr.Gallery(
            label="What training crops with the chosen options: the outlined parts",
            columns=4,
            height="auto",
            allow_preview=False,
            object_fit="contain",
            visible=False,
            elem_id="crops",
        )

    def connect(self, chosen: gr.Dropdown, resolution: gr.Dropdown) -> None:
        options = [chosen, resolution, self.buckets, self.center]
        self.button.click(guarded(self.show), options, self.gallery, **PRIVATE)

    def show(self, name: str, resolution, buckets: bool, center: bool):
        found = crop_preview.previews(self.workspace, name, resolution, buckets, center)
        items = [(save_small(self.workspace, image, "crop.jpg"), text) for image, text in found]
        return gr.update(value=items, visible=True)
