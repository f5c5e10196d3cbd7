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
from gralora_diffusion.config import EMBEDDED_DEFAULTS, GROUPS, TrainConfig
from gralora_diffusion.evaluation.encoder_names import PRESETS as ENCODERS
from gralora_diffusion.options import ConfigError, Option, did_you_mean, from_flat, options_of, to_flat
from gralora_diffusion.presets import BY_CARD, PRESETS, check_preset, preset_options
from gralora_diffusion.ui.workspace import BUNDLED, EMBEDDED, Workspace, quoted, real_file

IMAGES = "instance_data_dir"
BASE = "pretrained_model_name_or_path"
FRONT = (BASE, "instance_prompt", "max_train_steps", "rank", "seed")  # above the groups, with IMAGES
# The run's name, Check, Resume, and a file that names any folders, which a page must not read.
NO_FIELD = ("output_dir", "dry_run", "resume_from_checkpoint", "concepts")
HINTS = {  # of the fields in front, for beginners; the others have the text of --help
    IMAGES: "A dataset; robot comes with the page",
    BASE: "Built-in demo model, a Hugging Face ID, or a file in models/",
    "instance_prompt": "Caption for images without one, e.g. a photo of sks dog",
    "max_train_steps": "Training steps; leave blank for the recommended number",
    "rank": "Capacity of the adapter; higher = larger file",
    "seed": "The same seed gives the same adapter again",
}
FORM_PRESETS = {"default": {}, "quick look": dict(max_train_steps=120, rank=32, num_inference_steps=15)}
FORM_PRESETS |= {name: preset["options"] for name, preset in PRESETS.items()}
PRESET_NAMES = (
    "default",
    "quick look",
    *BY_CARD,
    *PRESETS,
)
MAX_TEXT = 2000  # characters
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def fields_in_order() -> dict[str, Option]:
    """{name: option} of every option that is a field of the form, those in front first."""
    options = options_of(TrainConfig)
    fields = {name: options[name] for name in FRONT}
    for name, option in options.items():
        if name not in NO_FIELD:
            fields.setdefault(name, option)
    return fields


FIELDS = fields_in_order()


def grouped_fields() -> dict[str, list[Option]]:
    """{title of a group: its fields}, without those in front."""
    groups = {title: [] for title in GROUPS}
    for name, option in FIELDS.items():
        if name not in (*FRONT, IMAGES):
            groups[option.group].append(option)
    return groups


def hint(option: Option) -> str:
    return HINTS.get(option.name, option.help[0].upper() + option.help[1:])


def choices(option: Option) -> tuple[str, ...] | None:
    """What the field offers: the option's choices, and for --adapter the aliases."""
    return (*option.rule.choices, *ALIASES) if option.name == "method" else option.rule.choices


def to_config(values: dict, workspace: Workspace, name: str | None = None) -> TrainConfig:
    """The config that the form describes; a blank field is its default.  name: of the run.

    Raises ConfigError with the option that is wrong.
    """
    given = {}
    for option in FIELDS.values():
        try:
            value = parse_value(option, values.get(option.name), workspace)
        except ConfigError as error:
            raise ConfigError(str(error), option=option.name) from None
        if value is not None and option.kind != "secret":
            given[option.name] = value
    if given.get("method") in ALIASES:  # a field that holds its default does not overrule the alias
        given = {n: v for n, v in given.items() if n == "method" or v != FIELDS[n].default}
    return replace(from_flat(TrainConfig, expand(given)), output_dir=name and f"runs/{name}")


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
    text = str(value)
    if len(text) > MAX_TEXT or CONTROL.search(text):
        raise ConfigError(f"{option.flag} must be one line of at most {MAX_TEXT} characters")
    if option.type is dict:
        try:
            return json_object(text)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{option.flag} {error}") from None
    offered = choices(option)
    if offered and text not in offered:
        raise ConfigError(f"{option.flag} is {quoted(text)}; it must be one of {', '.join(offered)}")
    return parse_name(option, text, workspace)


def parse_number(option: Option, value) -> int | float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{option.flag} is {quoted(value)}; it must be a number") from None
    if option.type is float:
        return number
    if not math.isfinite(number):
        raise ConfigError(f"{option.flag} is {value}; it must be a finite number")
    if number != int(number):
        raise ConfigError(f"{option.flag} is {value}; it must be a whole number")
    return int(number)


def parse_name(option: Option, text: str, workspace: Workspace) -> str | None:
    """A name that the form offers, as the path or id that the command line takes; other texts as they are."""
    if option.kind == "images":
        if text == BUNDLED and option.name == IMAGES:
            return None
        workspace.image_set(text)
        if text == BUNDLED:
            problem = "cannot be the bundled images: duplicate the dataset first"
            raise ConfigError(f"{option.flag} {problem}")
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
            raise ConfigError(f"the run {quoted(text)} has no allocation.json")
        return f"runs/{text}/allocation.json"
    if option.kind == "encoders":
        names = [name.strip() for name in text.split(",")]
        if text != "auto" and not set(names) <= set(ENCODERS):
            rule = f"here it must be auto, or some of {', '.join(ENCODERS)}"
            raise ConfigError(f"{option.flag} is {quoted(text)}; {rule}")
    if option.kind == "folder" and not FOLDER.fullmatch(text):
        raise ConfigError(f"{option.flag} is {quoted(text)}; here it must be a plain name, without a path")
    return text


def from_config(config: TrainConfig, workspace: Workspace) -> dict:
    """The form's values for a config: the inverse of to_config().  Raises ConfigError for foreign paths."""
    flat = to_flat(config)
    if config.concepts is not None:
        problem = "--concepts is an option of the command line: a run of the page has one dataset"
        raise ConfigError(problem, option="concepts")
    values = {option.name: form_value(option, flat[option.name], workspace) for option in FIELDS.values()}
    to_config(values, workspace)
    return values


def form_value(option: Option, value, workspace: Workspace):
    """The value of a field for an option's value: the inverse of parse_value()."""
    if option.kind == "images":
        return set_name(option, value, workspace)
    if option.name == BASE:
        return EMBEDDED if value is None else value.removeprefix("models/")
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
        if (workspace.root / folder).resolve() == workspace.image_set(name).resolve():
            return name
    problem = f"{option.flag} is {quoted(folder)}, which is not a dataset of this page"
    raise ConfigError(f"{problem}: add it under Dataset", option=option.name)


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


def placeholder(option: Option) -> str:
    """What a blank field stands for with the embedded base."""
    value = EMBEDDED_DEFAULTS.get(option.name, option.default)
    return "" if value in (None, {}) else str(value)


def with_preset(values: dict, preset: str, workspace: Workspace) -> dict:
    """The form's values with the preset's options, and the defaults of those that other presets change.

    Raises ConfigError where the command would: for an unknown preset, or one for SDXL on the embedded base.
    """
    if preset not in PRESET_NAMES:
        raise ConfigError(f"there is no preset named {quoted(preset)}{did_you_mean(preset, PRESET_NAMES)}")
    if preset in PRESETS or preset in BY_CARD:
        check_preset(preset, parse_value(FIELDS[BASE], values.get(BASE), workspace))
    changed = {name for options in FORM_PRESETS.values() for name in options}
    options = preset_options(preset) if preset in BY_CARD else FORM_PRESETS[preset]
    filled = from_config(from_flat(TrainConfig, options), workspace)
    return values | {name: filled[name] for name in changed}
