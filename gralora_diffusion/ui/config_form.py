"""The form: its fields, their texts and bounds come from the config's dataclasses, so that an option added there is on the page."""

import dataclasses
import json
import math
import re
import shlex
import types
import typing
from dataclasses import dataclass

from gralora_diffusion.command_line import PRESETS as TRAINER_PRESETS
from gralora_diffusion.command_line import json_object
from gralora_diffusion.config import EMBEDDED as EMBEDDED_DEFAULTS
from gralora_diffusion.config import SDXL as SDXL_DEFAULTS
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.options import ConfigError, did_you_mean, to_dict
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
TITLES = {
    "pretrained_model_name_or_path": "Base",
    "instance_prompt": "Trigger prompt",
    "instance_data_dir": "Images",
    "max_train_steps": "Steps",
}
HINTS = {  # the fields in front, for whoever has never trained; the others say what --help says
    "instance_data_dir": "A set of Dataset; robot comes with the page",
    "pretrained_model_name_or_path": "The embedded one, a hub id, or a checkpoint in the folder models",
    "instance_prompt": "Names the subject with a rare word, where an image has no caption",
    "max_train_steps": "How long to learn; blank for what suits the base",
    "rank": "How much the adapter can hold, and how large its file is",
    "seed": "The same seed gives the same adapter again",
}
GROUPS = {  # the first whose pattern is found in an option's name; the adapter's options are a group of their own
    "Ranks by gradients": r"^gora_|^allocat",
    "Sample images": r"validation|inference|guidance",
    "Images and captions": r"_data_dir|^dataset|resolution|crop|flip|class_|prior_|caption|bucket|repeat|column|image|stream|token|_samples|latent",
    "Learning": r"learning_rate|lr|optimizer|adam|prodigy|grad|ema_|seed|batch|epochs|train_steps|text_encoder",
    "Objective": r"snr|noise|loss|huber|prediction|debiased|betas",
    "Machine and files": r"",
}
PRESETS = {"default": {}, "quick look": dict(max_train_steps=120, rank=32, num_inference_steps=15)}
PRESETS |= {name: preset["options"] for name, preset in TRAINER_PRESETS.items()}
LONGEST = 2000  # characters of a text


class FieldError(ConfigError):
    """What is wrong with one option; `name` is its field's."""

    def __init__(self, name: str | None, message: str):
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Option:
    """A config field as the form sees it."""

    name: str
    kind: type
    default: object
    help: str
    flag: str
    flags: tuple
    choices: tuple | None
    group: str

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name.replace("_", " ").capitalize())

    @property
    def hint(self) -> str:
        return HINTS.get(self.name, self.help[0].upper() + self.help[1:])

    @property
    def holds(self) -> str:
        """What the form offers in place of a path: "set", "base", "hub", "allocation", "secret", "folder"; or "value"."""
        if self.name.endswith("_data_dir"):
            return "set"
        if self.name.endswith("model_name_or_path"):
            return "base"
        if self.name.endswith("_token"):
            return "secret"
        if self.name in ("dataset_name", "allocation"):
            return "hub" if self.name == "dataset_name" else "allocation"
        return "folder" if self.kind is str and self.name.endswith("_dir") else "value"


def options() -> list[Option]:
    """Every option of the command line, in the order of the dataclasses, the six in front first."""
    found = [*of(AdapterConfig, "Adapter"), *of(TrainConfig, None)]
    return sorted(
        (o for o in found if o.name not in ELSEWHERE),
        key=lambda o: FRONT.index(o.name) if o.name in FRONT else len(FRONT),
    )


def of(cls, group: str | None) -> list[Option]:
    made = []
    for f in dataclasses.fields(cls):
        if f.type is AdapterConfig:
            continue
        kind = typing.get_args(f.type)[0] if isinstance(f.type, types.UnionType) else f.type
        default = {} if f.default is dataclasses.MISSING else f.default
        flags = f.metadata["flags"] or (f"--{f.name}",)
        where = group or next(title for title, pattern in GROUPS.items() if re.search(pattern, f.name))
        made.append(
            Option(
                f.name,
                kind,
                default,
                f.metadata["help"],
                flags[0],
                tuple(flags),
                f.metadata["choices"],
                where,
            )
        )
    return made


OPTIONS = options()
BY_NAME = {o.name: o for o in OPTIONS}


def to_config(values: dict, home: Workspace, name: str | None = None) -> TrainConfig:
    """The config that the form describes; a blank field is its default.  `name` is the run's.

    Raises FieldError, with the field that is wrong.
    """
    given = {}
    for option in OPTIONS:
        try:
            value = read(option, values.get(option.name), home)
        except (ConfigError, ValueError, TypeError) as error:
            raise FieldError(option.name, str(error)) from None
        if value is not None:
            given[option.name] = value
    own = {f.name for f in dataclasses.fields(AdapterConfig)}
    given.pop("hub_token", None)
    try:
        adapter = AdapterConfig(**{n: v for n, v in given.items() if n in own})
        return TrainConfig(
            adapter=adapter,
            output_dir=name and f"runs/{name}",
            **{n: v for n, v in given.items() if n not in own},
        )
    except ConfigError as error:
        raise FieldError(field_of(str(error)), str(error)) from None


def read(option: Option, value, home: Workspace):
    """What a form's value means; None where it is left blank."""
    if value is None or value == "" or (option.kind is not bool and value is False):
        return None
    if option.kind is bool:
        return bool(value)
    if option.kind in (int, float):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{option.flag} is {shown(value)}; it must be a number") from None
        if option.kind is int and not math.isfinite(number):
            raise ConfigError(f"{option.flag} is {value}; it must be a finite number")
        if option.kind is int and number != int(number):
            raise ConfigError(f"{option.flag} is {value}; it must be a whole number")
        return option.kind(number)
    text = str(value)
    if len(text) > LONGEST or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        raise ConfigError(f"{option.flag} must be one line of at most {LONGEST} characters")
    if option.kind is dict:
        try:
            return json_object(text)
        except Exception as error:
            raise ConfigError(str(error)) from None
    if option.choices and text not in option.choices:
        raise ConfigError(f"{option.flag} is {shown(text)}; it must be one of {', '.join(option.choices)}")
    return in_home(option, text, home)


def in_home(option: Option, text: str, home: Workspace) -> str | None:
    """A name that the form offers as what the command line takes."""
    if option.holds == "set":
        if text == BUNDLED and option.name == "instance_data_dir":
            return None
        home.image_set(text)
        if text == BUNDLED:
            raise ConfigError(f"{option.flag} cannot be the bundled images: copy them into a set of your own")
        return f"images/{text}"
    if option.holds == "base":
        return home.base(text) if option.name == "pretrained_model_name_or_path" else home.hub_id(text)
    if option.holds == "hub":
        return home.hub_id(text)
    if option.holds == "allocation":
        if not real_file(home.run(text) / "allocation.json"):
            raise ConfigError(f"the run {shown(text)} has no allocation.json")
        return f"runs/{text}/allocation.json"
    if option.holds == "folder" and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise ConfigError(f"{option.flag} is {shown(text)}; here it must be a plain name, without a path")
    return text


def from_config(config: TrainConfig, home: Workspace) -> dict:
    """The form's values for a config: the other way round.  Raises FieldError for what lies outside HOME."""
    flat = to_dict(config)
    flat |= flat.pop("adapter")
    values = {}
    for option in OPTIONS:
        value = flat[option.name]
        if option.kind is dict:
            value = "" if not value else json.dumps(value)
        if option.holds == "set":
            value = set_of(option, value, home)
        elif option.holds == "base":
            value = EMBEDDED if value is None else value.removeprefix("models/")
            value = "" if option.name != "pretrained_model_name_or_path" and value == EMBEDDED else value
        elif option.holds == "secret" or value is None:
            value = ""
        elif option.default is None and option.kind in (int, float):
            value = f"{value:g}" if option.kind is float else str(value)  # a text, since it may be blank
        values[option.name] = value
    to_config(values, home)
    return values


def set_of(option: Option, folder: str | None, home: Workspace) -> str:
    if folder is None:
        return BUNDLED if option.name == "instance_data_dir" else ""
    for name in home.set_names():
        if (home.root / folder).resolve() == home.image_set(name).resolve():
            return name
    raise FieldError(
        option.name,
        f"{option.flag} is {shown(folder)}, which is none of this page's sets of images: add it under Dataset",
    )


def field_of(message: str) -> str | None:
    """The option that a sentence of the config or the trainer speaks of first."""
    flags = {flag: o.name for o in OPTIONS for flag in o.flags}
    for word in re.findall(r"--\w+", message):
        if word in flags:
            return flags[word]
    return next(
        (word for word in re.findall(r"[A-Za-z]\w*", message) if word in BY_NAME and len(word) > 1), None
    )


def given(config: TrainConfig) -> list[tuple[Option, str]]:
    """(option, text) of whatever differs from its default; never a token."""
    flat = to_dict(config)
    flat |= flat.pop("adapter")
    every = [
        o
        for o in (*of(AdapterConfig, "Adapter"), *of(TrainConfig, None))
        if flat[o.name] != o.default and o.holds != "secret"
    ]
    return [(o, json.dumps(flat[o.name]) if o.kind is dict else str(flat[o.name])) for o in every]


def arguments(config: TrainConfig) -> list[str]:
    """The command line that gives this config: --flag=value, each one element, verbatim, whatever a text begins with."""
    return [f"{option.flag}={text}" for option, text in given(config)]


def command(config: TrainConfig) -> str:
    """The equal command, for a shell."""
    words = []
    for option, text in given(config):
        plain = f"{option.flag} {shlex.quote(text)}"
        words.append(
            option.flag
            if option.kind is bool and text == "True"
            else shlex.quote(f"{option.flag}={text}")
            if text.startswith("-")
            else plain
        )
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
    own, touched = (
        {f.name for f in dataclasses.fields(AdapterConfig)},
        {name for options in PRESETS.values() for name in options},
    )
    options = PRESETS[preset]
    adapter = AdapterConfig(**{n: v for n, v in options.items() if n in own})
    filled = from_config(
        TrainConfig(adapter=adapter, **{n: v for n, v in options.items() if n not in own}), home
    )
    return values | {name: filled[name] for name in touched}
