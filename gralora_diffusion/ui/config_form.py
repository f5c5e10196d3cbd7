"""The form of the Train tab: fields, texts, groups and bounds come from the config's options.

A value of the form is what a browser sends: names instead of paths, "" for blank, texts for optional numbers.
"""

import argparse
import json
import math
import re
import shlex
from dataclasses import replace

from gralora_diffusion.command_line import ALIASES, expand, json_object
from gralora_diffusion.config import EMBEDDED_DEFAULTS, GROUPS, SDXL_DEFAULTS, TrainConfig
from gralora_diffusion.config.choices import EMBEDDED_RESOLUTION, SDXL_RESOLUTION
from gralora_diffusion.evaluation.encoder_names import PRESETS as ENCODERS
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError, Option, fault_of, from_flat, options_of, to_flat
from gralora_diffusion.ui.page_words import in_page_words, label_of
from gralora_diffusion.ui.workspace import BUNDLED, EMBEDDED, Workspace, quoted, real_file

IMAGES = "instance_data_dir"
BASE = "pretrained_model_name_or_path"
EVERY = "validation_steps"
FIRST = (IMAGES, BASE)  # what the questions at the top ask for
MIDDLE = (  # always in sight, below the questions
    "instance_prompt", "max_train_steps", "rank", "method", "learning_rate", "train_batch_size", "resolution",
    EVERY, "validation_prompt", "start_from", "masked_loss", "validation_split", "keep_best",
    "train_text_encoder", "seed",
)  # fmt: skip
# The run's name, Check, Resume, and a file that names any folders, which a page must not read.
NO_FIELD = ("output_dir", "dry_run", "resume_from_checkpoint", "concepts")
BLANK = object()  # the value of a field that is to be left blank
PREVIEWS = 6  # times that a run generates previews where nothing else is asked for, those at its end included
MAX_TEXT = 2000  # characters
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def fields_in_order() -> dict[str, Option]:
    """{name: option} of every option that is a field of the form, those always in sight first."""
    options = options_of(TrainConfig)
    fields = {name: options[name] for name in (*FIRST, *MIDDLE)}
    for name, option in options.items():
        if name not in NO_FIELD:
            fields.setdefault(name, option)
    return fields


FIELDS = fields_in_order()


def grouped_fields() -> dict[str, list[Option]]:
    """{title of a group: its fields}, without those always in sight."""
    groups = {title: [] for title in GROUPS}
    for name, option in FIELDS.items():
        if name not in (*FIRST, *MIDDLE):
            groups[option.group].append(option)
    return groups


def choices(option: Option) -> tuple[str, ...] | None:
    """What the field offers: the option's choices, and for --adapter the aliases."""
    return (*option.rule.choices, *ALIASES) if option.name == "method" else option.rule.choices


def to_config(values: dict, workspace: Workspace, name: str | None = None) -> TrainConfig:
    """The config that the form describes; a blank field is its default.  name: of the run.

    Raises ConfigError with the option that is wrong, in the page's words.
    """
    try:
        given = {}
        for option in FIELDS.values():
            with fault_of(option.name):
                value = parse_value(option, values.get(option.name), workspace)
            if value is not None and option.kind != "secret":
                given[option.name] = value
        if given.get("method") in ALIASES:  # a field that holds its default does not overrule the alias
            given = {n: v for n, v in given.items() if n == "method" or v != FIELDS[n].default}
        config = from_flat(TrainConfig, expand(with_previews(given)))
    except ConfigError as error:
        raise in_page_words(error, workspace) from None
    return replace(config, output_dir=name and f"runs/{name}")


def with_previews(given: dict) -> dict:
    """The options with previews PREVIEWS times a run where none are asked for; 0 is never."""
    given = dict(given)
    if given.get(EVERY) == 0:
        del given[EVERY]
    elif EVERY not in given and "validation_epochs" not in given:
        if epochs := given.get("num_train_epochs"):
            given["validation_epochs"] = max(1, math.ceil(epochs / PREVIEWS))
        else:
            steps = given.get("max_train_steps") or defaults_by_base(given.get(BASE))["max_train_steps"]
            given[EVERY] = max(1, math.ceil(steps / PREVIEWS))
    return given


def defaults_by_base(base: str | None) -> dict:
    """What blank fields stand for that depend on the base, a value of Workspace.base()."""
    return EMBEDDED_DEFAULTS if base is None else SDXL_DEFAULTS


def parse_value(option: Option, value, workspace: Workspace):
    """The option's value; None where the field is blank.  Raises ConfigError."""
    if value is None or value == "":
        return None
    if option.type is bool:
        return bool(value)
    if value is False:  # an untouched field of another type
        return None
    if option.type in (int, float):
        return parse_number(option, value)
    text, label = str(value), label_of(option.name)
    if len(text) > MAX_TEXT or CONTROL.search(text):
        raise ConfigError(f"{label} must be one line of at most {MAX_TEXT} characters")
    if option.type is dict:
        try:
            return json_object(text)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{label} {error}") from None
    offered = choices(option)
    if offered and text not in offered:
        raise ConfigError(f"{label} is {quoted(text)}; it must be one of {', '.join(offered)}")
    return parse_name(option, text, workspace)


def parse_number(option: Option, value) -> int | float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{label_of(option.name)} is {quoted(value)}; it must be a number") from None
    if option.type is float:
        return number
    if not math.isfinite(number):
        raise ConfigError(f"{label_of(option.name)} is {value}; it must be a finite number")
    if number != int(number):
        raise ConfigError(f"{label_of(option.name)} is {value}; it must be a whole number")
    return int(number)


def parse_name(option: Option, text: str, workspace: Workspace) -> str | None:
    """A name that the form offers, as the path or id that the command line takes; other texts as they are."""
    if option.kind == "images":
        if text == BUNDLED and option.name == IMAGES:
            return None
        workspace.image_set(text)
        if text == BUNDLED:
            problem = "cannot be the bundled images: duplicate the dataset first"
            raise ConfigError(f"{label_of(option.name)} {problem}")
        return f"images/{text}"
    if option.name == BASE:
        return workspace.base(text)
    if option.kind in ("base_model", "dataset"):
        return workspace.hub_id(text)
    if option.kind == "adapter":
        file = workspace.adapter(text)
        return str((file if text.endswith(".safetensors") else file.parent).relative_to(workspace.root))
    if option.kind == "allocation":
        if not real_file(workspace.run(text) / "allocation.json"):
            raise ConfigError(f"the run {quoted(text)} has no ranks from gradients: choose one from the list")
        return f"runs/{text}/allocation.json"
    if option.kind == "encoders":
        names = [name.strip() for name in text.split(",")]
        if text != "auto" and not set(names) <= set(ENCODERS):
            rule = f"here it must be auto, or one or more of {', '.join(ENCODERS)}"
            raise ConfigError(f"{label_of(option.name)} is {quoted(text)}; {rule}")
    if option.kind == "folder" and not FOLDER.fullmatch(text):
        rule = "it must be a plain name, without a path"
        raise ConfigError(f"{label_of(option.name)} is {quoted(text)}; {rule}")
    return text


def from_config(config: TrainConfig, workspace: Workspace) -> dict:
    """The form's values for a config: the inverse of to_config().  Raises ConfigError for foreign paths."""
    if config.concepts is not None:
        problem = "this config trains on several datasets, and a run on the page uses one"
        raise ConfigError(problem, option="concepts")
    values = form_values(config, workspace)
    to_config(values, workspace)
    return values


def form_values(config: TrainConfig, workspace: Workspace) -> dict:
    """{option: value of its field}, which is not checked."""
    flat = to_flat(config)
    intervals = EVERY, "validation_epochs"
    rest = {name: value for name, value in flat.items() if name not in intervals and value is not None}
    by_itself = with_previews(rest)
    if all(flat[name] == by_itself.get(name) for name in intervals):
        flat |= dict.fromkeys(intervals, BLANK)
    return {option.name: form_value(option, flat[option.name], workspace) for option in FIELDS.values()}


def initial_value(option: Option):
    """The value of an untouched field."""
    if option.name == IMAGES:
        return BUNDLED
    if option.name == BASE:
        return EMBEDDED
    return "" if option.default in (None, {}) else option.default


def form_value(option: Option, value, workspace: Workspace):
    """The value of a field for an option's value: the inverse of parse_value()."""
    if option.kind == "images":
        return set_name(option, value, workspace)
    if option.name == BASE:
        return EMBEDDED if value is None else value.removeprefix("models/")
    if value is BLANK:
        return ""
    if option.name == EVERY and value is None:  # as blank, it would be PREVIEWS times
        return "0"
    if value in (None, {}) or option.kind == "secret":
        return ""
    if option.kind == "adapter":
        return value.removeprefix("runs/").removeprefix("adapters/")
    if option.kind == "allocation":
        return value.removeprefix("runs/").removesuffix("/allocation.json")
    if option.type is dict:
        return json.dumps(value)
    if option.default is None and option.type is float:  # a text field, since it may be blank
        return repr(value)
    if option.default is None and option.type is int:
        return str(value)
    return value


def set_name(option: Option, folder: str | None, workspace: Workspace) -> str:
    """The set of images that a folder is; raises ConfigError where it is none."""
    if folder is None:
        return BUNDLED if option.name == IMAGES else ""
    for name in workspace.set_names():
        if resolved(workspace.root / folder) == resolved(workspace.image_set(name)):
            return name
    problem = f"{label_of(option.name)} is a folder that is not a dataset on this page"
    raise ConfigError(f"{problem}: add its images under Dataset", option=option.name)


def non_defaults(config: TrainConfig) -> list[tuple[Option, str]]:
    """(option, its value as a text) of whatever differs from its default; never a token."""
    options = options_of(TrainConfig)
    found = []
    for name, value in to_flat(config).items():
        option = options[name]
        if value != option.default and option.kind != "secret":
            found.append((option, json.dumps(value) if option.type is dict else str(value)))
    return found


def arguments(config: TrainConfig) -> list[str]:
    """The command line of a config: --flag=value, each one element, verbatim whatever a text begins with."""
    return [f"{option.flag}={text}" for option, text in non_defaults(config)]


def command(config: TrainConfig) -> str:
    """The command for a shell that trains with this config."""
    words = ["gralora train"]
    for option, text in non_defaults(config):
        if option.type is bool and text == "True":
            words.append(option.flag)
        elif text.startswith("-"):
            words.append(shlex.quote(f"{option.flag}={text}"))
        else:
            words.append(f"{option.flag} {shlex.quote(text)}")
    return " \\\n    ".join(words)


def placeholder(option: Option, base: str | None) -> str:
    """What a blank field stands for, with a base of Workspace.base()."""
    if option.name == EVERY:
        return f"{PREVIEWS} times per run"
    if option.name == "resolution":
        return str(EMBEDDED_RESOLUTION if base is None else SDXL_RESOLUTION)
    value = defaults_by_base(base).get(option.name, option.default)
    if value in (None, {}):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
