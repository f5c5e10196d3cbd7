"""Sample: the images that were generated before, favorites, and their settings for the next ones."""

import contextlib

import gradio as gr

from gralora_diffusion.console import counted
from gralora_diffusion.ui import sample_history
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, notify
from gralora_diffusion.ui.sample_fields import NAMES, SampleFields, values_of
from gralora_diffusion.ui.workspace import Workspace

SHOWN = 40  # images at a time
CONFIRM = """(_, ...others) => [String(confirm('Delete this image from the history?')), ...others]"""


class History:
    """Below Sample; `refresh` is the event that displays the history as it is now."""

    def __init__(self, workspace: Workspace, fields: SampleFields):
        self.workspace = workspace
        self.shown = gr.State([])  # the ids of the gallery's images
        self.chosen = gr.State(None)  # the id of the image that was clicked
        with gr.Accordion("History", open=True, elem_id="sample-history"), gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                self.build_gallery()
            with gr.Column(scale=2, min_width=260, visible=False) as self.details:
                self.build_details()
        self.connect(fields)

    def build_gallery(self) -> None:
        with gr.Row(elem_classes="tight"):
            self.favorites = gr.Checkbox(
                False, label="Favorites only", elem_id="favorites-only", container=False, min_width=120
            )
            self.count = gr.Markdown("", elem_id="history-count")
        self.gallery = gr.Gallery(
            label="Generated before, newest first: choose one",
            columns=6,
            height="auto",
            allow_preview=False,
            object_fit="contain",
            elem_id="history-images",
            visible=False,
        )

    def build_details(self) -> None:
        self.image = gr.Image(
            label="Chosen image, with its settings in the file",
            type="filepath",
            format="png",
            interactive=False,
            height=280,
            buttons=["download", "fullscreen"],
            elem_id="history-image",
        )
        self.facts = gr.Textbox(label="Settings", lines=3, interactive=False, elem_id="history-facts")
        with gr.Row(elem_classes="tight"):
            self.use = gr.Button("Use these settings", elem_id="use-settings", min_width=130)
            self.star = gr.Button("Add to favorites", elem_id="favorite", min_width=130)
            self.delete = gr.Button("Delete", elem_id="delete-image", min_width=70)
            self.confirmed = gr.Textbox("", label="Confirmed", visible=False)

    def connect(self, fields: SampleFields) -> None:
        listed = [self.gallery, self.shown, self.count]
        self.refresh = dict(fn=guarded(self.view), inputs=self.favorites, outputs=listed, **QUIET)
        details = [self.chosen, self.details, self.image, self.facts, self.star]
        self.gallery.select(guarded(self.choose), self.shown, details, **QUIET)
        self.favorites.change(**self.refresh)
        changed = [*details, *listed]
        self.star.click(guarded(self.toggle), [self.chosen, self.favorites], changed, **PRIVATE)
        inputs = [self.confirmed, self.chosen, self.favorites]
        self.delete.click(guarded(self.remove), inputs, changed, js=CONFIRM, **PRIVATE)
        self.use.click(guarded(self.settings), self.chosen, fields.all, **PRIVATE)

    def view(self, favorites: bool) -> tuple:
        """(gallery, ids, how many)"""
        found = sample_history.entries(self.workspace, favorites is True)
        shown = found[:SHOWN]
        items, ids = [], []
        for entry in shown:
            with contextlib.suppress(OSError, ValueError):  # damaged, or deleted in another tab meanwhile
                items.append((sample_history.thumbnail(self.workspace, entry), entry.text))
                ids.append(entry.id)
        if not found:
            text = "No favorites yet." if favorites is True else "Images that you generate are kept here."
        else:
            text = (
                f"{len(shown)} of {len(found)} images" if len(found) > SHOWN else counted(len(found), "image")
            )
        return gr.update(value=items, selected_index=None, visible=bool(items)), ids, text

    def choose(self, shown: list, event: gr.SelectData) -> tuple:
        if not isinstance(event.index, int) or not 0 <= event.index < len(shown or []):
            return (gr.skip(),) * 5
        return self.details_of(sample_history.entry_of(self.workspace, shown[event.index]))

    def details_of(self, entry: sample_history.Entry) -> tuple:
        path = sample_history.served_image(self.workspace, entry)
        star = "Remove from favorites" if entry.favorite else "Add to favorites"
        return entry.id, gr.update(visible=True), path, facts_of(entry), star

    def toggle(self, chosen: str, favorites: bool) -> tuple:
        entry = sample_history.toggle_favorite(self.workspace, chosen)
        return *self.details_of(entry), *self.view(favorites)

    def remove(self, confirmed: str, chosen: str | None, favorites: bool) -> tuple:
        if confirmed != "true":
            return (gr.skip(),) * 8
        sample_history.delete(self.workspace, chosen)
        return None, gr.update(visible=False), None, "", gr.skip(), *self.view(favorites)

    def settings(self, chosen: str) -> list:
        """The values of all fields for the chosen image; a note where an adapter no longer exists."""
        entry = sample_history.entry_of(self.workspace, chosen)
        known = self.workspace.adapter_names()
        gone = [name for name, _ in entry.request.adapters if name not in known]
        if gone:
            notify(f"no longer available: {', '.join(gone)}; choose another adapter")
        values = values_of(entry.request, entry.base)
        return [values.get(name, gr.skip()) for name in NAMES]


def facts_of(entry: sample_history.Entry) -> str:
    request = entry.request
    facts = [f"seed {request.seed}", entry.adapters, counted(request.steps, "step")]
    if request.guidance is not None:
        facts.append(f"guidance {request.guidance:g}")
    facts += [fact for fact in (request.size, request.scheduler) if fact]
    lines = [request.prompt, ", ".join(facts)]
    if request.negative_prompt:
        lines.insert(1, f"not: {request.negative_prompt}")
    return "\n".join(lines)
