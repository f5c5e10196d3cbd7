"""The command line: every option of the config as a flag, mistakes as one sentence, presets."""

import argparse
import dataclasses
import json
import sys
import types
import typing
from dataclasses import fields
from pathlib import Path

from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.console import fail, program
from gralora_diffusion.options import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one sentence and exit code 2."""

    def __init__(self, **kwargs):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=program(), allow_abbrev=False, formatter_class=formatter, **kwargs)

    def error(self, message):
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            first = message.removeprefix(prefix).split()[0]
            hint = did_you_mean(first, self._option_string_actions)
            message = f"unknown option {first}{hint or ';'} --help lists all options"
        fail(message)


def add_options(parser: argparse.ArgumentParser, cls) -> None:
    for f in fields(cls):
        if f.type is AdapterConfig:
            add_options(parser, AdapterConfig)
            continue
        kind = typing.get_args(f.type)[0] if isinstance(f.type, types.UnionType) else f.type
        names = f.metadata["flags"] or (f"--{f.name}",)
        shown = "" if f.default in (None, dataclasses.MISSING) else f" (default: {f.default})"
        common = dict(
            dest=f.name, default=argparse.SUPPRESS, help=f.metadata["help"].replace("%", "%%") + shown
        )
        if kind is bool:
            parser.add_argument(*names, type=switch, nargs="?", const=True, metavar="BOOL", **common)
            opposite = dict(
                action="store_const",
                const=False,
                dest=f.name,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
            parser.add_argument(*(f"--no-{name[2:]}" for name in names), **opposite)
        else:
            convert = json_object if kind is dict else kind
            parser.add_argument(
                *names,
                type=convert,
                choices=f.metadata["choices"],
                metavar=None if f.metadata["choices"] else kind.__name__.upper(),
                **common,
            )


def switch(text: str) -> bool:
    """--flag True and --flag=False, as command lines for diffusers' scripts have them."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object such as {{"attn2": 32}}')
    return value


PRESETS = json.loads(
    Path(__file__).with_name("presets.json").read_text()
)  # {name: options, and the forecast of a step's memory in GiB}


def parse(description: str, argv=None) -> TrainConfig:
    """The command line of training: what is given counts more than the preset."""
    parser = Parser(description=description)
    parser.add_argument(
        "--preset",
        choices=list(PRESETS),
        default=argparse.SUPPRESS,
        help="options for SDXL by what is learnt and the card's memory",
    )
    add_options(parser, TrainConfig)
    given = vars(parser.parse_args(argv))
    if given.get("hub_token"):  # trackers publish the command line
        sys.argv = [word.replace(given["hub_token"], "***") for word in sys.argv]
    if "preset" in given:
        given = PRESETS[given.pop("preset")]["options"] | given
    try:
        return from_options(given)
    except ConfigError as error:
        parser.error(str(error))


def from_options(given: dict) -> TrainConfig:
    """The config of a command line's options, {field name: value}, the adapter's among them."""
    names = {f.name for f in fields(AdapterConfig)}
    adapter = AdapterConfig(**{n: v for n, v in given.items() if n in names})
    return TrainConfig(adapter=adapter, **{n: v for n, v in given.items() if n not in names})
