"""Train: six options in front, all others below, the equal command beside, a forecast, and Start."""

import json
from types import SimpleNamespace

import gradio as gr

from gralora_diffusion.config import GROUPS, TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, Option, from_dict, to_dict
from gralora_diffusion.ui.config_form import (
    BY_NAME,
    FRONT,
    LONGEST,
    OPTIONS,
    PRESETS,
    choices,
    command,
    default_text,
    from_config,
    hint,
    to_config,
    with_preset,
)
from gralora_diffusion.ui.forecasts import forecast_of, known_refusal, known_time, try_out
from gralora_diffusion.ui.handlers import plain, tell, whatever_came
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.workspace import BUNDLED, EMBEDDED, Workspace, free_name, new_name

FIND = """(text) => {
    const words = text.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const group of document.querySelectorAll('#all-options .group-of-options')) {
        let any = false;
        for (const option of group.querySelectorAll('.option')) {
            const fits = words.every(w => (option.id + ' ' + option.innerText).toLowerCase().includes(w));
            option.style.display = fits ? '' : 'none'; any = any || fits;
        }
        group.style.display = any ? '' : 'none';
    }
}"""

MARK = """(text) => {  // mistakes as [field's id, sentence], shown at their fields
    for (const old of document.querySelectorAll('.mistake')) old.remove();
    for (const old of document.querySelectorAll('.mistaken')) old.classList.remove('mistaken');
    for (const [id, sentence] of JSON.parse(text || '[]')) {
        const field = document.getElementById(id);
        if (!field) continue;
        field.classList.add('mistaken');
        const note = field.appendChild(document.createElement('p'));
        note.className = 'mistake'; note.textContent = sentence;
    }
}"""
MARK_AND_SHOW = f"""(text) => {{
    ({MARK})(text);
    document.querySelector('.mistaken')?.scrollIntoView({{block: 'nearest', behavior: 'smooth'}});
}}"""


def field(option: Option, home: Workspace):
    """The component of an option."""
    common = dict(label=option.label, elem_id=f"option-{option.name}", elem_classes="option", min_width=220)
    info = hint(option)
    if option.kind == "images":
        sets = home.set_names() if option.name == "instance_data_dir" else ["", *home.set_names()]
        return gr.Dropdown(
            sets,
            value=BUNDLED if option.name == "instance_data_dir" else "",
            allow_custom_value=True,
            info=info,
            **common,
        )
    if option.name == "pretrained_model_name_or_path":
        return gr.Dropdown(home.base_names(), value=EMBEDDED, allow_custom_value=True, info=info, **common)
    if option.type is bool:
        return gr.Checkbox(bool(option.default), info=info, **common)
    if choices(option):
        blank = option.default is None
        return gr.Dropdown(
            [*([("by default", "")] if blank else []), *choices(option)],
            value="" if blank else option.default,
            info=info,
            **common,
        )
    if option.type in (int, float) and option.default is not None:
        return gr.Number(option.default, info=info, step=1 if option.type is int else 0.1, **common)
    text, secret = (
        "" if option.default in (None, {}) else str(option.default),
        option.kind == "secret",
    )  # a Number cannot be blank
    kind = "password" if secret else "text"
    return gr.Textbox(
        text,
        placeholder=default_text(option, None),
        info=info,
        max_lines=1,
        max_length=LONGEST,
        type=kind,
        **common,
    )


def build(home: Workspace, work: RunQueue) -> SimpleNamespace:
    fields = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                images = BY_NAME["instance_data_dir"]
                fields["instance_data_dir"] = field(images, home)
                name = gr.Textbox(
                    free_name(BUNDLED, home.run_names()),
                    label="Name of the run",
                    info="What you will find it by, and its folder under runs",
                    max_length=64,
                    elem_id="run-name",
                )
            with gr.Row(elem_id="front"):
                for option in OPTIONS[:2]:
                    fields[option.name] = field(option, home)
                preset = gr.Dropdown(
                    list(PRESETS),
                    value="default",
                    label="Preset",
                    info="By what is learnt and the memory of the card",
                    elem_id="preset",
                    min_width=220,
                )
                for option in OPTIONS[2 : len(FRONT)]:
                    fields[option.name] = field(option, home)
            with gr.Accordion("All options", open=False, elem_id="all-options"):
                find = gr.Textbox(label="Find an option", placeholder="learning rate", elem_id="find-option")
                for title in GROUPS:
                    with gr.Group(elem_classes="group-of-options"):
                        gr.Markdown(f"#### {title}", elem_classes="group-title")
                        with gr.Row(elem_classes="options"):
                            for option in OPTIONS:
                                if option.group == title and option.name not in fields:
                                    fields[option.name] = field(option, home)
            with gr.Row(elem_classes="tight"):
                load = gr.UploadButton(
                    "Load a config", file_types=[".json"], elem_id="load-config", size="sm"
                )
                save = gr.DownloadButton("Save this config", elem_id="save-config", size="sm")
        with gr.Column(scale=2, min_width=300, elem_id="plan"):
            gr.Markdown("#### What this will do", elem_classes="group-title")
            forecast = gr.Dataframe(
                [["memory, time, files", "press Check"]],
                headers=["what", "how much"],
                datatype="str",
                interactive=False,
                wrap=True,
                label="Forecast",
                column_widths=["32%", "68%"],
                elem_id="forecast",
            )
            equal = gr.Code(
                label="The equal command",
                language="shell",
                interactive=False,
                elem_id="equal-command",
                wrap_lines=True,
                lines=3,
            )
            with gr.Row(elem_classes="tight"):
                check = gr.Button("Check", elem_id="check", min_width=100)
                start = gr.Button("Start", variant="primary", elem_id="start", min_width=140, scale=2)
            problem = gr.Textbox(
                label="To mend first", visible=False, interactive=False, elem_id="problem", lines=2
            )
            marks = gr.Textbox("[]", visible="hidden", label="Mistakes", elem_id="marks")
            gr.Markdown(
                "Runs wait for each other: what is started while another run is at work goes into the queue.",
                elem_classes="hint",
            )
    fields = {o.name: fields[o.name] for o in OPTIONS}
    inputs = [name, *fields.values()]

    def values_of(values) -> dict:
        return dict(zip(fields, values, strict=True))

    def judge(*values, asked=False) -> ConfigError | None:
        """What is wrong with the form.  Nothing is loaded but, when asked, shapes; otherwise an earlier refusal of the same config is said again."""
        try:
            new_name(values[0], "a run", home.run_names() if asked else ())
        except ConfigError as error:
            return ConfigError(str(error), option="name")
        try:
            config = to_config(values_of(values[1:]), home)
            if asked:
                forecast_of(config, home)
            elif refusal := known_refusal(config, home):
                raise ConfigError(refusal)
        except ConfigError as error:
            return error

    def told(error: ConfigError | None) -> tuple:
        """The box under Start and the mark at the field."""
        if error is None:
            return gr.update(visible=False), "[]"
        name = error.option
        field = "run-name" if name == "name" else f"option-{name}"
        return gr.update(value=str(error), visible=True), json.dumps([[field, str(error)]] if name else [])

    def preview(*values):
        error = judge(*values)
        equal = (
            gr.skip()
            if error
            else command(to_config(values_of(values[1:]), home, new_name(values[0], "a run")))
        )
        return equal, *told(error)

    def checked(*values):
        error = judge(*values, asked=True)
        yield gr.skip(), *told(error)
        if error:
            raise error
        config = to_config(values_of(values[1:]), home)
        rows, known = forecast_of(config, home), known_time(config, home)
        yield [*rows, ["time", known or "measuring on three batches ..."]], gr.skip(), gr.skip()
        local = (config.pretrained_model_name_or_path or "models/").startswith(
            "models/"
        )  # another might be downloaded for long
        for found in try_out(config, home) if local and known is None else []:
            yield [*rows, ["time", found]] if found else gr.skip(), gr.skip(), gr.skip()
        if not local and known is None:
            yield (
                [*rows, ["time", "the run itself measures it, after its first batches"]],
                gr.skip(),
                gr.skip(),
            )

    def begin(*values):
        error = judge(*values, asked=True)
        yield gr.skip(), gr.skip(), gr.skip(), *told(error)
        if error:
            raise error
        run = new_name(values[0], "a run", home.run_names())
        config = to_config(values_of(values[1:]), home, run)
        tell(work.add(run, config, token=values_of(values[1:]).get("hub_token") or None))
        following = free_name(values_of(values[1:])["instance_data_dir"] or "run", home.run_names())
        yield following, run, gr.Tabs(selected="watch"), gr.skip(), gr.skip()

    def filled(values: dict) -> list:
        return [values[n] for n in fields]

    def loaded(path):
        try:
            with open(path, "rb") as file:
                text = file.read(1_000_001)
            if len(text) > 1_000_000:
                raise ConfigError("a config file of more than 1 MB is none of ours")
            config = from_dict(
                TrainConfig,
                json.loads(text) | dict(hub_token=None, resume_from_checkpoint=None, dry_run=False),
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise (
                error
                if isinstance(error, ConfigError)
                else ConfigError("this is not a config file: it holds no JSON object")
            ) from None
        return filled(from_config(config, home))

    def to_save(*values):
        path = home.to_serve("config.json")
        write_text(path, json.dumps(to_dict(to_config(values_of(values[1:]), home)), indent=2) + "\n")
        return str(path)

    gr.on(
        [c.change for c in inputs],
        plain(preview),
        inputs,
        [equal, problem, marks],
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    ).then(None, marks, None, js=MARK)
    preset.input(
        plain(lambda p, *v: filled(with_preset(values_of(v), p, home))),
        [preset, *fields.values()],
        [*fields.values()],
        api_visibility="private",
    )
    fields["instance_data_dir"].input(
        plain(lambda s: free_name(s or "run", home.run_names())),
        fields["instance_data_dir"],
        name,
        api_visibility="private",
        show_progress="hidden",
    )
    find.change(None, find, None, js=FIND)
    checking = check.click(
        plain(checked),
        inputs,
        [forecast, problem, marks],
        api_name="validate",
        concurrency_id="check",
        concurrency_limit=1,
        show_progress="hidden",
    )
    whatever_came(checking, None, marks, None, js=MARK_AND_SHOW)
    load.upload(plain(loaded), load, [*fields.values()], api_visibility="private")
    save.click(plain(to_save), inputs, save, api_visibility="private")
    return SimpleNamespace(
        fields=fields,
        name=name,
        inputs=inputs,
        start=start,
        begin=begin,
        checking=checking,
        filled=filled,
        preview=dict(
            fn=plain(preview),
            inputs=inputs,
            outputs=[equal, problem, marks],
            show_progress="hidden",
            api_visibility="private",
        ),
        told=[problem, marks],
    )
