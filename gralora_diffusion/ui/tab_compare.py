"""Compare: a grid of adapters and strengths, the base beside any of its images, and the scores."""

from pathlib import Path
from types import SimpleNamespace

import gradio as gr
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.sampling import sheet
from gralora_diffusion.ui import drawing, scores
from gralora_diffusion.ui import grid as comparing
from gralora_diffusion.ui.drawing import AS_TRAINED, Drawing, Sampler
from gralora_diffusion.ui.grid import Cell
from gralora_diffusion.ui.handlers import draws, plain
from gralora_diffusion.ui.workspace import Workspace


def build(home: Workspace, studio: Sampler) -> SimpleNamespace:
    cells, sheet_file = gr.State([]), gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            adapters = gr.Dropdown(
                [],
                multiselect=True,
                allow_custom_value=True,
                max_choices=8,
                label="Adapters",
                info="One row each: runs, checkpoints, added files",
                elem_id="compare-adapters",
            )
            strengths = gr.Textbox(
                "0, 0.5, 1",
                label="Strengths",
                info="One column each; 0 is the base",
                max_length=100,
                elem_id="strengths",
            )
            prompt = gr.Textbox(
                label="Prompt",
                lines=2,
                max_length=drawing.LONGEST,
                placeholder="a photo of sks robot in the snow",
                elem_id="compare-prompt",
            )
            with gr.Row():
                seed = gr.Number(0, label="First seed", precision=0, elem_id="compare-seed", min_width=90)
                seeds = gr.Slider(
                    1,
                    8,
                    1,
                    step=1,
                    label="Seeds",
                    info="From 2 on the scores have a spread",
                    elem_id="seeds",
                    min_width=120,
                )
            steps = gr.Slider(
                1,
                drawing.MOST_STEPS,
                25,
                step=1,
                label="Denoising steps",
                elem_id="compare-steps",
                min_width=120,
            )
            with gr.Row(elem_classes="tight"):
                draw = gr.Button(
                    "Draw the grid", variant="primary", elem_id="draw-grid", scale=2, min_width=130
                )
                halt = gr.Button("Stop drawing", elem_id="halt-grid", min_width=110)
            subject = gr.Dropdown(
                [AS_TRAINED],
                value=AS_TRAINED,
                allow_custom_value=True,
                label="Score against the images of",
                elem_id="subject",
            )
            encoders = gr.Dropdown(
                scores.encoder_names(),
                value=["imagenet"],
                multiselect=True,
                label="Encoders",
                info="imagenet and embedded need no download",
                elem_id="encoders",
            )
            score = gr.Button("Score the grid", elem_id="score")
        with gr.Column(scale=3, min_width=300):
            hint = gr.Markdown(
                "### Nothing to compare yet\nTrain an adapter, or add one under **Sample**.",
                visible=False,
                elem_id="nothing-to-compare",
            )
            gallery = gr.Gallery(
                label="Adapters down, strengths across: choose an image to see it beside the base",
                columns=3,
                height="auto",
                format="png",
                elem_id="grid",
                allow_preview=False,
            )
            slider = gr.ImageSlider(
                label="First column | chosen image: drag the line",
                format="png",
                type="filepath",
                height=340,
                max_height=340,
                interactive=False,
                elem_id="grid-slider",
            )
    table = gr.Dataframe(
        headers=scores.HEAD, datatype="str", interactive=False, wrap=True, label="Scores", elem_id="scores"
    )
    files = gr.File(
        label="Downloads: the grid on one sheet, the scores as CSV and JSON",
        file_count="multiple",
        interactive=False,
        visible=False,
        elem_id="compare-files",
    )

    def compare(adapters, strengths, prompt, seed, seeds, steps):
        columns, names = comparing.parsed_strengths(strengths or ""), list(adapters or [])
        first = Drawing(prompt or "", int(seed or 0), (), int(steps), None).checked(home)
        for name in names:
            home.adapter(name)
        made: list[Cell] = []
        for cell, image in comparing.grid(studio, names, columns, first, int(seeds)):
            path = drawing.serve(home, image, "cell.png")
            made.append(Cell(cell.adapter, cell.strength, cell.seed, path, first.prompt))
            cells_so_far = gr.update(value=captioned(made), columns=len(columns) * int(seeds))
            yield cells_so_far, (made[0].path, path), made, gr.update(value=[], visible=False), None, None
        rows = {name: [Image.open(c.path) for c in made if c.adapter == name] for name in names}
        heads = [f"strength {s:g}, seed {int(seed or 0) + n}" for s in columns for n in range(int(seeds))]
        path = drawing.serve(home, sheet(rows, heads), "grid.png")
        yield (
            cells_so_far,
            (made[0].path, made[-1].path),
            made,
            gr.update(value=[path], visible=True),
            path,
            None,
        )

    def captioned(made):
        return [(c.path, f"{c.group} · seed {c.seed}") for c in made]

    def evaluate(made, sheet_path, against, encoders):
        made = [cell for cell in made if isinstance(cell, Cell)]
        if not made:
            raise ConfigError("draw a grid first; then it can be scored")
        rows = []
        for name in dict.fromkeys(c.adapter for c in made):
            references = (
                comparing.subject_of(home, name)
                if against in (None, AS_TRAINED)
                else comparing.set_images(home, against)
            )
            cells: dict[str, list[Cell]] = {}
            for cell in made:
                if cell.adapter == name:
                    cells.setdefault(cell.group, []).append(cell)
            groups = [
                scores.Group(label, [Path(c.path) for c in found], [c.prompt for c in found])
                for label, found in cells.items()
            ]
            rows += scores.scores(groups, references, list(encoders or []), home.root / ".page" / "features")
        files = [sheet_path] if sheet_path else []
        return rows, gr.update(value=files + comparing.save_table(home, scores.HEAD, rows), visible=True)

    def turn_to(made, event: gr.SelectData):
        if not isinstance(event.index, int) or not 0 <= event.index < len(made):
            return gr.skip()
        chosen = made[event.index]
        first = next(c for c in made if c.adapter == chosen.adapter and c.seed == chosen.seed)
        return first.path, chosen.path

    def lists(adapters, against, words):
        names = home.adapter_names()
        kept = [name for name in adapters or [] if name in names] or names[:1]
        sets = [AS_TRAINED, *home.set_names()]
        return (
            gr.update(choices=names, value=kept),
            gr.update(choices=sets, value=against if against in sets else AS_TRAINED),
            gr.update(visible=not names),
            first_prompt(kept, words),
        )

    def first_prompt(adapters, words):
        return words or (drawing.prompt_of(home, adapters[0]) if adapters else "")

    asked = [adapters, strengths, prompt, seed, seeds, steps]
    drawn = draws(
        draw, halt, compare, asked, [gallery, slider, cells, files, sheet_file, table], api_name="compare"
    )
    # all cells once more: of answers that come within 0.1 s a browser's gallery may keep an older one
    drawn.success(
        plain(captioned), cells, gallery, queue=False, show_progress="hidden", api_visibility="private"
    )
    score.click(
        plain(evaluate),
        [cells, sheet_file, subject, encoders],
        [table, files],
        api_name="evaluate",
        concurrency_id="gpu",
    )
    quiet = dict(queue=False, show_progress="hidden", api_visibility="private")
    gallery.select(plain(turn_to), cells, slider, **quiet)
    adapters.change(plain(first_prompt), [adapters, prompt], prompt, **quiet)
    return SimpleNamespace(
        listed=dict(
            fn=plain(lists),
            inputs=[adapters, subject, prompt],
            outputs=[adapters, subject, hint, prompt],
            **quiet,
        )
    )
