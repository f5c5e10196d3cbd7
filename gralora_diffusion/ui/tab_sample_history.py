"""Sample: the images that were generated before, favorites, and their settings for the next ones."""

import contextlib

import gradio as gr

from gralora_diffusion.console import counted
from gralora_diffusion.ui import removed, sample_history
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, notify
from gralora_diffusion.ui.history_adapters import problem_of
from gralora_diffusion.ui.removed_history import delete, deleted, undo_delete
from gralora_diffusion.ui.sample_fields import NAMES, SampleFields, values_of
from gralora_diffusion.ui.workspace import Workspace

SHOWN = 40  # images at a time
ASKED = 60  # characters of a prompt in a question
CONFIRM = "(_, question, ...others) => [String(confirm(question)), question, ...others]"
FRAME = "place => ({__type__: 'update', selected_index: place})"  # or the gallery keeps its own
NOTHING_CHOSEN = (None, gr.update(visible=False), None, "", gr.skip(), "", gr.update(visible=False))


class History:
    """Below Sample; refresh_on() displays the history as it is now after events."""

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
            self.undo = gr.Button(
                "Undo delete", elem_id="undo-delete-image", visible=False, size="sm", min_width=110
            )
        self.gallery = gr.Gallery(
            label="Generated before, newest first: choose one",
            columns=6,
            height="auto",
            allow_preview=False,
            object_fit="contain",
            elem_id="history-images",
            visible=False,
        )
        # not in the column of the details: when that is shown, what is hidden in it is shown too
        self.place = gr.Number(None, visible="hidden")  # of the chosen image in the gallery
        self.question = gr.Textbox(visible="hidden")  # before the chosen image is deleted

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
        self.problem = gr.Textbox(
            label="Before you generate it again",
            lines=2,
            interactive=False,
            visible=False,
            elem_id="history-problem",
        )

    def connect(self, fields: SampleFields) -> None:
        details = [self.chosen, self.details, self.image, self.facts, self.star, self.question, self.problem]
        listed = [self.gallery, self.shown, self.count, self.undo, self.place]
        self.outputs = [*details, *listed]
        self.inputs = [self.chosen, self.favorites]
        self.gallery.select(guarded(self.choose), self.shown, [*details, self.place], **QUIET)
        self.refresh_on(self.favorites.change)
        changes = (
            self.star.click(guarded(self.toggle), self.inputs, self.outputs, **PRIVATE),
            self.delete.click(
                guarded(self.remove),
                [self.confirmed, self.question, *self.inputs],
                self.outputs,
                js=CONFIRM,
                **PRIVATE,
            ),
            self.undo.click(guarded(self.undo_delete), self.favorites, self.outputs, **PRIVATE),
        )
        for changed in changes:
            self.frame_after(changed)
        self.use.click(guarded(self.settings), self.chosen, [*fields.all, self.problem], **PRIVATE)

    def refresh_on(self, *triggers) -> None:
        for trigger in triggers:
            self.frame_after(trigger(guarded(self.view), self.inputs, self.outputs, **QUIET))

    def frame_after(self, event) -> None:
        event.then(None, self.place, self.gallery, js=FRAME, **PRIVATE)

    def view(self, chosen: str | None, favorites: bool) -> tuple:
        """Updates of the outputs; an image that is chosen, but not displayed any more, is so no longer."""
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
        place = ids.index(chosen) if chosen in ids else None
        gallery = gr.update(value=items, selected_index=place, visible=bool(items))
        undo = gr.update(visible=bool(deleted(self.workspace)))
        details = NOTHING_CHOSEN if place is None else (gr.skip(),) * len(NOTHING_CHOSEN)
        return *details, gallery, ids, text, undo, place

    def choose(self, shown: list, event: gr.SelectData) -> tuple:
        if not isinstance(event.index, int) or not 0 <= event.index < len(shown or []):
            return (gr.skip(),) * (len(NOTHING_CHOSEN) + 1)
        entry = sample_history.entry_of(self.workspace, shown[event.index])
        return *self.details_of(entry), event.index

    def details_of(self, entry: sample_history.Entry) -> tuple:
        path = sample_history.served_image(self.workspace, entry)
        star = "Remove from favorites" if entry.favorite else "Add to favorites"
        nothing = gr.update(visible=False)
        return entry.id, gr.update(visible=True), path, facts_of(entry), star, question_of(entry), nothing

    def viewed(self, entry: sample_history.Entry, favorites: bool) -> tuple:
        """view() with this image chosen, if it is displayed."""
        *details, gallery, ids, text, undo, place = self.view(entry.id, favorites)
        if place is not None:
            details = self.details_of(entry)
        return *details, gallery, ids, text, undo, place

    def toggle(self, chosen: str, favorites: bool) -> tuple:
        return self.viewed(sample_history.toggle_favorite(self.workspace, chosen), favorites)

    def remove(self, confirmed: str, _question: str, chosen: str | None, favorites: bool) -> tuple:
        if confirmed != "true":
            return (gr.skip(),) * len(self.outputs)
        entry = delete(self.workspace, chosen)
        notify(f"The {named(entry)} was deleted. Undo delete restores it within {removed.DAYS} days")
        return self.view(None, favorites)

    def undo_delete(self, favorites: bool) -> tuple:
        entry = undo_delete(self.workspace)
        notify(f"The {named(entry)} was restored")
        return self.viewed(entry, favorites)

    def settings(self, chosen: str) -> list:
        """The values of all fields for the chosen image, and what to know where its adapters have changed."""
        entry = sample_history.entry_of(self.workspace, chosen)
        problem = problem_of(self.workspace, entry)
        notify(problem)
        values = values_of(entry.request, entry.base)
        fields = [values.get(name, gr.skip()) for name in NAMES]
        return [*fields, gr.update(value=problem, visible=bool(problem))]


def named(entry: sample_history.Entry) -> str:
    """An image in a sentence: its seed, and its prompt in short."""
    prompt = entry.request.prompt
    short = prompt if len(prompt) <= ASKED else f"{prompt[:ASKED].rstrip()}..."
    return f"image of seed {entry.request.seed} (“{short}”)"


def question_of(entry: sample_history.Entry) -> str:
    """Before it is deleted."""
    favorite = " It is a favorite." if entry.favorite else ""
    return f"Delete the {named(entry)}?{favorite}"


def facts_of(entry: sample_history.Entry) -> str:
    request = entry.request
    facts = [f"seed {request.seed}", request.adapters_text, counted(request.steps, "step")]
    if request.guidance is not None:
        facts.append(f"guidance {request.guidance:g}")
    facts += [fact for fact in (request.size, request.scheduler) if fact]
    lines = [request.prompt, ", ".join(facts)]
    if request.negative_prompt:
        lines.insert(1, f"not: {request.negative_prompt}")
    return "\n".join(lines)
