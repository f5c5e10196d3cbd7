"""Train: three questions, the options, and Start with an estimate of time, memory and files beside it."""

import json
import re

import gradio as gr

from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.ui.config_form import (
    BASE,
    FIELDS,
    IMAGES,
    command,
    from_config,
    placeholder,
    to_config,
)
from gralora_diffusion.ui.forecasts import estimate_of, known_refusal
from gralora_diffusion.ui.form_memory import kept, restored
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, list_update, notify, on_end, unless_same
from gralora_diffusion.ui.mistakes import MARK, MARK_AND_SHOW, NAME, mistake_updates, refusal
from gralora_diffusion.ui.page_words import in_page_words
from gralora_diffusion.ui.run_files import read_config
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.run_references import free_run_name, taken_names
from gralora_diffusion.ui.suggestion import Suggestion
from gralora_diffusion.ui.train_estimate import EstimateBar
from gralora_diffusion.ui.train_fields import build_groups, build_middle, names_offered
from gralora_diffusion.ui.train_questions import (
    THIS,
    Answers,
    base_warning_of,
    build_questions,
    card_choices,
    card_warning_of,
    with_answers,
)
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, new_name

NUMBER = re.compile(r"-\d{1,2}$")  # of free_name(), at the end of a run's name; not the 512 of portrait-512
BY_BASE = ("max_train_steps", "learning_rate", "train_batch_size", "guidance_scale", "resolution")


class TrainTab:
    """The tab's components, its handlers, and its events but for Start, which the page connects.

    Handlers take the values of `inputs`: the run's name, then those of `fields`.
    """

    def __init__(self, workspace: Workspace, queue: RunQueue, saved: gr.BrowserState):
        self.workspace = workspace
        self.queue = queue
        self.last_base = gr.State(None)  # the base that the recommended values are for
        self.saved = saved
        fields = {}
        questions = build_questions(fields, workspace)
        self.what, self.card = questions.what, questions.card
        self.warnings = [questions.base_warning, questions.card_warning]
        self.name = build_middle(fields, workspace)
        build_groups(fields, workspace)
        self.fields = {name: fields[name] for name in FIELDS}
        self.build_files()
        self.bar = EstimateBar(workspace)
        self.start, self.marks = self.bar.start, self.bar.marks
        self.inputs = [self.name, *self.fields.values()]
        self.form = [*self.fields.values(), self.last_base]  # the outputs for filled()
        self.mistakes = [self.bar.problem, self.marks]
        self.define_events()
        self.connect()

    def build_files(self) -> None:
        with gr.Accordion("Equivalent command and config file", open=False, elem_id="train-files"):
            self.equal_command = gr.Textbox(  # gr.Code would load 0.14 MB of CodeMirror
                label="Equivalent command",
                interactive=False,
                elem_id="equal-command",
                lines=3,
                max_lines=12,
                buttons=["copy"],
            )
            with gr.Row(elem_classes="tight"):
                self.load = gr.UploadButton(
                    "Load a config", file_types=[".json"], elem_id="load-config", size="sm"
                )
                self.save = gr.DownloadButton("Save this config", elem_id="save-config", size="sm")

    def define_events(self) -> None:
        """The events that the page connects too."""
        self.preview_event = dict(
            fn=guarded(self.preview),
            inputs=[self.what, self.card, *self.inputs],
            outputs=[self.equal_command, *self.warnings, self.saved, *self.mistakes],
            show_progress="hidden",
            **PRIVATE,
        )
        self.estimate_event = dict(
            fn=guarded(self.estimate),
            inputs=self.inputs,
            outputs=[*self.bar.facts, *self.mistakes],
            show_progress="hidden",
            concurrency_id="check",
            concurrency_limit=1,
            **PRIVATE,
        )
        self.restore_event = dict(
            fn=guarded(self.restore),
            inputs=self.saved,
            outputs=[self.what, self.card, self.name, *self.form],
            **QUIET,
        )
        self.offered = {n: c for n, c in self.fields.items() if names_offered(FIELDS[n], self.workspace)}
        outputs = [self.card, *self.offered.values()]
        self.lists_event = dict(fn=guarded(self.lists), inputs=self.what, outputs=outputs, **QUIET)

    def connect(self) -> None:
        base, images = self.fields[BASE], self.fields[IMAGES]
        changes = [component.change for component in (self.what, self.card, *self.inputs)]
        sizes = [c.change for name, c in self.fields.items() if FIELDS[name].kind not in ("text", "secret")]
        sizes.append(self.name.change)  # a file is named after the run
        for event, triggers in ((self.preview_event, changes), (self.estimate_event, sizes)):
            changed = gr.on(triggers, trigger_mode="always_last", **event)
            changed.then(None, self.marks, None, js=MARK)
        gr.on(
            [self.what.input, self.card.input, base.input],
            guarded(self.follow_answers),
            [self.what, self.card, self.last_base, *self.fields.values()],
            [self.card, *self.form],
            show_progress="hidden",
            **PRIVATE,
        )
        base.change(guarded(self.placeholders), base, [self.fields[name] for name in BY_BASE], **QUIET)
        self.new_name = Suggestion(self.name)
        asked = [images, self.name]
        images.input(
            guarded(self.suggest_name), asked, self.new_name.received, show_progress="hidden", **PRIVATE
        )
        self.checking = self.bar.check.click(
            guarded(self.show_estimate),
            self.inputs,
            [*self.bar.facts, *self.mistakes],
            api_name="validate",
            concurrency_id="check",
            concurrency_limit=1,
            show_progress="hidden",
        )
        on_end(self.checking, None, self.marks, None, js=MARK_AND_SHOW)
        self.load.upload(guarded(self.load_config), self.load, self.form, **PRIVATE)
        self.save.click(guarded(self.save_config), self.inputs, self.save, **PRIVATE)

    def values_of(self, fields: tuple) -> dict:
        return dict(zip(self.fields, fields, strict=True))

    def filled(self, values: dict) -> list:
        """What the outputs `form` get."""
        try:
            base = self.workspace.base(values[BASE])
        except ConfigError:  # while its name is typed
            base = None
        return [*(values[name] for name in self.fields), base]

    def problem_of(self, name: str, *fields, thorough: bool = False) -> ConfigError | None:
        """What is wrong with the form.

        thorough: whether the name is free and the run is possible, for which shapes are loaded; otherwise an
        earlier refusal of the same config is repeated.
        """
        try:
            new_name(name, "a run", self.workspace.run_names() if thorough else ())
        except ConfigError as error:
            return ConfigError(str(error), option=NAME)
        try:
            config = to_config(self.values_of(fields), self.workspace)
            if not thorough:
                return known_refusal(config, self.workspace)
            estimate_of(config, self.workspace)
        except ConfigError as error:
            return error
        return None

    def preview(self, request: gr.Request, what: str, card: str, name: str, *fields):
        """After each change: the equivalent command or what is wrong, warnings, what the browser keeps."""
        values = self.values_of(fields)
        keep = kept(request.username, what, card, name, values)
        warnings = self.warnings_of(what, card, values)
        problem = self.problem_of(name, *fields)
        if problem:
            return gr.skip(), *warnings, keep, *mistake_updates(problem)
        config = to_config(values, self.workspace, new_name(name, "a run"))
        return command(config), *warnings, keep, *mistake_updates(None)

    def warnings_of(self, what: str, card: str, values: dict) -> list:
        """Updates of the warnings below the base and the card, whatever else is wrong with the form."""
        try:
            base = self.workspace.base(values[BASE])
        except ConfigError:  # the field is marked
            return [gr.update(visible=False)] * 2
        found = base_warning_of(base, values[IMAGES]), card_warning_of(Answers(what, base, card))
        return [gr.update(value=text, visible=bool(text)) for text in found]

    def estimate(self, name: str, *fields):
        """The estimate as far as it is known at once; after each change."""
        problem = self.problem_of(name, *fields)
        facts = [gr.skip()] * len(self.bar.facts)
        if not problem:
            try:
                facts = self.bar.at_once(
                    new_name(name, "a run"), to_config(self.values_of(fields), self.workspace)
                )
            except ConfigError as error:
                problem = error
        return *facts, *mistake_updates(problem)

    def show_estimate(self, name: str, *fields):
        """The estimate with the time, which is measured where no run has measured it before."""
        problem = self.problem_of(name, *fields, thorough=True)
        yield *[gr.skip()] * len(self.bar.facts), *mistake_updates(problem)
        if problem:
            raise refusal(problem)
        config = to_config(self.values_of(fields), self.workspace)
        for facts in self.bar.measured(new_name(name, "a run"), config):
            yield *facts, gr.skip(), gr.skip()

    def start_run(self, name: str, *fields):
        """(name for the next run, run to watch, selected tab, mistakes): queue the run and go to Watch."""
        problem = self.problem_of(name, *fields, thorough=True)
        yield gr.skip(), gr.skip(), gr.skip(), *mistake_updates(problem)
        if problem:
            raise refusal(problem)
        values = self.values_of(fields)
        run = new_name(name, "a run", self.workspace.run_names())
        config = to_config(values, self.workspace, run)
        notify(self.queue.add(run, config, token=values.get("hub_token") or None))
        next_name = free_run_name(self.workspace, NUMBER.sub("", run))
        yield next_name, run, gr.Tabs(selected="watch"), gr.skip(), gr.skip()

    def free_name(self, image_set: str | None) -> str:
        return free_run_name(self.workspace, image_set or "run")

    def suggest_name(self, image_set: str | None, name: str):
        """A name for a run on another dataset."""
        return self.new_name.of(self.free_name(image_set), name)

    def follow_answers(self, what: str, card: str, last_base: str | None, *fields) -> list:
        """The card's list, and the form after an answer to one of the three questions.

        Fields that the answer does not change are skipped: they may have been edited since it was sent.
        """
        values = self.values_of(fields)
        choices = card_choices(what)
        sent, card = card, card if card in [value for _, value in choices] else THIS
        listed = list_update(choices, card, sent)
        try:
            base = self.workspace.base(values[BASE])
        except ConfigError:  # the field is marked
            return [listed, *[gr.skip()] * len(self.form)]
        after = with_answers(values, last_base, Answers(what, base, card), self.workspace)
        updates = [unless_same(after[name], values[name]) for name in self.fields]
        return [listed, *updates, base]

    def placeholders(self, base: str) -> list:
        """What blank fields stand for on this base."""
        try:
            chosen = self.workspace.base(base)
        except ConfigError:
            return [gr.skip()] * len(BY_BASE)
        return [gr.update(placeholder=placeholder(FIELDS[name], chosen)) for name in BY_BASE]

    def lists(self, what: str) -> list:
        """The names to choose from, and the cards, as they are now."""
        names = [names_offered(FIELDS[name], self.workspace) for name in self.offered]
        return [gr.update(choices=choices) for choices in (card_choices(what), *names)]

    def restore(self, request: gr.Request, saved):
        """The form as this user's browser kept it, and a name for the run that is still free."""
        found = restored(saved, request.username, self.workspace)
        if found is None:
            name = self.free_name(BUNDLED)
            return [gr.skip(), gr.skip(), name, *[gr.skip()] * len(self.form)]
        taken = found["name"] in ("", *taken_names(self.workspace))
        name = self.free_name(found["values"][IMAGES]) if taken else found["name"]
        return [found["what"], found["card"], name, *self.filled(found["values"])]

    def load_config(self, path: str) -> list:
        """The form's values of an uploaded config.json."""
        try:
            config = read_config(path)
        except ConfigError as error:
            raise in_page_words(error, self.workspace) from None
        return self.filled(from_config(config, self.workspace))

    def save_config(self, _name: str, *fields) -> str:
        config = to_config(self.values_of(fields), self.workspace)
        path = self.workspace.new_served_path("config.json")
        write_text(path, json.dumps(to_dict(config), indent=2) + "\n")
        return str(path)
