"""What an option is: a dataclass field with help, bounds and choices; configs to and from JSON; the errors."""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import field, fields


def option(
    default,
    help: str,
    flags: tuple = (),
    choices: tuple | None = None,
    least=None,
    above=None,
    most=None,
    free=False,
):
    """A dataclass field that is an option; `flags` are its names on the command line where they differ from the field's.

    free: the option changes nothing of what is learnt up to a step, so that a run may be resumed with another value.
    """
    metadata = dict(help=help, flags=flags, choices=choices, least=least, above=above, most=most, free=free)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


class ConfigError(ValueError):
    """An option, or a file it names, cannot be used; the message is one sentence for the user.

    option: the name of the config field that is wrong, where it is one field's fault.
    """

    def __init__(self, message: str, option: str | None = None):
        super().__init__(message)
        self.option = option


class TrainingError(RuntimeError):
    """A run cannot go on; the message is one sentence for the user."""


def check_numbers(config) -> None:
    """Every number finite and within its option's bounds, every choice one of its option's."""
    for f in fields(config):
        if f.metadata.get("choices") and getattr(config, f.name) not in (None, *f.metadata["choices"]):
            one_of(
                (f.metadata["flags"] or (f"--{f.name}",))[0], getattr(config, f.name), f.metadata["choices"]
            )
        value, least, above, most = (
            getattr(config, f.name),
            *(f.metadata.get(name) for name in ("least", "above", "most")),
        )
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        wrong = (
            "a finite number" if abs(value) == math.inf or value != value
            else f"at least {least}" if least is not None and value < least
            else f"above {above}" if above is not None and value <= above
            else f"at most {most}" if most is not None and value > most
            else None
        )  # fmt: skip
        if wrong:
            raise ConfigError(
                f"{(f.metadata['flags'] or ('--' + f.name,))[0]} is {value}; it must be {wrong}"
            )


def one_of(name: str, value, choices) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")


def to_dict(config) -> dict:
    return dataclasses.asdict(config)


def from_dict(cls, values: dict):
    """Build a config from parsed JSON; an unknown key or a value of the wrong type raises ConfigError."""
    known, nested = {f.name: f for f in fields(cls)}, {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{did_you_mean(name, known)}")
        allowed = (
            typing.get_args(known[name].type)
            if isinstance(known[name].type, types.UnionType)
            else (known[name].type,)
        )
        if dataclasses.is_dataclass(allowed[0]):
            nested[name], allowed = allowed[0], (*allowed, dict)
        if not (type(value) in allowed or (type(value) is int and float in allowed)):
            raise ConfigError(
                f"option {name!r} is {value!r}; it must be {' or '.join(t.__name__ for t in allowed)}"
            )
    configs = {
        name: from_dict(nested[name], values[name]) for name in nested if isinstance(values[name], dict)
    }
    return cls(**values | configs)


def did_you_mean(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
