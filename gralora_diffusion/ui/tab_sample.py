"""Sample: images from an adapter at any strength, a second one beside it, the base in a slider."""

import gradio as gr

from gralora_diffusion.config.choices import SAMPLERS
from gralora_diffusion.ui.adapter_files import AS_TRAINED, add_adapter, chosen_base, prompt_of
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, connect_generation, guarded, notify, optional_number
from gralora_diffusion.ui.sampler import (
    MAX_IMAGES,
    MAX_PROMPT,
    MAX_STEPS,
    MAX_STRENGTH,
    ImageRequest,
    Sampler,
    image_series,
)
from gralora_diffusion.ui.served import save_served
from gralora_diffusion.ui.workspace import Workspace

NO_ADAPTER = "none"
DEFAULT_SCHEDULER = "same as the base model"


class SampleTab:
    """The tab's components, handlers and events; the page connects `lists_event`."""

    def __init__(self, workspace: Workspace, sampler: Sampler):
        self.workspace = workspace
        self.sampler = sampler
        self.pairs = gr.State([])  # [base image, image] of each image
        self.suggested = gr.State(None)  # the adapter that the tab chose by itself
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.build_request()
            with gr.Column(scale=3, min_width=300):
                self.build_images()
        self.connect()

    def build_request(self) -> None:
        self.adapter = gr.Dropdown(
            [],
            allow_custom_value=True,
            label="Adapter",
            info="A run, one of its checkpoints, or a file that was added",
            elem_id="adapter",
        )
        self.strength = gr.Slider(
            0,
            MAX_STRENGTH,
            1.0,
            step=0.05,
            label="Strength",
            info="0 is the base, 1 the adapter as trained",
            elem_id="strength",
        )
        self.prompt = gr.Textbox(
            label="Prompt",
            lines=2,
            max_length=MAX_PROMPT,
            placeholder="a photo of sks robot on the beach",
            elem_id="prompt",
        )
        with gr.Row():
            self.count = gr.Slider(1, MAX_IMAGES, 2, step=1, label="Images", elem_id="count", min_width=140)
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=100)
        more = "More: negative prompt, size, scheduler, steps, a second adapter"
        with gr.Accordion(more, open=False, elem_id="sample-more"):
            self.build_more()
        self.with_base = gr.Checkbox(True, label="Also generate the base model's image", elem_id="beside")
        with gr.Row(elem_classes="tight"):
            self.generate = gr.Button(
                "Generate", variant="primary", elem_id="generate", scale=2, min_width=120
            )
            self.stop = gr.Button("Stop generating", elem_id="stop-generating", min_width=110)

    def build_more(self) -> None:
        self.second = gr.Dropdown(
            [NO_ADAPTER], value=NO_ADAPTER, allow_custom_value=True, label="Second adapter", elem_id="second"
        )
        self.second_strength = gr.Slider(
            0, MAX_STRENGTH, 0.5, step=0.05, label="Second adapter strength", elem_id="second-strength"
        )
        with gr.Row():
            self.steps = gr.Slider(
                1, MAX_STEPS, 25, step=1, label="Denoising steps", elem_id="sample-steps", min_width=140
            )
            self.guidance = gr.Textbox(
                label="Guidance scale",
                placeholder="blank: 5, or 3 for the demo model",
                max_length=8,
                elem_id="guidance",
                min_width=140,
            )
        self.negative = gr.Textbox(
            label="Negative prompt",
            placeholder="what the image should not show",
            max_length=MAX_PROMPT,
            elem_id="negative",
        )
        with gr.Row():
            self.size = gr.Textbox(
                label="Size",
                placeholder="blank: the base model's; or 832x1216",
                max_length=11,
                elem_id="size",
                min_width=140,
            )
            self.scheduler = gr.Dropdown(
                [DEFAULT_SCHEDULER, *SAMPLERS],
                value=DEFAULT_SCHEDULER,
                label="Scheduler",
                elem_id="scheduler",
                min_width=140,
            )
        self.base = gr.Dropdown(
            [AS_TRAINED], value=AS_TRAINED, allow_custom_value=True, label="Base", elem_id="sample-base"
        )
        self.upload = gr.UploadButton(
            "Add an adapter file", file_types=[".safetensors"], size="sm", elem_id="add-adapter"
        )

    def build_images(self) -> None:
        self.empty = gr.Markdown(
            "### No adapter yet\nTrain one first; meanwhile images of the base alone can be generated here.",
            elem_id="no-adapters",
            visible=False,
        )
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
        )

    def connect(self) -> None:
        request = [
            self.adapter,
            self.strength,
            self.prompt,
            self.count,
            self.seed,
            self.second,
            self.second_strength,
            self.steps,
            self.guidance,
            self.base,
            self.with_base,
            self.negative,
            self.size,
            self.scheduler,
        ]
        images = [self.gallery, self.slider, self.pairs]
        connect_generation(self.generate, self.stop, self.sample, request, images, api_name="sample")
        self.gallery.select(guarded(self.pair_of_image), self.pairs, self.slider, **QUIET)
        self.adapter.change(guarded(self.first_prompt), [self.adapter, self.prompt], self.prompt, **QUIET)
        chosen = [self.second, self.base, self.prompt]
        lists = [self.adapter, self.second, self.base, self.empty, self.prompt, self.suggested]
        current = [self.adapter, *chosen, self.suggested]
        self.lists_event = dict(fn=guarded(self.lists), inputs=current, outputs=lists, **QUIET)
        self.upload.upload(guarded(self.add_file), [self.upload, *chosen], lists, **PRIVATE)

    def sample(
        self,
        adapter,
        strength,
        prompt,
        count,
        seed,
        second,
        second_strength,
        steps,
        guidance,
        base,
        with_base,
        negative="",
        size="",
        scheduler=DEFAULT_SCHEDULER,
    ):
        """(gallery, slider, pairs) after each image."""
        adapters = []
        for name, value in ((adapter, strength), (second, second_strength)):
            if name and name != NO_ADAPTER:
                adapters.append((name, float(value)))
        first = ImageRequest(
            prompt=prompt or "",
            seed=int(seed or 0),
            adapters=tuple(adapters),
            steps=int(steps),
            guidance=optional_number(guidance, "guidance scale"),
            negative_prompt=negative or "",
            size=(size or "").strip(),
            scheduler="" if scheduler == DEFAULT_SCHEDULER else scheduler or "",
        )
        first = first.checked(self.workspace)
        base = chosen_base(self.workspace, base, adapter)
        settings = ", ".join(f"{name} {value:g}" for name, value in adapters) or "base"
        images = []
        pairs = []
        compared = bool(with_base) and bool(adapters)
        for seed, image, base_image in image_series(self.sampler, first, int(count), base, compared):
            path = save_served(self.workspace, image, f"seed-{seed}.png")
            base_path = path
            if base_image:
                base_path = save_served(self.workspace, base_image, f"base-seed-{seed}.png")
            images.append((path, f"seed {seed} · {settings}"))
            pairs.append([base_path, path])
            yield images, (base_path, path), pairs

    def pair_of_image(self, pairs: list, event: gr.SelectData):
        """The slider for the image of the gallery that was clicked."""
        if not isinstance(event.index, int) or not 0 <= event.index < len(pairs):
            return gr.skip()
        return tuple(pairs[event.index])

    def first_prompt(self, adapter: str | None, prompt: str) -> str:
        """The prompt, or where it is empty the one that the adapter was trained with."""
        return prompt or (prompt_of(self.workspace, adapter) if adapter else "")

    def lists(self, adapter, second, base, prompt, suggested=None) -> tuple:
        """The adapters and bases of now, what was chosen kept where it is still there, and a first prompt."""
        names = self.workspace.adapter_names()
        adapter = self.workspace.kept_or_suggested(adapter, suggested)
        second = second if second in names else NO_ADAPTER
        return (
            gr.update(choices=names, value=adapter),
            gr.update(choices=[NO_ADAPTER, *names], value=second),
            gr.update(choices=[AS_TRAINED, *self.workspace.base_names()]),
            gr.update(visible=not names),
            self.first_prompt(adapter, prompt),
            self.workspace.suggested_adapter(),
        )

    def add_file(self, path: str, second, base, prompt) -> tuple:
        name = add_adapter(self.workspace, path)
        notify(f"{name} was added to the adapters")
        return self.lists(name, second, base, prompt)
