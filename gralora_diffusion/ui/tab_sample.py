"""Sample: images from an adapter at any strength, a second one beside it, the base in a slider."""

from types import SimpleNamespace

import gradio as gr

from gralora_diffusion.ui import drawing
from gralora_diffusion.ui.drawing import AS_TRAINED, MOST_IMAGES, MOST_STEPS, MOST_STRENGTH, Drawing, Sampler
from gralora_diffusion.ui.handlers import draws, plain, tell
from gralora_diffusion.ui.workspace import Workspace

NONE = "none"


def build(home: Workspace, studio: Sampler) -> SimpleNamespace:
    pairs = gr.State([])
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            adapter = gr.Dropdown(
                [],
                allow_custom_value=True,
                label="Adapter",
                info="A run, one of its checkpoints, or a file that was added",
                elem_id="adapter",
            )
            strength = gr.Slider(
                0,
                MOST_STRENGTH,
                1.0,
                step=0.05,
                label="Strength",
                info="0 is the base, 1 the adapter as trained",
                elem_id="strength",
            )
            prompt = gr.Textbox(
                label="Prompt",
                lines=2,
                max_length=drawing.LONGEST,
                placeholder="a photo of sks robot on the beach",
                elem_id="prompt",
            )
            with gr.Row():
                count = gr.Slider(1, MOST_IMAGES, 2, step=1, label="Images", elem_id="count", min_width=140)
                seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=100)
            with gr.Accordion(
                "More: a second adapter, steps, guidance, base", open=False, elem_id="sample-more"
            ):
                second = gr.Dropdown(
                    [NONE], value=NONE, allow_custom_value=True, label="Second adapter", elem_id="second"
                )
                weight = gr.Slider(
                    0, MOST_STRENGTH, 0.5, step=0.05, label="Its strength", elem_id="second-strength"
                )
                with gr.Row():
                    steps = gr.Slider(
                        1,
                        MOST_STEPS,
                        25,
                        step=1,
                        label="Denoising steps",
                        elem_id="sample-steps",
                        min_width=140,
                    )
                    guidance = gr.Number(
                        None,
                        label="Guidance",
                        placeholder="3 or 5, as suits the base",
                        elem_id="guidance",
                        min_width=140,
                    )
                base = gr.Dropdown(
                    [AS_TRAINED],
                    value=AS_TRAINED,
                    allow_custom_value=True,
                    label="Base",
                    elem_id="sample-base",
                )
                upload = gr.UploadButton(
                    "Add an adapter file", file_types=[".safetensors"], size="sm", elem_id="add-adapter"
                )
            beside = gr.Checkbox(
                True, label="The base's image of the same seed beside each", elem_id="beside"
            )
            with gr.Row(elem_classes="tight"):
                draw = gr.Button("Draw", variant="primary", elem_id="draw", scale=2, min_width=120)
                halt = gr.Button("Stop drawing", elem_id="halt", min_width=110)
        with gr.Column(scale=3, min_width=300):
            empty = gr.Markdown(
                "### No adapter yet\nTrain one first; meanwhile the base alone draws here.",
                elem_id="no-adapters",
                visible=False,
            )
            slider = gr.ImageSlider(
                label="Base | personalised: drag the line",
                elem_id="slider",
                format="png",
                type="filepath",
                height=380,
                max_height=380,
                interactive=False,
            )
            gallery = gr.Gallery(
                label="Images: choose one to see it beside the base",
                columns=4,
                height="auto",
                format="png",
                elem_id="drawn",
                allow_preview=False,
            )

    def sample(adapter, strength, prompt, count, seed, second, weight, steps, guidance, base, beside):
        adapters = [
            (name, float(value))
            for name, value in ((adapter, strength), (second, weight))
            if name and name != NONE
        ]
        first = Drawing(prompt or "", int(seed or 0), tuple(adapters), int(steps), guidance).checked(home)
        where, shown, made = drawing.chosen_base(home, base, adapter), [], []
        for number, image, plain_one in drawing.series(
            studio, first, int(count), where, bool(beside) and bool(adapters)
        ):
            path = drawing.serve(home, image, f"seed-{number}.png")
            other = drawing.serve(home, plain_one, f"base-seed-{number}.png") if plain_one else path
            made.append([other, path])
            shown.append((path, f"seed {number} · {', '.join(f'{n} {s:g}' for n, s in adapters) or 'base'}"))
            yield shown, tuple(made[-1]), made

    def turn_to(made, event: gr.SelectData):
        return (
            tuple(made[event.index])
            if isinstance(event.index, int) and 0 <= event.index < len(made)
            else gr.skip()
        )

    def choose(name, words):
        return words or (drawing.prompt_of(home, name) if name else "")

    def lists(adapter, second, base, words):
        """Fresh lists, what was chosen kept where it is still there, and the prompt to begin from."""
        names = home.adapter_names()
        first = adapter if adapter in names else names[0] if names else None
        return (
            gr.update(choices=names, value=first), gr.update(choices=[NONE, *names], value=second if second in names else NONE),
            gr.update(choices=[AS_TRAINED, *home.base_names()]), gr.update(visible=not names), choose(first, words),
        )  # fmt: skip

    def added(path, second, base, words):
        name = drawing.add_adapter(home, path)
        tell(f"{name} is among the adapters")
        return lists(name, second, base, words)

    inputs = [adapter, strength, prompt, count, seed, second, weight, steps, guidance, base, beside]
    draws(draw, halt, sample, inputs, [gallery, slider, pairs], api_name="sample")
    gallery.select(
        plain(turn_to), pairs, slider, queue=False, api_visibility="private", show_progress="hidden"
    )
    adapter.change(
        plain(choose),
        [adapter, prompt],
        prompt,
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )
    listed = dict(
        fn=plain(lists),
        inputs=[adapter, second, base, prompt],
        outputs=[adapter, second, base, empty, prompt],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    upload.upload(plain(added), [upload, second, base, prompt], listed["outputs"], api_visibility="private")
    return SimpleNamespace(listed=listed)
