"""The form: fields, texts and bounds come from the config's options, so that an option added there is on the page."""

import json
import math
import re
import shlex
from dataclasses import replace

from gralora_diffusion.command_line import ALIASES, expand, json_object
from gralora_diffusion.command_line import PRESETS as TRAINER_PRESETS
from gralora_diffusion.config import EMBEDDED_DEFAULTS, SDXL_DEFAULTS, TrainConfig
from gralora_diffusion.options import ConfigError, Option, did_you_mean, from_flat, options_of, to_flat
from gralora_diffusion.ui.workspace import BUNDLED, EMBEDDED, Workspace, real_file, shown

ELSEWHERE = {
    "output_dir": "the run's name",
    "dry_run": "Check",
    "resume_from_checkpoint": "Resume",
}  # options that are a name or a button here
FRONT = (
    "pretrained_model_name_or_path",
    "instance_prompt",
    "max_train_steps",
    "rank",
    "seed",
)  # beside the preset
HINTS = {  # the fields in front, for whoever has never trained; the others say what --help says
    "instance_data_dir": "A set of Dataset; robot comes with the page",
    "pretrained_model_name_or_path": "The embedded one, a hub id, or a checkpoint in the folder models",
    "instance_prompt": "Names the subject with a rare word, where an image has no caption",
    "max_train_steps": "How long to learn; blank for what suits the base",
    "rank": "How much the adapter can hold, and how large its file is",
    "seed": "The same seed gives the same adapter again",
}
PRESETS = {"default": {}, "quick look": dict(max_train_steps=120, rank=32, num_inference_steps=15)}
PRESETS |= {name: preset["options"] for name, preset in TRAINER_PRESETS.items()}
LONGEST = 2000  # characters of a text


EVERY = options_of(TrainConfig)


def in_form_order() -> list[Option]:
    """Every option of the command line that is a field here, those in front first."""
    front = [EVERY[name] for name in FRONT]
    return front + [about for name, about in EVERY.items() if name not in (*FRONT, *ELSEWHERE)]


OPTIONS = in_form_order()
BY_NAME = {about.name: about for about in OPTIONS}


def hint(option: Option) -> str:
    return HINTS.get(option.name, option.help[0].upper() + option.help[1:])


def choices(option: Option) -> tuple[str, ...] | None:
    """What the field offers: the option's choices, and for --adapter the aliases."""
    return (*option.rule.choices, *ALIASES) if option.name == "method" else option.rule.choices


def to_config(values: dict, home: Workspace, name: str | None = None) -> TrainConfig:
    """The config that the form describes; a blank field is its default.  `name` is the run's.

    Raises ConfigError with the option that is wrong.
    """
    given = {}
    for option in OPTIONS:
        try:
            value = read(option, values.get(option.name), home)
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(str(error), option=option.name) from None
        if value is not None:
            given[option.name] = value
    given.pop("hub_token", None)
    alias = given.get("method") in ALIASES
    if alias:  # a field that still shows its default was not set by hand
        given = {n: v for n, v in given.items() if n == "method" or v != BY_NAME[n].default}
    return replace(from_flat(TrainConfig, expand(given)), output_dir=name and f"runs/{name}")


def read(option: Option, value, home: Workspace):
    """What a form's value means; None where it is left blank."""
    if value is None or value == "" or (option.type is not bool and value is False):
        return None
    if option.type is bool:
        return bool(value)
    if option.type in (int, float):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{option.flag} is {shown(value)}; it must be a number") from None
        if option.type is int and not math.isfinite(number):
            raise ConfigError(f"{option.flag} is {value}; it must be a finite number")
        if option.type is int and number != int(number):
            raise ConfigError(f"{option.flag} is {value}; it must be a whole number")
        return option.type(number)
    text = str(value)
    if len(text) > LONGEST or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        raise ConfigError(f"{option.flag} must be one line of at most {LONGEST} characters")
    if option.type is dict:
        try:
            return json_object(text)
        except Exception as error:
            raise ConfigError(str(error)) from None
    offered = choices(option)
    if offered and text not in offered:
        raise ConfigError(f"{option.flag} is {shown(text)}; it must be one of {', '.join(offered)}")
    return in_home(option, text, home)


def in_home(option: Option, text: str, home: Workspace) -> str | None:
    """A name that the form offers as what the command line takes."""
    if option.kind == "images":
        if text == BUNDLED and option.name == "instance_data_dir":
            return None
        home.image_set(text)
        if text == BUNDLED:
            raise ConfigError(f"{option.flag} cannot be the bundled images: copy them into a set of your own")
        return f"images/{text}"
    if option.kind == "base_model":
        return home.base(text) if option.name == "pretrained_model_name_or_path" else home.hub_id(text)
    if option.kind == "dataset":
        return home.hub_id(text)
    if option.kind == "allocation":
        if not real_file(home.run(text) / "allocation.json"):
            raise ConfigError(f"the run {shown(text)} has no allocation.json")
        return f"runs/{text}/allocation.json"
    if option.kind == "folder" and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise ConfigError(f"{option.flag} is {shown(text)}; here it must be a plain name, without a path")
    return text


def from_config(config: TrainConfig, home: Workspace) -> dict:
    """The form's values for a config: the other way round.  Raises ConfigError for what is outside HOME."""
    flat = to_flat(config)
    values = {}
    for option in OPTIONS:
        value = flat[option.name]
        if option.type is dict:
            value = "" if not value else json.dumps(value)
        if option.kind == "images":
            value = set_of(option, value, home)
        elif option.kind == "base_model":
            value = EMBEDDED if value is None else value.removeprefix("models/")
            value = "" if option.name != "pretrained_model_name_or_path" and value == EMBEDDED else value
        elif option.kind == "secret" or value is None:
            value = ""
        elif option.default is None and option.type in (int, float):
            value = f"{value:g}" if option.type is float else str(value)  # a text, since it may be blank
        values[option.name] = value
    to_config(values, home)
    return values


def set_of(option: Option, folder: str | None, home: Workspace) -> str:
    if folder is None:
        return BUNDLED if option.name == "instance_data_dir" else ""
    for name in home.set_names():
        if (home.root / folder).resolve() == home.image_set(name).resolve():
            return name
    problem = (
        f"{option.flag} is {shown(folder)}, which is none of this page's sets of images: add it under Dataset"
    )
    raise ConfigError(problem, option=option.name)


def given(config: TrainConfig) -> list[tuple[Option, str]]:
    """(option, text) of whatever differs from its default; never a token."""
    found = []
    for name, value in to_flat(config).items():
        option = EVERY[name]
        if value != option.default and option.kind != "secret":
            found.append((option, json.dumps(value) if option.type is dict else str(value)))
    return found


def arguments(config: TrainConfig) -> list[str]:
    """The command line that gives this config: --flag=value, each one element, verbatim, whatever a text begins with."""
    return [f"{option.flag}={text}" for option, text in given(config)]


def command(config: TrainConfig) -> str:
    """The equal command, for a shell."""
    words = []
    for option, text in given(config):
        if option.type is bool and text == "True":
            words.append(option.flag)
        elif text.startswith("-"):
            words.append(shlex.quote(f"{option.flag}={text}"))
        else:
            words.append(f"{option.flag} {shlex.quote(text)}")
    return " \\\n    ".join(["gralora train", *words])


def default_text(option: Option, base: str | None) -> str:
    """What a blank field stands for."""
    suits = EMBEDDED_DEFAULTS if base in (None, "", EMBEDDED) else SDXL_DEFAULTS
    value = suits.get(option.name, option.default)
    return "" if value in (None, {}) else str(value)


def with_preset(values: dict, preset: str, home: Workspace) -> dict:
    """The form's values with the preset's options, and the defaults of those that other presets change."""
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset named {shown(preset)}{did_you_mean(preset, PRESETS)}")
    touched = {name for options in PRESETS.values() for name in options}
    filled = from_config(from_flat(TrainConfig, PRESETS[preset]), home)
    return values | {name: filled[name] for name in touched}
