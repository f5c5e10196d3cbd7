"""Train: six options in front, all others below, the equivalent command beside, a forecast, and Start."""

import json

import gradio as gr

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.ui.config_form import (
    FIELDS,
    IMAGES,
    command,
    from_config,
    to_config,
    with_preset,
)
from gralora_diffusion.ui.forecasts import forecast_of, known_refusal, known_time, try_out
from gralora_diffusion.ui.handlers import PRIVATE, guarded, notify, on_end
from gralora_diffusion.ui.run_files import UNREADABLE, config_from_json
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.train_fields import MARK, MARK_AND_SHOW, build_field, build_front, build_groups
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, free_name, new_name

MAX_CONFIG_BYTES = 1_000_000
NOT_MEASURED = "the run itself measures it, after its first batches"
RUN_NAME = "name"  # what a ConfigError names instead of an option


class TrainTab:
    """The tab's components, its handlers, and its events but for Start, which the page connects.

    Handlers take the values of `inputs`: the run's name, then those of `fields`.
    """

    def __init__(self, workspace: Workspace, queue: RunQueue):
        self.workspace = workspace
        self.queue = queue
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                self.build_form()
            with gr.Column(scale=2, min_width=300, elem_id="plan"):
                self.build_plan()
        self.inputs = [self.name, *self.fields.values()]
        self.mistakes = [self.problem, self.marks]
        self.preview_event = dict(
            fn=guarded(self.preview),
            inputs=self.inputs,
            outputs=[self.equal_command, *self.mistakes],
            show_progress="hidden",
            **PRIVATE,
        )
        self.connect()

    def build_form(self) -> None:
        fields = {}
        with gr.Row():
            fields[IMAGES] = build_field(FIELDS[IMAGES], self.workspace)
            self.name = gr.Textbox(
                free_name(BUNDLED, self.workspace.run_names()),
                label="Name of the run",
                info="Also the name of its folder under runs",
                max_length=64,
                elem_id="run-name",
            )
        self.preset = build_front(fields, self.workspace)
        build_groups(fields, self.workspace)
        self.fields = {name: fields[name] for name in FIELDS}
        with gr.Row(elem_classes="tight"):
            self.load = gr.UploadButton(
                "Load a config", file_types=[".json"], elem_id="load-config", size="sm"
            )
            self.save = gr.DownloadButton("Save this config", elem_id="save-config", size="sm")

    def build_plan(self) -> None:
        gr.Markdown("#### Estimate", elem_classes="group-title")
        self.forecast = gr.Dataframe(
            [["memory, time, files", "press Check"]],
            headers=["what", "how much"],
            datatype="str",
            interactive=False,
            wrap=True,
            label="Forecast",
            column_widths=["32%", "68%"],
            elem_id="forecast",
        )
        self.equal_command = gr.Code(
            label="Equivalent command",
            language="shell",
            interactive=False,
            elem_id="equal-command",
            wrap_lines=True,
            lines=3,
        )
        with gr.Row(elem_classes="tight"):
            self.check = gr.Button("Check", elem_id="check", min_width=100)
            self.start = gr.Button("Start", variant="primary", elem_id="start", min_width=140, scale=2)
        self.problem = gr.Textbox(
            label="Fix before starting", visible=False, interactive=False, elem_id="problem", lines=2
        )
        self.marks = gr.Textbox("[]", visible="hidden", label="Mistakes", elem_id="marks")
        gr.Markdown(
            "Runs are queued: only one trains at a time.",
            elem_classes="hint",
        )

    def connect(self) -> None:
        fields = list(self.fields.values())
        changes = [component.change for component in self.inputs]
        preview = gr.on(changes, trigger_mode="always_last", **self.preview_event)
        preview.then(None, self.marks, None, js=MARK)
        applied = self.preset.input(guarded(self.apply_preset), [self.preset, *fields], fields, **PRIVATE)
        applied.failure(None, None, self.preset, js="() => 'default'", **PRIVATE)
        images = self.fields[IMAGES]
        images.input(guarded(self.suggest_name), images, self.name, show_progress="hidden", **PRIVATE)
        self.checking = self.check.click(
            guarded(self.show_forecast),
            self.inputs,
            [self.forecast, *self.mistakes],
            api_name="validate",
            concurrency_id="check",
            concurrency_limit=1,
            show_progress="hidden",
        )
        on_end(self.checking, None, self.marks, None, js=MARK_AND_SHOW)
        self.load.upload(guarded(self.load_config), self.load, fields, **PRIVATE)
        self.save.click(guarded(self.save_config), self.inputs, self.save, **PRIVATE)

    def values_of(self, fields: tuple) -> dict:
        return dict(zip(self.fields, fields, strict=True))

    def field_values(self, values: dict) -> list:
        return [values[name] for name in self.fields]

    def problem_of(self, name: str, *fields, thorough: bool = False) -> ConfigError | None:
        """What is wrong with the form.

        thorough: whether the name is free and the run is possible, for which shapes are loaded; otherwise an
        earlier refusal of the same config is repeated.
        """
        try:
            new_name(name, "a run", self.workspace.run_names() if thorough else ())
        except ConfigError as error:
            return ConfigError(str(error), option=RUN_NAME)
        try:
            config = to_config(self.values_of(fields), self.workspace)
            if not thorough:
                return known_refusal(config, self.workspace)
            forecast_of(config, self.workspace)
        except ConfigError as error:
            return error
        return None

    def preview(self, name: str, *fields):
        """The equivalent command, or what is wrong; after each change."""
        problem = self.problem_of(name, *fields)
        if problem:
            return gr.skip(), *mistake_updates(problem)
        config = to_config(self.values_of(fields), self.workspace, new_name(name, "a run"))
        return command(config), *mistake_updates(None)

    def show_forecast(self, name: str, *fields):
        """Rows of the forecast, first without the time, which may have to be measured."""
        problem = self.problem_of(name, *fields, thorough=True)
        yield gr.skip(), *mistake_updates(problem)
        if problem:
            raise problem
        config = to_config(self.values_of(fields), self.workspace)
        rows = forecast_of(config, self.workspace)
        base = config.pretrained_model_name_or_path
        time = known_time(config, self.workspace)
        if time is None and base and not base.startswith("models/"):  # its download may take long
            time = NOT_MEASURED
        yield [*rows, ["time", time or "measuring on three batches ..."]], gr.skip(), gr.skip()
        if time is None:
            for measured in try_out(config, self.workspace):
                update = [*rows, ["time", measured]] if measured else gr.skip()
                yield update, gr.skip(), gr.skip()

    def start_run(self, name: str, *fields):
        """(name for the next run, run to watch, selected tab, mistakes): queue the run and go to Watch."""
        problem = self.problem_of(name, *fields, thorough=True)
        yield gr.skip(), gr.skip(), gr.skip(), *mistake_updates(problem)
        if problem:
            raise problem
        values = self.values_of(fields)
        run = new_name(name, "a run", self.workspace.run_names())
        config = to_config(values, self.workspace, run)
        notify(self.queue.add(run, config, token=values.get("hub_token") or None))
        yield self.suggest_name(values[IMAGES]), run, gr.Tabs(selected="watch"), gr.skip(), gr.skip()

    def suggest_name(self, image_set: str | None) -> str:
        return free_name(image_set or "run", self.workspace.run_names())

    def apply_preset(self, preset: str, *fields) -> list:
        return self.field_values(with_preset(self.values_of(fields), preset, self.workspace))

    def load_config(self, path: str) -> list:
        """The form's values of an uploaded config.json."""
        return self.field_values(from_config(read_config(path), self.workspace))

    def save_config(self, _name: str, *fields) -> str:
        config = to_config(self.values_of(fields), self.workspace)
        path = self.workspace.new_served_path("config.json")
        write_text(path, json.dumps(to_dict(config), indent=2) + "\n")
        return str(path)


def mistake_updates(problem: ConfigError | None) -> tuple:
    """Updates of the box below Start, and of the marks at the fields."""
    if problem is None:
        return gr.update(visible=False), "[]"
    marks = []
    if problem.option:
        field = "run-name" if problem.option == RUN_NAME else f"option-{problem.option}"
        marks.append([field, str(problem)])
    return gr.update(value=str(problem), visible=True), json.dumps(marks)


def read_config(path: str) -> TrainConfig:
    """An uploaded config.json; raises ConfigError where it is none."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError("this is not a config file: it is larger than 1 MB")
        return config_from_json(text)
    except ConfigError:
        raise
    except UNREADABLE:
        raise ConfigError("this is not a config file: it does not contain a JSON object") from None
