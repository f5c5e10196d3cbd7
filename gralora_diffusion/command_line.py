"""The command line: every option of the config as a flag, grouped --help, presets, one-sentence errors."""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gralora_diffusion.checks import in_home
from gralora_diffusion.config import GROUPS, TrainConfig
from gralora_diffusion.console import fail, program
from gralora_diffusion.options import ConfigError, Option, did_you_mean, from_flat, options_of
from gralora_diffusion.presets import BY_CARD, PRESETS, check_preset, preset_options
from gralora_diffusion.unknown_options import FOREIGN_VALUES, unknown

MOST_USED = (  # the options that `gralora train --help` shows
    "pretrained_model_name_or_path", "instance_data_dir", "instance_prompt", "resolution",
    "use_aspect_ratio_buckets", "max_train_steps", "train_batch_size", "learning_rate", "train_text_encoder",
    "seed", "method", "rank", "k", "validation_prompt", "validation_steps", "output_dir",
    "checkpointing_steps", "dry_run", "mixed_precision", "gradient_checkpointing", "snr_gamma",
)  # fmt: skip
METAVARS = {  # by kind, else by type
    "folder": "FOLDER",
    "file": "FILE",
    "images": "FOLDER",
    "base_model": "BASE",
    "dataset": "DATASET",
    "allocation": "FILE",
    str: "TEXT",
    int: "INT",
    float: "FLOAT",
    dict: "JSON",
}
ALIASES = {  # values of --adapter that stand for several options; what is given beside them counts more
    "gora": dict(method="lora", rslora=True, alpha=16.0, allocate="gora", gora_init="random"),
}


class Layout(argparse.RawDescriptionHelpFormatter):
    """--help with METAVARS for options that have no metavar of their own."""

    def _get_default_metavar_for_optional(self, action):
        return METAVARS.get(action.type) or super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one sentence and exit code 2."""

    def __init__(self, **kwargs):
        kwargs = dict(usage="%(prog)s [options]", exit_on_error=False) | kwargs
        super().__init__(prog=program(), allow_abbrev=False, formatter_class=Layout, **kwargs)
        self.register("type", int, whole_number)
        self.register("type", float, number)
        self.register("type", Path, path_in_home)

    def parse_args(self, args=None, namespace=None):
        try:
            namespace, unused = self.parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self.error(sentence(error, sys.argv[1:] if args is None else args))
        if unused:
            self.error(unknown(unused, self._option_string_actions))
        return namespace

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            allowed = ", ".join(map(str, action.choices))
            problem = f"is {value!r}; it must be one of {allowed}"
            hint = FOREIGN_VALUES.get(f"{action.option_strings[0]} {value}".lower())
            if hint and "--help_all" in self._option_string_actions:  # of `gralora train`
                problem += f"; {hint}"
            raise argparse.ArgumentError(action, problem)

    def error(self, message):
        prefix = "the following arguments are required: "
        if message.startswith(prefix):
            names = [name.partition("/")[0] for name in message.removeprefix(prefix).split(", ")]
            message = f"{listed(names)} {'is' if len(names) == 1 else 'are'} required"
        fail(message)


def sentence(error: argparse.ArgumentError, words: Sequence[str]) -> str:
    """What argparse found wrong with an option, in the words of check_rules(); words: the command line."""
    if error.argument_name is None:
        return error.message
    names = error.argument_name.split("/")
    given = {str(word).partition("=")[0] for word in words}
    flag = next((name for name in names if name in given), names[0])
    if error.message.startswith("expected"):
        return f"{flag} needs {'at least one value' if 'at least' in error.message else 'a value'}"
    unwanted = "ignored explicit argument "
    if error.message.startswith(unwanted):
        return f"{flag} takes no value, but {error.message.removeprefix(unwanted)} is given"
    return f"{flag} {error.message}"


def listed(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        first, separator, _ = text.replace("x", ",").partition(",")
        what = f"one whole number, such as {first}" if separator and first.isdigit() else "a whole number"
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be {what}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number") from None


def path_text(text: str) -> str:
    """A path, or a hub id, with ~ replaced by the home folder."""
    try:
        return in_home(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"cannot be used: {error}") from None


def path_in_home(text: str) -> Path:
    return Path(path_text(text))


def add_options(parser: argparse.ArgumentParser, cls, visible: tuple[str, ...] | None = None) -> None:
    """A flag for each option of a config class, under its group's title; what is not given stays absent.

    visible: the options that --help shows; by default all.
    """
    known = options_of(cls).values()
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for about in known:
            if about.group == title:
                add_option(group, about, visible is None or about.name in visible)


def add_option(group, about: Option, visible: bool = True) -> None:
    silent = about.default is None or about.default is False or about.default == {}
    default = "" if silent else f" (default: {about.default})"
    text = about.help.replace("%", "%%") + default if visible else argparse.SUPPRESS
    common = dict(dest=about.name, default=argparse.SUPPRESS)
    if about.type is bool:
        group.add_argument(
            *about.flags, type=switch, nargs="?", const=True, metavar="BOOL", help=text, **common
        )
        negated = [f"--no-{flag[2:]}" for flag in about.flags]
        group.add_argument(*negated, action="store_const", const=False, help=argparse.SUPPRESS, **common)
        return
    choices = about.rule.choices
    if about.name == "method":
        choices = (*choices, *ALIASES)
    convert = json_object if about.type is dict else about.type
    metavar = METAVARS.get(about.kind) or METAVARS[about.type]
    if choices:
        convert, metavar = Choice(choices), "{" + ",".join(choices) + "}"
    group.add_argument(*about.flags, type=convert, choices=choices, metavar=metavar, help=text, **common)


def preset(text: str) -> str:
    """The name of a preset, in capitals or not."""
    names = [*BY_CARD, *PRESETS]
    if text.lower() not in names:
        meant = did_you_mean(text.lower(), names) or f"; it must be one of {', '.join(names)}"
        raise argparse.ArgumentTypeError(f"is {text!r}, which is not a preset{meant}")
    return text.lower()


class Choice:
    """Reads one of several words, in capitals or not."""

    def __init__(self, choices: tuple[str, ...]):
        self.choices = {choice.lower(): choice for choice in choices}

    def __call__(self, text: str) -> str:
        return self.choices.get(text.lower(), text)


def switch(text: str) -> bool:
    """--flag True and --flag=False, as command lines for diffusers' scripts have them."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be True or False")
    return text.lower() == "true"


def json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'is {text!r}; it must be a JSON object such as {{"attn2": 32}}')
    return value


def expand(given: dict) -> dict:
    """{option: value} with an alias of --adapter replaced by the options that it stands for."""
    if given.get("method") not in ALIASES:
        return given
    meant = dict(ALIASES[given["method"]])
    if given.get("allocation"):  # its ranks are used
        del meant["allocate"]
    return meant | {name: value for name, value in given.items() if name != "method"}


class HelpAll(argparse.Action):
    """--help_all: the help with every option."""

    def __init__(self, build, **kwargs):
        super().__init__(nargs=0, default=argparse.SUPPRESS, **kwargs)
        self.build = build

    def __call__(self, *_):
        self.build().print_help()
        raise SystemExit(0)


def parser_of(description: str, epilog: str | None = None, visible=MOST_USED) -> Parser:
    """The parser of `gralora train`, whose --help shows the most used options."""
    parser = Parser(description=description, epilog=epilog)
    build = functools.partial(parser_of, description, epilog, None)
    parser.add_argument("--help_all", action=HelpAll, build=build, help="show every option and exit")
    about = "options for SDXL by training target and GPU memory (subject and style: one that fits this GPU); "
    about += "options given explicitly take precedence"
    names = "{" + ",".join([*BY_CARD, *PRESETS]) + "}"
    parser.add_argument("--preset", type=preset, metavar=names, default=argparse.SUPPRESS, help=about)
    about = "processes on this machine, one GPU each or all on the CPU"
    parser.add_argument("--num_processes", type=int, default=1, metavar="INT", help=f"{about} (default: 1)")
    about = "with --dry_run, also print the resolved config and a table of all layers that get an adapter"
    parser.add_argument("--verbose", action="store_true", help=about)
    add_options(parser, TrainConfig, visible)
    return parser


def parse(description: str, argv=None, epilog: str | None = None) -> TrainConfig:
    """The config of a training command line; a mistake is one sentence and exit code 2."""
    parser = parser_of(description, epilog)
    return to_config(parser, vars(parser.parse_args(argv)))


def to_config(parser: Parser, given: dict) -> TrainConfig:
    """The config of what a command line gives, {option: value}."""
    given = {name: value for name, value in given.items() if name not in ("num_processes", "verbose")}
    if given.get("hub_token"):  # trackers publish the command line
        sys.argv = [word.replace(given["hub_token"], "***") for word in sys.argv]
    try:
        if "preset" in given:
            check_preset(given["preset"], given.get("pretrained_model_name_or_path"))
            given = preset_options(given.pop("preset")) | given
        return from_flat(TrainConfig, expand(given)).with_home()
    except ConfigError as error:
        parser.error(str(error))


def strengths(parser: Parser, text: str, count: int) -> list[float]:
    """One strength for each of `count` adapters, of a text such as 1,0.6."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        parser.error(f"--strength is {text!r}; it must be numbers separated by commas, such as 1,0.6")
    if len(values) == 1:
        values *= count
    if len(values) != count or not all(abs(value) <= 100 for value in values):
        each = f", or one for each of {count} adapters" if count > 1 else ""
        parser.error(f"--strength is {text!r}; it must be one number from -100 to 100{each}")
    return values
