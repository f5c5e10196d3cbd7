"""The images of a set as cards: thumbnail with mask, caption, a box to select it, a button that removes it.

A caption is saved while it is typed, and nothing is written back into its field, so that no key is lost.
"""

from functools import partial

import gradio as gr

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import caption_files, image_sets, removed_images
from gralora_diffusion.ui.card_images import card_image
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, notify
from gralora_diffusion.ui.workspace import BUNDLED, Workspace

CARDS = 12  # on one page of the set
SHOW_MASKS = """on => { document.getElementById('cards').classList.toggle('without-masks', !on); }"""
SAVING = dict(show_progress="hidden", concurrency_id="captions", concurrency_limit=1, **PRIVATE)
CAPTION_KEYS = """<script>
document.addEventListener('keydown', event => {  // from caption to caption by Tab, or down by Enter
    const own = event.target.closest?.('.card-caption textarea');
    if (!own || event.isComposing || (event.key !== 'Tab' && event.key !== 'Enter')) return;
    const fields = [...document.querySelectorAll('.card-caption textarea')];
    const all = fields.filter(field => field.checkVisibility());
    const next = all[all.indexOf(own) + (event.shiftKey && event.key === 'Tab' ? -1 : 1)];
    if (event.key === 'Enter') event.preventDefault();
    if (!next) return;
    event.preventDefault();
    next.focus();
}, true);
document.addEventListener('input', event => {  // Gradio's input event follows keypress alone: not a paste,
    const field = event.target.closest?.('.card-caption textarea');  // an undo or Backspace
    field?.dispatchEvent(new KeyboardEvent('keypress', {key: 'Process', bubbles: true}));
});
</script>"""


class CaptionCards:
    """The components of the cards; `outputs` are those that view() updates.

    displayed: the name of the set that the cards show, which is the chosen one when no switch is under way. A
    field, not a gr.State: the browser sends it with the cards, so an event that waits keeps its set.
    chosen_files: components whose values selected() turns into the names of the images that are selected.
    """

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.cards, self.images, self.names, self.captions = [], [], [], []
        self.checks, self.buttons, self.actions = [], [], []
        self.build_bar()
        with gr.Row(elem_id="cards"):
            for number in range(CARDS):
                self.build_card(number)
        with gr.Row(elem_classes="tight"):
            hidden = dict(size="sm", min_width=80, visible=False)  # until view() says otherwise
            self.back = gr.Button("Previous", elem_id="cards-back", **hidden)
            self.range = gr.Markdown("", elem_id="cards-range")
            self.forward = gr.Button("Next", elem_id="cards-next", **hidden)
            self.undo = gr.Button("Undo delete", elem_id="undo-delete", **hidden)
            with gr.Column(elem_classes="never"):
                self.displayed = gr.Textbox(BUNDLED, label="Dataset shown", elem_id="displayed")
        self.first = gr.State(0)  # the number of the first card's image
        pager = [self.back, self.range, self.forward, self.undo, self.first, self.displayed]
        cards = [*self.cards, *self.images, *self.names, *self.captions, *self.checks, *self.actions]
        self.outputs = [*cards, *pager, self.bar, self.delete_masks, self.masks]
        self.chosen_files = [*self.names, *self.checks]
        self.connect()

    def build_bar(self) -> None:
        """What is done with the images that are selected, and whether masks are visible."""
        with gr.Row(elem_classes="tight", elem_id="selection"):
            with gr.Row(elem_classes="tight", visible=False) as self.bar:
                self.select_all = gr.Button("Select all", size="sm", elem_id="select-all", min_width=80)
                self.delete_selected = gr.Button(
                    "Delete selected", size="sm", elem_id="delete-selected", min_width=110
                )
            # not in that row: Gradio hands its visibility down to what is in it
            self.delete_masks = gr.Button(
                "Delete their masks", size="sm", elem_id="delete-masks", min_width=120, visible=False
            )
            self.masks = gr.Checkbox(
                True, label="Show masks", elem_id="show-masks", visible=False, container=False, min_width=110
            )

    def build_card(self, number: int) -> None:
        with gr.Column(visible=False, min_width=170, elem_classes="card") as card:
            image = gr.HTML(elem_id=f"card-image-{number}", elem_classes="card-image", padding=False)
            caption = gr.Textbox(
                lines=2,
                max_lines=4,
                max_length=caption_files.MAX_CAPTION,
                placeholder="Caption for this image",
                elem_id=f"caption-{number}",
                elem_classes="card-caption",
            )
            name = gr.Textbox(label="File", elem_id=f"card-name-{number}", elem_classes="card-name")
            with gr.Row(elem_classes="card-actions") as actions:
                check = gr.Checkbox(
                    False, label="Select", elem_id=f"select-{number}", container=False, min_width=60
                )
                button = gr.Button("Delete", size="sm", min_width=40, elem_id=f"delete-{number}")
        self.cards.append(card)
        self.images.append(image)
        self.captions.append(caption)
        self.names.append(name)
        self.checks.append(check)
        self.buttons.append(button)
        self.actions.append(actions)

    def connect(self) -> None:
        for name, caption, button in zip(self.names, self.captions, self.buttons, strict=True):
            fields = [self.displayed, name, caption]
            caption.input(guarded(self.save), fields, None, trigger_mode="always_last", **SAVING)
            caption.blur(guarded(self.save), fields, None, trigger_mode="multiple", **SAVING)
            shown = [self.displayed, self.first, name]
            button.click(guarded(self.delete), shown, self.outputs, **PRIVATE)
        for button, step in ((self.back, -CARDS), (self.forward, CARDS)):
            turn = guarded(partial(self.turn, step))
            button.click(turn, [self.displayed, self.first], self.outputs, show_progress="hidden", **PRIVATE)
        self.undo.click(guarded(self.undo_delete), [self.displayed, self.first], self.outputs, **PRIVATE)
        selection = [self.displayed, self.first, *self.chosen_files]
        self.delete_selected.click(guarded(self.delete_chosen), selection, self.outputs, **PRIVATE)
        self.delete_masks.click(guarded(self.delete_their_masks), selection, self.outputs, **PRIVATE)
        self.select_all.click(guarded(self.all_or_none), self.checks, self.checks, **QUIET)
        self.masks.change(None, self.masks, None, js=SHOW_MASKS, **PRIVATE)

    def view(self, name: str, first: int = 0) -> list:
        """Updates of `outputs` for a set, from its image number `first`."""
        folder = self.workspace.image_set(name)
        files = image_sets.images_of(folder)
        try:
            masks = image_sets.masks_in(folder)
        except ConfigError:
            masks = {}  # Check images says which two are of one image
        first = max(0, min(first, (len(files) - 1) // CARDS * CARDS))
        shown = files[first : first + CARDS]
        hidden = [None] * (CARDS - len(shown))
        cards = [gr.update(visible=path is not None) for path in [*shown, *hidden]]
        images = [card_image(path, masks.get(path)) for path in shown] + [""] * len(hidden)
        names = [path.name for path in shown] + [""] * len(hidden)
        editable = name != BUNDLED
        captions = []
        for path in shown:
            text = caption_files.caption_of(path)
            captions.append(gr.update(value=text, label=path.name, interactive=editable))
        captions += [gr.update(value="")] * len(hidden)
        checks = [False] * CARDS  # not in an update with visible=, which Gradio's checkbox leaves as it was
        actions = [gr.update(visible=editable)] * CARDS
        last = first + len(shown)
        text = f"{first + 1} to {last} of {len(files)}" if len(files) > CARDS else ""
        pager = [
            gr.update(visible=len(files) > CARDS, interactive=first > 0),
            text,
            gr.update(visible=len(files) > CARDS, interactive=last < len(files)),
            gr.update(visible=bool(removed_images.removals(self.workspace, name))),
            first,
            name,
        ]
        visible = editable and bool(shown), editable and bool(masks), bool(masks)
        bar = [gr.update(visible=part) for part in visible]
        return [*cards, *images, *names, *captions, *checks, *actions, *pager, *bar]

    def save(self, displayed: str, name: str, caption: str) -> None:
        if name and displayed != BUNDLED:
            image_sets.save_captions(self.workspace, displayed, {name: caption or ""})

    def delete(self, displayed: str, first: int, *files: str) -> list:
        what = removed_images.remove(self.workspace, displayed, list(files))
        notify(f"{what} deleted; Undo delete restores images, captions and masks")
        return self.view(displayed, first)

    def delete_chosen(self, displayed: str, first: int, *names_and_checks) -> list:
        return self.delete(displayed, first, *selected(names_and_checks))

    def delete_their_masks(self, displayed: str, first: int, *names_and_checks) -> list:
        what = removed_images.remove_masks(self.workspace, displayed, selected(names_and_checks))
        notify(f"{what} deleted; Undo delete restores what was deleted")
        return self.view(displayed, first)

    def undo_delete(self, displayed: str, first: int) -> list:
        notify(f"{removed_images.undo_remove(self.workspace, displayed)} restored")
        return self.view(displayed, first)

    def turn(self, step: int, displayed: str, first: int) -> list:
        return self.view(displayed, int(first) + step)

    def all_or_none(self, *checks: bool) -> list[bool]:
        """All cards are selected, or where they are already none."""
        return [not all(checks)] * len(checks)


def selected(names_and_checks: tuple) -> list[str]:
    """The names of the cards whose boxes are ticked: of the values of CaptionCards.chosen_files."""
    names, checks = names_and_checks[:CARDS], names_and_checks[CARDS:]
    return [name for name, check in zip(names, checks, strict=True) if name and check is True]
