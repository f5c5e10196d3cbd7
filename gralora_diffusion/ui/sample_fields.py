"""What Sample asks for: the components, and the request that their values make."""

import gradio as gr

from gralora_diffusion.config.choices import SAMPLERS
from gralora_diffusion.ui.adapter_files import AS_TRAINED
from gralora_diffusion.ui.grid import parse_strengths
from gralora_diffusion.ui.handlers import QUIET, optional_number
from gralora_diffusion.ui.image_series import (
    MAX_IMAGES,
    MAX_PREVIEW,
    MAX_PROMPTS,
    prompts_of,
    random_seed,
    requests_of,
)
from gralora_diffusion.ui.sampler import MAX_PROMPT, MAX_STEPS, MAX_STRENGTH, ImageRequest
from gralora_diffusion.ui.workspace import Workspace

NO_ADAPTER = "none"
DEFAULT_SCHEDULER = "same as the base model"
MORE_ADAPTERS = ("second", "third", "fourth")
NAMES = (  # of the fields, in the order in which the page's API takes their values
    "adapter",
    "strength",
    "prompt",
    "count",
    "seed",
    "second",
    "second_strength",
    "steps",
    "guidance",
    "base",
    "with_base",
    "negative",
    "size",
    "scheduler",
    "random_seed",
    "sweep",
    "third",
    "third_strength",
    "fourth",
    "fourth_strength",
    "preview_every",
)


class SampleFields:
    """The components by name; `all` has them in the order of NAMES."""

    def __init__(self):
        self.by_name = {}
        self.build_front()
        more = "More: negative prompt, size, scheduler, steps, more adapters"
        with gr.Accordion(more, open=False, elem_id="sample-more") as self.more:
            self.build_adapters()
            self.build_sampling()
            self.upload = gr.UploadButton(
                "Add an adapter file", file_types=[".safetensors"], size="sm", elem_id="add-adapter"
            )
        self.by_name["with_base"] = gr.Checkbox(
            True, label="Also generate the base model's image", elem_id="beside"
        )

    @property
    def all(self) -> list:
        return [self.by_name[name] for name in NAMES]

    def __getitem__(self, name: str):
        return self.by_name[name]

    def build_front(self) -> None:
        found = self.by_name
        found["adapter"] = gr.Dropdown(
            [],
            allow_custom_value=True,
            label="Adapter",
            info="A run, one of its checkpoints, or a file that was added",
            elem_id="adapter",
        )
        found["strength"] = gr.Slider(
            0,
            MAX_STRENGTH,
            1.0,
            step=0.05,
            label="Strength",
            info="0 is the base, 1 the adapter as trained",
            elem_id="strength",
        )
        found["prompt"] = gr.Textbox(
            label="Prompt",
            info="Several prompts: one per line",
            lines=2,
            max_length=MAX_PROMPT * MAX_PROMPTS,
            placeholder="a photo of sks robot on the beach",
            elem_id="prompt",
        )
        with gr.Row():
            found["count"] = gr.Slider(
                1, MAX_IMAGES, 2, step=1, label="Images", elem_id="count", min_width=120
            )
            found["seed"] = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=90)
            found["random_seed"] = gr.Checkbox(
                False, label="New seed each time", elem_id="random-seed", container=False, min_width=90
            )
        found["sweep"] = gr.Textbox(
            label="Strength sweep",
            info="Blank for one image at Strength; a list gives one at each strength, with the same seed",
            placeholder="0.25, 0.5, 0.75, 1, 1.25",
            max_length=100,
            elem_id="sweep",
        )

    def build_adapters(self) -> None:
        """The rows of further adapters: a row appears when the one before it is used."""
        rows = []
        for number, name in enumerate(MORE_ADAPTERS):
            with gr.Row(visible=number == 0) as row:
                self.by_name[name] = gr.Dropdown(
                    [NO_ADAPTER],
                    value=NO_ADAPTER,
                    allow_custom_value=True,
                    label=f"{name.capitalize()} adapter",
                    elem_id=name,
                    min_width=140,
                )
                self.by_name[f"{name}_strength"] = gr.Slider(
                    0,
                    MAX_STRENGTH,
                    0.5,
                    step=0.05,
                    label=f"{name.capitalize()} adapter strength",
                    elem_id=f"{name}-strength",
                    min_width=140,
                )
            rows.append(row)
        dropdowns = [self.by_name[name] for name in MORE_ADAPTERS]
        for dropdown in dropdowns[:-1]:
            dropdown.change(visible_rows, dropdowns[:-1], rows[1:], **QUIET)

    def build_sampling(self) -> None:
        found = self.by_name
        with gr.Row():
            found["steps"] = gr.Slider(
                1, MAX_STEPS, 25, step=1, label="Denoising steps", elem_id="sample-steps", min_width=140
            )
            found["guidance"] = gr.Textbox(
                label="Guidance scale",
                placeholder="blank: 5, or 3 for the demo model",
                max_length=8,
                elem_id="guidance",
                min_width=140,
            )
        found["negative"] = gr.Textbox(
            label="Negative prompt",
            placeholder="what the image should not show",
            max_length=MAX_PROMPT,
            elem_id="negative",
        )
        with gr.Row():
            found["size"] = gr.Textbox(
                label="Size",
                placeholder="blank: the base model's; or 832x1216",
                max_length=11,
                elem_id="size",
                min_width=140,
            )
            found["scheduler"] = gr.Dropdown(
                [DEFAULT_SCHEDULER, *SAMPLERS],
                value=DEFAULT_SCHEDULER,
                label="Scheduler",
                elem_id="scheduler",
                min_width=140,
            )
        found["preview_every"] = gr.Slider(
            0,
            MAX_PREVIEW,
            5,
            step=1,
            label="Preview every (steps)",
            info="0: none. Small and blurred; the finished image is exact",
            elem_id="preview-every",
        )
        found["base"] = gr.Dropdown(
            [AS_TRAINED], value=AS_TRAINED, allow_custom_value=True, label="Base model", elem_id="sample-base"
        )


def visible_rows(second: str | None, third: str | None) -> tuple:
    """The rows of the third and fourth adapter."""
    has_second, has_third = (name not in (None, "", NO_ADAPTER) for name in (second, third))
    return gr.update(visible=has_second or has_third), gr.update(visible=has_third)


def first_request(workspace: Workspace, values: dict) -> ImageRequest:
    """The request of the first prompt and seed, checked; values: by the names of NAMES."""
    adapters = []
    for name in ("adapter", *MORE_ADAPTERS):
        strength = values["strength" if name == "adapter" else f"{name}_strength"]
        if values[name] and values[name] != NO_ADAPTER:
            adapters.append((values[name], float(strength)))
    scheduler = values["scheduler"]
    request = ImageRequest(
        prompt=prompts_of(values["prompt"])[0],
        seed=random_seed() if values["random_seed"] is True else int(values["seed"] or 0),
        adapters=tuple(adapters),
        steps=int(values["steps"]),
        guidance=optional_number(values["guidance"], "guidance scale"),
        negative_prompt=values["negative"] or "",
        size=(values["size"] or "").strip(),
        scheduler="" if scheduler == DEFAULT_SCHEDULER else scheduler or "",
    )
    return request.checked(workspace)


def all_requests(workspace: Workspace, values: dict) -> list[ImageRequest]:
    """Every image that is asked for, checked, in the order in which they are generated."""
    first = first_request(workspace, values)
    sweep = (values["sweep"] or "").strip()
    strengths = parse_strengths(sweep) if sweep else []
    found = requests_of(first, prompts_of(values["prompt"]), int(values["count"]), strengths)
    return [request.checked(workspace) for request in found]


def values_of(request: ImageRequest, base: str) -> dict:
    """The values of the fields that generate this image again."""
    values = dict(
        adapter=None,
        strength=1.0,
        prompt=request.prompt,
        count=1,
        seed=request.seed,
        random_seed=False,
        sweep="",
        steps=request.steps,
        guidance="" if request.guidance is None else f"{request.guidance:g}",
        negative=request.negative_prompt,
        size=request.size,
        scheduler=request.scheduler or DEFAULT_SCHEDULER,
        base=base or AS_TRAINED,
    )
    for name in MORE_ADAPTERS:
        values |= {name: NO_ADAPTER, f"{name}_strength": 0.5}
    for field, (name, strength) in zip(("adapter", *MORE_ADAPTERS), request.adapters, strict=False):
        values |= {field: name, "strength" if field == "adapter" else f"{field}_strength": strength}
    return values
