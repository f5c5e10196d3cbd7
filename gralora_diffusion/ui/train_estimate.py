"""The bar at the bottom of Train: time, memory and files of the run, what is wrong, Check and Start."""

from collections.abc import Iterator

import gradio as gr

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.ui.expected_time import ExpectedTime, Measured, expected_time, known_time
from gralora_diffusion.ui.forecasts import Estimate, estimate_of, is_estimated, memory_text, try_out
from gralora_diffusion.ui.workspace import Workspace

UNKNOWN = "press Check"
NOT_MEASURED = "measured by the run"  # its download may take long
MEASURING = "measuring ..."


class EstimateBar:
    """The bar's components; `facts` are those that estimates update."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        with gr.Accordion("Estimate in detail", open=False, elem_id="details"):
            self.table = gr.Dataframe(
                headers=["what", "how much"],
                datatype="str",
                interactive=False,
                wrap=True,
                label="Estimate",
                column_widths=["24%", "76%"],
                elem_id="forecast",
            )
        with gr.Column(elem_id="start-bar"):
            self.problem = gr.Textbox(
                label="Fix before starting", visible=False, interactive=False, elem_id="problem", lines=1
            )
            with gr.Row(elem_id="estimate"):
                self.time = fact("Time", "estimate-time")
                self.memory = fact("Memory", "estimate-memory")
                self.disk = fact("Files", "estimate-files")
                self.check = gr.Button("Check", elem_id="check", min_width=90, scale=0)
                self.start = gr.Button("Start", variant="primary", elem_id="start", min_width=140, scale=0)
            self.marks = gr.Textbox("[]", visible="hidden", label="Mistakes", elem_id="marks")
        self.facts = [self.time, self.memory, self.disk, self.table]

    def values(self, run: str, config: TrainConfig, estimate: Estimate, time: str, more: str = "") -> list:
        """Updates of the facts for a run with this name; more: about the time, in the table alone."""
        rows = [*estimate.rows, ("Files written", estimate.files(run)), ("Time", f"{time}{more}")]
        memory = memory_text(config, estimate, self.workspace)
        return [time, memory, estimate.size(), [list(row) for row in rows]]

    def at_once(self, run: str, config: TrainConfig) -> list:
        """Updates of the facts, as far as they are known without a download or a measurement.

        run: its name.  Raises ConfigError when the run is impossible.
        """
        remote = is_remote(config)
        if remote and not is_estimated(config, self.workspace):
            return [UNKNOWN, UNKNOWN, UNKNOWN, gr.skip()]
        estimate = estimate_of(config, self.workspace)
        known = known_time(config, estimate.work, self.workspace)
        if known is None:
            return self.values(run, config, estimate, NOT_MEASURED if remote else UNKNOWN)
        return self.values(run, config, estimate, known.text(), at_the_speed_of(known))

    def measured(self, run: str, config: TrainConfig) -> Iterator[list]:
        """Updates of the facts, first without the time, which may have to be measured; raises ConfigError."""
        estimate = estimate_of(config, self.workspace)
        known = known_time(config, estimate.work, self.workspace)
        if known and known.run:
            yield self.values(run, config, estimate, known.text(), at_the_speed_of(known))
            return
        if is_remote(config):
            yield self.values(run, config, estimate, NOT_MEASURED, ", after its first batches")
            return
        yield self.values(run, config, estimate, MEASURING)
        for found in try_out(config, estimate, self.workspace):
            if isinstance(found, Measured):
                time = expected_time(config, estimate.work, found)
                yield self.values(run, config, estimate, time.text(), at_the_speed_of(time))
                return
            yield [found, *[gr.skip()] * (len(self.facts) - 1)]
        yield self.values(run, config, estimate, NOT_MEASURED, ", after its first batches")


def fact(label: str, name: str) -> gr.Textbox:
    return gr.Textbox(
        "-", label=label, interactive=False, max_lines=1, elem_id=name, elem_classes="fact", min_width=90
    )


def at_the_speed_of(time: ExpectedTime) -> str:
    return f", at the speed of {time.run}" if time.run else ", measured on three batches"


def is_remote(config: TrainConfig) -> bool:
    """Whether the base has to be downloaded, unless it is in the hub's cache."""
    base = config.pretrained_model_name_or_path
    return base is not None and not base.startswith("models/")
