"""Dataset: images and captions in, a card for each image, checks with what to do."""

import gradio as gr

from gralora_diffusion.console import counted
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, image_uploads
from gralora_diffusion.ui.caption_cards import CaptionCards, selected
from gralora_diffusion.ui.handlers import PRIVATE, guarded, notify
from gralora_diffusion.ui.literal import literal
from gralora_diffusion.ui.outdated_checks import CHECKED
from gralora_diffusion.ui.tab_crops import CropPreview
from gralora_diffusion.ui.tab_set_models import SetModels
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, free_name

RESOLUTIONS = ["64", "512", "768", "1024"]
TAGS = 40  # that are listed
UPLOADS = (
    "Files are added to the chosen dataset, or to a new one if the chosen one is "
    f"{BUNDLED} or if New name is filled in."
)
CHANGES = (
    f"The first three use **New name**, above; Enter in it creates an empty dataset. {BUNDLED} can only be "
    "duplicated."
)
CONFIRM = """(name) => confirm(`Delete the dataset ${name} with all its images?`) ? name : null"""


class DatasetTab:
    """The tab's components, handlers and events."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        gr.Markdown(
            "**Start here.** Drop 3 to 20 images of one subject, caption them, then go to **Train** and "
            "press **Start**. No images yet? Use the bundled robot: go straight to **Train**.",
            elem_id="start-here",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                self.build_sets()
            with gr.Column(scale=5, min_width=300):
                self.build_images()
        self.connect()

    def build_sets(self) -> None:
        """In the order of use: images in, what became of them, check, on to Train; then all else, folded."""
        self.chosen = gr.Dropdown(
            self.workspace.set_names(),
            value=BUNDLED,
            allow_custom_value=True,
            label="Dataset",
            info="robot comes with the page",
            elem_id="set",
        )
        self.new_name = gr.Textbox(label="New name", placeholder="my-dog", max_length=64, elem_id="new-set")
        self.drop = gr.File(
            label="Drop images, captions or a zip archive",
            file_count="multiple",
            file_types=sorted(image_uploads.ACCEPTED),
            elem_id="drop",
            height=150,
        )
        gr.Markdown(UPLOADS, elem_id="drop-help", elem_classes="hint")
        self.notes = gr.Textbox(
            label="Upload results", lines=3, interactive=False, visible=False, elem_id="notes"
        )
        self.resolution = gr.Dropdown(
            RESOLUTIONS,
            value="64",
            label="Resolution to train at",
            info="Width and height of a training crop in pixels: 64 for the demo model, 1024 for SDXL",
            elem_id="check-size",
        )
        with gr.Row(elem_classes="pair"):
            self.check = gr.Button("Check images", elem_id="check-set", min_width=120)
            self.next = gr.Button("Go to Train", variant="primary", elem_id="go-to-train", min_width=100)
        with gr.Accordion("Preview crops", open=False, elem_id="crop-options"):
            self.crops = CropPreview(self.workspace)
        with gr.Accordion("Create, duplicate, rename or delete", open=False, elem_id="manage-sets"):
            self.build_changes()

    def build_changes(self) -> None:
        gr.Markdown(CHANGES, elem_id="changes-help", elem_classes="hint")
        self.create = gr.Button("Create empty dataset", elem_id="create-set")
        with gr.Row(elem_classes="pair"):
            self.copy = gr.Button("Duplicate", elem_id="copy-set", min_width=90)
            self.rename = gr.Button("Rename", elem_id="rename-set", min_width=90, interactive=False)
        self.delete = gr.Button("Delete dataset", elem_id="delete-set", variant="stop", interactive=False)

    def build_images(self) -> None:
        gr.Markdown(
            "**Images and captions** · captions are saved as you type; Tab goes to the next one. Name the "
            "subject with a rare word: *a photo of sks dog*.",
            elem_id="captions-help",
        )
        self.without = gr.Markdown("", elem_id="no-images", visible=False)
        self.findings = gr.Dataframe(
            headers=["image", "what was found", "what to do"],
            datatype="str",
            interactive=False,
            wrap=True,
            visible=False,
            label="Checks",
            column_widths=["28%", "36%", "36%"],
            elem_id="findings",
        )
        self.cards = CaptionCards(self.workspace)
        with gr.Accordion(
            "Edit all captions", open=False, visible=False, elem_id="all-captions"
        ) as self.edit_all:
            with gr.Row(elem_classes="tight"):
                self.prefix = gr.Textbox(
                    label="Prefix for captions",
                    placeholder="a photo of sks dog,",
                    max_length=200,
                    elem_id="before",
                    scale=3,
                )
                self.apply = gr.Button("Add to all", elem_id="put-before", scale=1, min_width=80)
                self.apply_selected = gr.Button(
                    "Add to selected", elem_id="put-before-selected", scale=1, min_width=80
                )
            with gr.Row(elem_classes="tight"):
                self.find = gr.Textbox(label="Find in captions", max_length=200, elem_id="find-text", scale=2)
                self.replacement = gr.Textbox(
                    label="Replace with", max_length=200, elem_id="replace-text", scale=2
                )
                self.replace = gr.Button("Replace all", elem_id="replace-all", scale=1, min_width=80)
            self.tags = gr.Markdown("", elem_id="tags")
        own = [self.without, self.tags, self.edit_all, self.rename, self.delete]
        self.set_view = [*self.cards.outputs, *own]
        page = [self.chosen, self.cards.first]
        refresh = dict(fn=guarded(self.view), inputs=page, outputs=self.set_view, **PRIVATE)
        SetModels(self.workspace, self.chosen, refresh)
        self.crops.build_gallery()

    def connect(self) -> None:
        displayed = self.cards.displayed  # what changes captions is for the cards that are seen
        whole = [self.chosen, *self.set_view]
        shown = [self.findings, self.crops.gallery]
        made = [*whole, self.new_name, *shown]
        self.chosen.input(guarded(self.switch_set), self.chosen, [*self.set_view, *shown], **PRIVATE)
        uploads = [self.drop, self.chosen, self.new_name]
        self.drop.upload(
            guarded(self.add), uploads, [*whole, self.drop, self.notes, self.new_name], **PRIVATE
        )
        self.apply.click(guarded(self.add_prefix), [displayed, self.prefix], self.set_view, **PRIVATE)
        selection = [displayed, self.prefix, *self.cards.chosen_files]
        self.apply_selected.click(guarded(self.prefix_selected), selection, self.set_view, **PRIVATE)
        texts = [displayed, self.find, self.replacement]
        self.replace.click(guarded(self.replace_text), texts, self.set_view, **PRIVATE)
        gr.on(
            [self.create.click, self.new_name.submit],
            guarded(self.create_set),
            self.new_name,
            made,
            **PRIVATE,
        )
        self.copy.click(guarded(self.copy_set), [self.chosen, self.new_name], made, **PRIVATE)
        self.rename.click(guarded(self.rename_set), [self.chosen, self.new_name], made, **PRIVATE)
        self.delete.click(guarded(self.delete_set), self.chosen, made, js=CONFIRM, **PRIVATE)
        checked = self.check.click(
            guarded(self.check_set), [self.chosen, self.resolution], self.findings, **PRIVATE
        )
        checked.success(None, None, None, js=CHECKED, **PRIVATE)
        self.crops.connect(self.chosen, self.resolution)

    def view(self, name: str, first: int = 0) -> list:
        """Updates of `set_view` for a set, from its image number `first`."""
        counts = image_sets.tag_counts(self.workspace, name)[:TAGS]
        has_images = bool(image_sets.images_of(self.workspace.image_set(name)))
        tags = " · ".join(f"{literal(tag)} {count}" for tag, count in counts)
        own = name != BUNDLED
        allowed = [gr.update(visible=own and has_images), *[gr.update(interactive=own)] * 2]
        why = "" if has_images else image_sets.why_empty(self.workspace, name)
        without = gr.update(value=literal(why), visible=not has_images)
        return [*self.cards.view(name, first), without, f"**Tags:** {tags}" if tags else "", *allowed]

    def show(self, name: str) -> list:
        """Updates of the list of datasets and of `set_view`, for a set where it is still there."""
        name = name if name in self.workspace.set_names() else BUNDLED
        return [self.select(name), *self.view(name)]

    def switch_set(self, name: str) -> tuple:
        return *self.view(name), gr.update(visible=False), gr.update(visible=False)

    def add(self, files: list[str] | None, name: str, new: str):
        """Add uploads to the chosen dataset, or a new one where a name is given or the bundled one chosen."""
        if not files:
            return [gr.skip()] * (len(self.set_view) + 4)
        before = name
        if new or name == BUNDLED:
            new = new or free_name("images", self.workspace.set_names())
            name = image_sets.create(self.workspace, new)
        added, notes = image_uploads.add(self.workspace, name, files)
        if name != before and not image_sets.image_files(self.workspace.images / name):  # it would be empty
            image_sets.delete(self.workspace, name)
            name = before
        if added or not notes:  # the notes tell of masks and captions alone, and of what was left out
            notify(f"{counted(added, 'image')} added to {name}")
        lines = min(8, max(2, len(notes)))
        notes = gr.update(value="\n".join(notes), visible=bool(notes), lines=lines)
        return self.select(name), *self.view(name), None, notes, ""

    def add_prefix(self, name: str, prefix: str) -> list:
        image_sets.add_prefix(self.workspace, name, prefix)
        return self.view(name)

    def prefix_selected(self, name: str, prefix: str, *names_and_checks) -> list:
        files = selected(names_and_checks)
        if not files:
            raise ConfigError("no image is selected: tick Select on the images first")
        image_sets.add_prefix(self.workspace, name, prefix, files)
        return self.view(name)

    def replace_text(self, name: str, find: str, replacement: str) -> list:
        changed = image_sets.replace_in_captions(self.workspace, name, find, replacement or "")
        notify(f"{counted(changed, 'caption')} changed")
        return self.view(name)

    def create_set(self, new: str) -> tuple:
        return self.made(image_sets.create(self.workspace, new))

    def copy_set(self, name: str, new: str) -> tuple:
        return self.made(image_sets.copy(self.workspace, name, new))

    def rename_set(self, name: str, new: str) -> tuple:
        return self.made(image_sets.rename(self.workspace, name, new))

    def delete_set(self, name: str | None) -> tuple:
        if name is None:  # not confirmed
            return tuple([gr.skip()] * (len(self.set_view) + 4))
        image_sets.delete(self.workspace, name)
        notify(f"{name} was deleted")
        return self.made(BUNDLED)

    def made(self, name: str) -> tuple:
        """Updates for a new set: it is chosen, and the field of its name and what was found are cleared."""
        hidden = gr.update(visible=False)
        return self.select(name), *self.view(name), "", hidden, hidden

    def select(self, name: str):
        return gr.update(choices=self.workspace.set_names(), value=name)

    def check_set(self, name: str, resolution: str):
        findings = image_sets.check_set(self.workspace, name, int(resolution))
        return gr.update(value=findings or [["all", "No problems found", "Continue to Train"]], visible=True)
