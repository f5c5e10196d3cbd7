"""Dataset: images in, captions in one table that is saved at every edit, checks with what to do."""

import gradio as gr

from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.ui import image_sets
from gralora_diffusion.ui.handlers import PRIVATE, guarded, notify
from gralora_diffusion.ui.served import served_copy
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, free_name

RESOLUTIONS = ["64", "512", "768", "1024"]
THUMBNAIL = 384  # pixels


class DatasetTab:
    """The tab's components, handlers and events."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        gr.Markdown(
            "**Start here.** Drop a few images of one subject, caption them, then go to **Train** and press "
            "**Start**. No images yet? Use the bundled robot: go straight to **Train**.",
            elem_id="start-here",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                self.build_sets()
            with gr.Column(scale=5, min_width=300):
                self.build_images()
        self.findings = gr.Dataframe(
            headers=["image", "what was found", "what to do"],
            datatype="str",
            interactive=False,
            wrap=True,
            visible=False,
            label="Checks",
            elem_id="findings",
        )
        self.set_view = [self.gallery, self.captions, self.removed]
        self.connect()

    def build_sets(self) -> None:
        self.chosen = gr.Dropdown(
            self.workspace.set_names(),
            value=BUNDLED,
            allow_custom_value=True,
            label="Image set",
            info="robot comes with the page",
            elem_id="set",
        )
        self.drop = gr.File(
            label="Drop 3 to 20 images of your subject here",
            file_count="multiple",
            file_types=sorted(EXTENSIONS),
            elem_id="drop",
            height=150,
        )
        self.new_name = gr.Textbox(label="New set", placeholder="my-dog", max_length=64, elem_id="new-set")
        with gr.Row(elem_classes="pair"):
            self.create = gr.Button("Create empty set", elem_id="create-set", min_width=120)
            self.copy = gr.Button("Copy this set", elem_id="copy-set", min_width=120)
        self.notes = gr.Textbox(
            label="What happened to each file", lines=3, interactive=False, visible=False, elem_id="notes"
        )
        self.resolution = gr.Dropdown(
            RESOLUTIONS,
            value="64",
            label="Resolution to train at",
            info="64 for the embedded base",
            elem_id="check-size",
        )
        self.check = gr.Button("Check the images", elem_id="check-set")

    def build_images(self) -> None:
        self.gallery = gr.Gallery(
            label="Images",
            columns=6,
            height="auto",
            object_fit="cover",
            format="png",
            elem_id="images",
            allow_preview=True,
        )
        gr.Markdown(
            "**Captions** · click into one to edit it; every edit is saved at once. Name the subject with a "
            "rare word: *a photo of sks dog*."
        )
        self.captions = gr.Dataframe(
            headers=["image", "caption"],
            datatype="str",
            column_count=(2, "fixed"),
            static_columns=[0],
            interactive=True,
            wrap=True,
            row_count=1,
            label="Captions",
            show_label=False,
            elem_id="captions",
            column_widths=["160px", "auto"],
        )
        with gr.Row(elem_classes="tight"):
            self.prefix = gr.Textbox(
                label="Put before every caption",
                placeholder="a photo of sks dog,",
                max_length=200,
                elem_id="before",
                scale=3,
            )
            self.apply = gr.Button("Put before", elem_id="put-before", scale=1, min_width=80)
            self.removed = gr.Dropdown(
                [], allow_custom_value=True, label="Remove an image", elem_id="gone", scale=3
            )
            self.remove = gr.Button("Remove", elem_id="remove-image", scale=1, min_width=80, variant="stop")

    def connect(self) -> None:
        whole = [self.chosen, *self.set_view]
        made = [*whole, self.new_name, self.findings]
        self.chosen.input(guarded(self.switch_set), self.chosen, [*self.set_view, self.findings], **PRIVATE)
        self.drop.upload(
            guarded(self.add), [self.drop, self.chosen], [*whole, self.drop, self.notes], **PRIVATE
        )
        self.captions.input(
            guarded(self.save),
            [self.chosen, self.captions],
            None,
            show_progress="hidden",
            concurrency_limit=1,
            **PRIVATE,
        )
        self.apply.click(guarded(self.add_prefix), [self.chosen, self.prefix], self.set_view, **PRIVATE)
        self.remove.click(guarded(self.remove_image), [self.chosen, self.removed], self.set_view, **PRIVATE)
        self.create.click(guarded(self.create_set), self.new_name, made, **PRIVATE)
        self.copy.click(guarded(self.copy_set), [self.chosen, self.new_name], made, **PRIVATE)
        self.check.click(guarded(self.check_set), [self.chosen, self.resolution], self.findings, **PRIVATE)

    def view(self, name: str) -> tuple:
        """Updates of `set_view` for a set."""
        files = image_sets.images_of(self.workspace.image_set(name))
        images = [(served_copy(self.workspace, path, THUMBNAIL), path.name) for path in files]
        rows = [[path.name, image_sets.caption_of(path)] for path in files] or [["", ""]]
        removable = gr.update(choices=[path.name for path in files], value=None)
        return images, gr.update(value=rows), removable

    def switch_set(self, name: str) -> tuple:
        return *self.view(name), gr.update(visible=False)

    def add(self, files: list[str] | None, name: str):
        """Add uploads to the chosen set; in place of the bundled one, which stays as it is, to a new set."""
        if not files:
            return [gr.skip()] * 6
        if name == BUNDLED:
            name = image_sets.create(self.workspace, free_name("images", self.workspace.set_names()))
        added, notes = image_sets.add(self.workspace, name, files)
        notify(f"{added} of {len(files)} added to {name}")
        lines = min(8, max(2, len(notes)))
        notes = gr.update(value="\n".join(notes), visible=bool(notes), lines=lines)
        return self.select(name), *self.view(name), None, notes

    def save(self, name: str, rows) -> None:
        """Save the captions of the table, a pandas.DataFrame."""
        captions = {row[0]: row[1] or "" for row in rows.values.tolist() if row[0]}
        saved = image_sets.save_captions(self.workspace, name, captions)
        if saved:
            notify(f"saved: {', '.join(saved[:3])}{' ...' if len(saved) > 3 else ''}")

    def add_prefix(self, name: str, prefix: str) -> tuple:
        image_sets.add_prefix(self.workspace, name, prefix)
        return self.view(name)

    def remove_image(self, name: str, file: str) -> tuple:
        image_sets.remove(self.workspace, name, file)
        return self.view(name)

    def create_set(self, new: str) -> tuple:
        return self.made(image_sets.create(self.workspace, new))

    def copy_set(self, name: str, new: str) -> tuple:
        return self.made(image_sets.copy(self.workspace, name, new))

    def made(self, name: str) -> tuple:
        """Updates for a new set: it is chosen, and the field of its name and the findings are cleared."""
        return self.select(name), *self.view(name), "", gr.update(visible=False)

    def select(self, name: str):
        return gr.update(choices=self.workspace.set_names(), value=name)

    def check_set(self, name: str, resolution: str):
        findings = image_sets.check_set(self.workspace, name, int(resolution))
        return gr.update(value=findings or [["all", "nothing to fix", "continue with Train"]], visible=True)
