"""The images of a set as cards: thumbnail, caption, and a button that removes the image.

A caption is saved while it is typed, and nothing is written back into its field, so that no key is lost.
"""

import base64
import functools
import html
import io
from functools import partial
from pathlib import Path

import gradio as gr

from gralora_diffusion.data.images import open_image
from gralora_diffusion.ui import image_sets
from gralora_diffusion.ui.handlers import PRIVATE, guarded, notify
from gralora_diffusion.ui.workspace import BUNDLED, Workspace

CARDS = 12  # on one page of the set
THUMBNAIL = 256  # pixels
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


@functools.lru_cache(maxsize=1000)
def thumbnail(path: Path, _version: int) -> str:
    """A small copy of an image as HTML, named after its file; _version: of the file, in nanoseconds."""
    image = open_image(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=85)
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(path.name)}">'


class CaptionCards:
    """The components of the cards; `outputs` are those that view() updates."""

    def __init__(self, workspace: Workspace, chosen: gr.Dropdown):
        self.workspace = workspace
        self.chosen = chosen
        self.cards, self.images, self.names, self.captions, self.buttons = [], [], [], [], []
        with gr.Row(elem_id="cards"):
            for number in range(CARDS):
                self.build_card(number)
        with gr.Row(elem_classes="tight"):
            self.back = gr.Button("Previous", size="sm", elem_id="cards-back", min_width=80)
            self.range = gr.Markdown("", elem_id="cards-range")
            self.forward = gr.Button("Next", size="sm", elem_id="cards-next", min_width=80)
            self.undo = gr.Button("Undo delete", size="sm", elem_id="undo-delete", min_width=80)
        self.first = gr.State(0)  # the number of the first card's image
        pager = [self.back, self.range, self.forward, self.undo, self.first]
        self.outputs = [*self.cards, *self.images, *self.names, *self.captions, *self.buttons, *pager]
        self.connect()

    def build_card(self, number: int) -> None:
        with gr.Column(visible=False, min_width=170, elem_classes="card") as card:
            image = gr.HTML(elem_id=f"card-image-{number}", elem_classes="card-image", padding=False)
            caption = gr.Textbox(
                lines=2,
                max_lines=4,
                max_length=image_sets.MAX_CAPTION,
                placeholder="Caption for this image",
                elem_id=f"caption-{number}",
                elem_classes="card-caption",
            )
            name = gr.Textbox(label="File", elem_id=f"card-name-{number}", elem_classes="card-name")
            button = gr.Button("Delete", size="sm", min_width=40, elem_id=f"delete-{number}")
        self.cards.append(card)
        self.images.append(image)
        self.captions.append(caption)
        self.names.append(name)
        self.buttons.append(button)

    def connect(self) -> None:
        for name, caption, button in zip(self.names, self.captions, self.buttons, strict=True):
            fields = [self.chosen, name, caption]
            caption.input(guarded(self.save), fields, None, trigger_mode="always_last", **SAVING)
            caption.blur(guarded(self.save), fields, None, trigger_mode="multiple", **SAVING)
            shown = [self.chosen, name, self.first]
            button.click(guarded(self.delete), shown, self.outputs, **PRIVATE)
        for button, step in ((self.back, -CARDS), (self.forward, CARDS)):
            turn = guarded(partial(self.turn, step))
            button.click(turn, [self.chosen, self.first], self.outputs, show_progress="hidden", **PRIVATE)
        self.undo.click(guarded(self.undo_delete), [self.chosen, self.first], self.outputs, **PRIVATE)

    def view(self, name: str, first: int = 0) -> list:
        """Updates of `outputs` for a set, from its image number `first`."""
        files = image_sets.images_of(self.workspace.image_set(name))
        first = max(0, min(first, (len(files) - 1) // CARDS * CARDS))
        shown = files[first : first + CARDS]
        hidden = [None] * (CARDS - len(shown))
        cards = [gr.update(visible=path is not None) for path in [*shown, *hidden]]
        images = [thumbnail(path, path.stat().st_mtime_ns) for path in shown] + [""] * len(hidden)
        names = [path.name for path in shown] + [""] * len(hidden)
        editable = name != BUNDLED
        captions = []
        for path in shown:
            text = image_sets.caption_of(path)
            captions.append(gr.update(value=text, label=path.name, interactive=editable))
        captions += [gr.update(value="")] * len(hidden)
        buttons = [gr.update(visible=editable)] * CARDS
        last = first + len(shown)
        text = f"{first + 1} to {last} of {len(files)}" if len(files) > CARDS else ""
        pager = [
            gr.update(visible=len(files) > CARDS, interactive=first > 0),
            text,
            gr.update(visible=len(files) > CARDS, interactive=last < len(files)),
            gr.update(visible=bool(image_sets.removals(self.workspace, name))),
            first,
        ]
        return [*cards, *images, *names, *captions, *buttons, *pager]

    def save(self, chosen: str, name: str, caption: str) -> None:
        if name and chosen != BUNDLED:
            image_sets.save_captions(self.workspace, chosen, {name: caption or ""})

    def delete(self, chosen: str, name: str, first: int) -> list:
        image_sets.remove(self.workspace, chosen, name)
        notify(f"{name} was deleted; Undo delete brings it back")
        return self.view(chosen, first)

    def undo_delete(self, chosen: str, first: int) -> list:
        notify(f"{image_sets.undo_remove(self.workspace, chosen)} is back")
        return self.view(chosen, first)

    def turn(self, step: int, chosen: str, first: int) -> list:
        return self.view(chosen, int(first) + step)
