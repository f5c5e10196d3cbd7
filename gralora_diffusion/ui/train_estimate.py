"""The bar at the bottom of Train: time, memory and files of the run, what is wrong, Check and Start."""

from collections.abc import Iterator

import gradio as gr

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.ui.expected_time import ExpectedTime, expected_time, known_time
from gralora_diffusion.ui.forecasts import Estimate, Trial, estimate_of, size_text, try_out
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

    def values(self, estimate: Estimate, time: str, more: str = "") -> list:
        """Updates of the facts; more: about the time, in the table alone."""
        files = f"{size_text(estimate.disk)}, adapter {size_text(estimate.adapter)}"
        rows = [*estimate.rows, ("Time", f"{time}{more}")]
        return [time, f"about {size_text(estimate.memory)}", files, [list(row) for row in rows]]

    def at_once(self, config: TrainConfig) -> list:
        """Updates of the facts, as far as they are known without a download or a measurement.

        Raises ConfigError when the run is impossible.
        """
        if is_remote(config):
            return [UNKNOWN, UNKNOWN, UNKNOWN, gr.skip()]
        estimate = estimate_of(config, self.workspace)
        known = known_time(config, estimate.work, self.workspace)
        if known is None:
            return self.values(estimate, UNKNOWN)
        return self.values(estimate, known.text(), at_the_speed_of(known))

    def measured(self, config: TrainConfig) -> Iterator[list]:
        """Updates of the facts, first without the time, which may have to be measured; raises ConfigError."""
        estimate = estimate_of(config, self.workspace)
        known = known_time(config, estimate.work, self.workspace)
        if known and known.run:
            yield self.values(estimate, known.text(), at_the_speed_of(known))
            return
        if is_remote(config):
            yield self.values(estimate, NOT_MEASURED, ", after its first batches")
            return
        yield self.values(estimate, MEASURING)
        for found in try_out(config, estimate, self.workspace):
            if isinstance(found, Trial):
                time = expected_time(config, estimate.work, found.measured)
                memory = size_text(found.memory)
                more = f"{at_the_speed_of(time)}, with {memory} of memory"
                update = self.values(estimate, time.text(), more)
                yield [update[0], memory, *update[2:]]
                return
            yield [found, *[gr.skip()] * (len(self.facts) - 1)]
        yield self.values(estimate, NOT_MEASURED, ", after its first batches")


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
