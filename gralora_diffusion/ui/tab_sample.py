"""Sample: images from adapters at any strength, the base's in a slider, and what was generated before."""

import errno
import html

import gradio as gr
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.image_text import info_of
from gralora_diffusion.ui import sample_history
from gralora_diffusion.ui.adapter_files import AS_TRAINED, add_adapter, chosen_base, prompt_of
from gralora_diffusion.ui.card_images import data_url
from gralora_diffusion.ui.handlers import (
    PRIVATE,
    QUIET,
    connect_generation,
    guarded,
    list_update,
    notify,
    on_end,
)
from gralora_diffusion.ui.image_series import Generated, series
from gralora_diffusion.ui.sample_fields import (
    DEFAULT_SCHEDULER,
    MORE_ADAPTERS,
    NAMES,
    NO_ADAPTER,
    SampleFields,
    all_requests,
)
from gralora_diffusion.ui.sample_memory import kept, restored
from gralora_diffusion.ui.sampler import Sampler, Step
from gralora_diffusion.ui.served import check_served, save_served, save_small
from gralora_diffusion.ui.suggestion import Suggestion
from gralora_diffusion.ui.tab_sample_history import History
from gralora_diffusion.ui.workspace import Workspace

NONE_CHOSEN = "() => ({__type__: 'update', selected_index: null})"  # the slider has the last image
RIGHT_CLICK = "Save it with a right click, and free some space"
NO_ADAPTERS = (
    "### No adapter yet\nTrain one: it is offered here when the run is done. Or add a file: **More**, then "
    "**Add an adapter file**. Meanwhile you can generate images of the base model here."
)
ONLY_CHECKPOINTS = (
    "### No finished run yet\nChoose a checkpoint under **Adapter**; without one, images of the base model "
    "are generated."
)


class SampleTab:
    """The tab's components, handlers and events; the page connects its `..._event`, `history.refresh_on`."""

    def __init__(self, workspace: Workspace, sampler: Sampler, saved: gr.BrowserState):
        self.workspace = workspace
        self.saved = saved
        self.sampler = sampler
        self.pairs = gr.State([])  # [base image, image] of each image
        self.suggested = gr.State(None)  # the adapter that the tab chose by itself
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.fields = SampleFields()
                self.adapter = self.fields["adapter"]
                self.build_buttons()
            with gr.Column(scale=3, min_width=300):
                self.build_images()
        self.history = History(workspace, self.fields)
        self.connect()

    def build_buttons(self) -> None:
        with gr.Row(elem_classes="tight"):
            self.generate = gr.Button(
                "Generate", variant="primary", elem_id="generate", scale=2, min_width=120
            )
            self.stop = gr.Button(
                "Stop generating", elem_id="stop-generating", interactive=False, min_width=110
            )

    def build_images(self) -> None:
        self.empty = gr.Markdown(
            NO_ADAPTERS,
            elem_id="no-adapters",
            visible=False,
        )
        self.progress = gr.Markdown("", elem_id="sample-progress", elem_classes="hint")
        self.unsaved = gr.HTML("", elem_id="unsaved", padding=False)
        self.slider = gr.ImageSlider(
            label="Base | adapter: drag the line",
            elem_id="slider",
            format="png",
            type="filepath",
            height=380,
            max_height=380,
            interactive=False,
        )
        self.gallery = gr.Gallery(
            label="Images: choose one to see it beside the base",
            columns=4,
            height="auto",
            format="png",
            elem_id="generated",
            allow_preview=False,
            object_fit="contain",
            visible=False,
        )

    def connect(self) -> None:
        fields = self.fields
        images = [self.gallery, self.slider, self.pairs, fields["seed"], self.progress, self.unsaved]
        generated = connect_generation(
            self.generate,
            self.stop,
            self.sample,
            fields.all,
            images,
            show_progress_on=self.slider,
            api_name="sample",
        )
        self.history.refresh_on(generated.success, generated.failure)
        on_end(generated, None, None, self.gallery, js=NONE_CHOSEN, **PRIVATE)
        self.gallery.select(guarded(self.pair_of_image), self.pairs, self.slider, **QUIET)
        prompt = [self.adapter, fields["prompt"]]
        self.first = Suggestion(fields["prompt"])
        self.adapter.change(guarded(self.first_prompt), prompt, self.first.received, **QUIET)
        others = [fields[name] for name in MORE_ADAPTERS]
        lists = [self.adapter, *others, fields["base"], self.empty, self.first.received, self.suggested]
        chosen = [*others, fields["prompt"]]
        current = [self.adapter, self.suggested, *chosen]
        self.lists_event = dict(fn=guarded(self.lists), inputs=current, outputs=lists, **QUIET)
        self.restore_event = dict(fn=guarded(self.restore), inputs=self.saved, outputs=fields.all, **QUIET)
        changes = [field.change for field in fields.all]
        kept_values = [self.suggested, *fields.all]
        gr.on(changes, guarded(self.kept), kept_values, self.saved, trigger_mode="always_last", **QUIET)
        fields.upload.upload(guarded(self.add_file), [fields.upload, *chosen], lists, **PRIVATE)

    def sample(
        self,
        adapter,
        strength,
        prompt,
        count,
        seed,
        second=NO_ADAPTER,
        second_strength=0.5,
        steps=25,
        guidance="",
        base=AS_TRAINED,
        with_base=True,
        negative="",
        size="",
        scheduler=DEFAULT_SCHEDULER,
        random_seed=False,
        sweep="",
        third=NO_ADAPTER,
        third_strength=0.5,
        fourth=NO_ADAPTER,
        fourth_strength=0.5,
        preview_every=5,
    ):
        """(gallery, slider, pairs, seed, progress, unsaved) after each preview and image."""
        values = locals().copy()  # the arguments, by the names of the fields
        requests = all_requests(self.workspace, values)
        given = [name for name in (adapter, second, third, fourth) if name not in (None, "", NO_ADAPTER)]
        model = chosen_base(self.workspace, base, given[0] if given else None)
        choice = base if isinstance(base, str) else AS_TRAINED
        used_seed = requests[0].seed if random_seed is True else gr.skip()
        images, pairs = [], []
        for event in series(self.sampler, requests, model, with_base is True, int(preview_every)):
            if isinstance(event, Step):
                if preview := self.preview(event):
                    text = (
                        f"image {len(images) + 1} of {len(requests)} · step {event.number} of {event.steps}"
                    )
                    yield gr.skip(), (preview, preview), gr.skip(), used_seed, f"Preview of {text}", ""
                continue
            note = self.keep(event, choice)
            try:
                pair = self.save(event)
            except OSError as error:  # the browser gets the image itself
                unsaved = image_in_html(event.image, caption(event, len(requests)))
                yield gr.skip(), gr.skip(), gr.skip(), used_seed, "", unsaved
                raise ConfigError(f"{not_saved(error)}, so the series ends here. {RIGHT_CLICK}") from None
            images.append((pair[1], caption(event, len(requests))))
            pairs.append(pair)
            progress = f"{len(images)} of {len(requests)}{note}"
            yield images, tuple(pair), pairs, used_seed, progress, ""

    def preview(self, step: Step) -> str | None:
        """The served file of a step's preview; None where there is none, or no space for it."""
        if step.preview is None:
            return None
        try:
            return save_small(self.workspace, step.preview, "preview.jpg")
        except OSError:
            return None

    def keep(self, found: Generated, base: str) -> str:
        """Keep an image in the history; a note where that is not possible."""
        try:
            sample_history.keep(self.workspace, found.image, found.request, base)
        except OSError as error:
            return f" · **{not_saved(error)}**: it is displayed, but not kept in the history"
        return ""

    def save(self, found: Generated) -> list[str]:
        """[the served base's image, or the image itself; the served image]."""
        request = found.request
        path = save_served(self.workspace, found.image, f"seed-{request.seed}.png")
        if found.base_image is None:
            return [path, path]
        return [save_served(self.workspace, found.base_image, f"base-seed-{request.seed}.png"), path]

    def pair_of_image(self, pairs: list, event: gr.SelectData):
        """The slider for the image of the gallery that was clicked."""
        if not isinstance(event.index, int) or not 0 <= event.index < len(pairs):
            return gr.skip()
        pair = pairs[event.index]
        check_served(pair, "choose one under History")
        return tuple(pair)

    def first_prompt(self, adapter: str | None, prompt: str):
        """Where the prompt is empty, the one that the adapter was trained with; else no update."""
        found = prompt or (prompt_of(self.workspace, adapter) if adapter else "")
        return self.first.of(found, prompt)

    def lists(self, chosen, suggested, *others_and_prompt) -> tuple:
        """The adapters and bases of now, what was chosen kept where it is still there, and a first prompt."""
        *others, prompt = others_and_prompt
        names = self.workspace.adapter_names()
        adapter = self.workspace.kept_or_suggested(chosen, suggested)
        choices = self.workspace.adapter_choices()
        more = []
        for other in others:
            value = self.workspace.name_now(other, names) or NO_ADAPTER
            more.append(list_update([NO_ADAPTER, *choices], value, other))
        return (
            list_update(choices, adapter, chosen),
            *more,
            gr.update(choices=[AS_TRAINED, *self.workspace.base_names()]),
            gr.update(value=ONLY_CHECKPOINTS if names else NO_ADAPTERS, visible=not adapter),
            self.first_prompt(adapter, prompt),
            self.workspace.suggested_adapter(),
        )

    def kept(self, request: gr.Request, suggested: str | None, *values) -> dict:
        """What the browser keeps of the fields."""
        fields, names = dict(zip(NAMES, values, strict=True)), self.workspace.adapter_names()
        fields["adapter"] = self.workspace.name_now(fields["adapter"], names) or fields["adapter"]
        suggested = self.workspace.name_now(suggested, names)
        filled = dict(adapter=suggested, prompt=prompt_of(self.workspace, suggested)) if suggested else {}
        return kept(request.username, self.fields, fields, filled)

    def restore(self, request: gr.Request, saved) -> list:
        """The fields as this user's browser kept them."""
        found = restored(saved, request.username, self.fields, self.workspace)
        return [found.get(name, gr.skip()) for name in NAMES]

    def add_file(self, path: str, *others_and_prompt) -> tuple:
        name = add_adapter(self.workspace, path)
        notify(f"{name} was added to the adapters")
        _, *others = self.lists(name, None, *others_and_prompt)
        return gr.update(choices=self.workspace.adapter_choices(), value=name), *others


def not_saved(error: OSError) -> str:
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
    return f"The image could not be saved ({reason})"


def image_in_html(image: Image.Image, text: str) -> str:
    """The image itself, with its texts, as HTML."""
    url = data_url(image, "PNG", pnginfo=info_of(image))
    return f'<figure><img src="{url}" alt="{html.escape(text)}"></figure>'


def caption(found: Generated, of: int) -> str:
    """Of an image in the gallery; of: how many images there are."""
    request = found.request
    return f"seed {request.seed} · {request.adapters_text}" + (f" · {request.prompt[:60]}" if of > 1 else "")
