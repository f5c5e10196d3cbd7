"""What an option is: a dataclass field with help, bounds and group; configs to and from JSON; errors."""

import contextlib
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

FIELD_KINDS = (
    "value",
    "text",
    "images",
    "base_model",
    "dataset",
    "allocation",
    "adapter",
    "secret",
    "folder",
    "file",
    "encoders",
)


TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    types.NoneType: "null",
}
PATHS = ("images", "base_model", "dataset", "allocation", "adapter", "folder", "file")  # kinds of a path


class ConfigError(ValueError):
    """An option, or a file it names, cannot be used; the message is one sentence for the user.

    option: the name of the config field that is wrong, where it is one field's fault.
    """

    def __init__(self, message: str, option: str | None = None):
        super().__init__(message)
        self.option = option


@contextlib.contextmanager
def fault_of(option: str) -> Iterator[None]:
    """Within it, a ConfigError that names no option gets this one, whose file is read there."""
    try:
        yield
    except ConfigError as error:
        error.option = error.option or option
        raise


class TrainingError(RuntimeError):
    """A run cannot continue; the message is one sentence for the user."""


@dataclass(frozen=True)
class Rule:
    """What a value must be: one of `choices`, or a number within bounds.  None is always allowed."""

    choices: Sequence | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def problem(self, value) -> str | None:
        """What the value must be instead, or None where it is fine."""
        if self.choices and value is not None and value not in self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not math.isfinite(value):
            return "a finite number"
        if self.at_least is not None and value < self.at_least:
            return f"at least {self.at_least}"
        if self.above is not None and value <= self.above:
            return f"above {self.above}"
        if self.at_most is not None and value > self.at_most:
            return f"at most {self.at_most}"
        return None


@dataclass(frozen=True)
class Option:
    """A config field as the command line, --help and the page see it.

    help: for --help; label and hint: for the page, where hint is the help without command-line spelling.
    blank: for the page too, what no choice stands for.
    flags: its names on the command line, the most usual first.
    kind: what it holds, one of FIELD_KINDS: a plain value, a path or an id of some sort, or a secret.
    needs: {another option: its values with which this one has an effect}; True is any but None and False.
    resumable: a run may be resumed with another value, since it does not change what a step trains.
    """

    name: str
    type: type
    default: object
    help: str
    group: str
    label: str
    hint: str
    blank: str
    kind: str
    flags: tuple[str, ...]
    rule: Rule
    needs: dict
    resumable: bool

    @property
    def flag(self) -> str:
        return self.flags[0]


def option(
    default,
    help: str,
    *,
    group: str,
    label: str,
    hint: str | None = None,
    blank: str = "default",
    kind: str = "value",
    flags: tuple[str, ...] = (),
    needs: dict | None = None,
    resumable: bool = False,
    **rule,
):
    """A dataclass field that is an option: see Option and Rule for the keywords."""
    assert kind in FIELD_KINDS, kind
    page = dict(label=label, hint=hint or help[0].upper() + help[1:], blank=blank)
    metadata = dict(help=help, group=group, kind=kind, flags=flags, needs=needs or {}, resumable=resumable)
    metadata |= page | dict(rule=Rule(**rule))
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def in_group(group: str, **common):
    """option() for fields of one group that have keywords in common."""
    return functools.partial(option, group=group, **common)


@functools.cache
def options_of(cls) -> dict[str, Option]:
    """{name: option} of a config class, in the order of its fields; those of configs inside it come first."""
    found = {}
    for f in fields(cls):
        if dataclasses.is_dataclass(f.type):
            found |= options_of(f.type)
            continue
        about = f.metadata
        found[f.name] = Option(
            name=f.name,
            type=value_type(f),
            default={} if f.default is dataclasses.MISSING else f.default,
            help=about["help"],
            group=about["group"],
            label=about["label"],
            hint=about["hint"],
            blank=about["blank"],
            kind=about["kind"],
            flags=about["flags"] or (f"--{f.name}",),
            rule=about["rule"],
            needs=about["needs"],
            resumable=about["resumable"],
        )
    return found


def value_type(f: dataclasses.Field) -> type:
    """int for `int | None`."""
    return typing.get_args(f.type)[0] if isinstance(f.type, types.UnionType) else f.type


def check_rules(config) -> None:
    """Raises ConfigError for a number out of bounds, or a value that is none of its option's choices."""
    for name, about in options_of(type(config)).items():
        value = value_in(config, name)
        if problem := about.rule.problem(value):
            text = repr(value) if about.rule.choices else value
            raise ConfigError(f"{about.flag} is {text}; it must be {problem}", option=name)


def check_needs(config) -> None:
    """Raises ConfigError for an option that has no effect, since one that it needs has another value."""
    known = options_of(type(config))
    for name, about in known.items():
        if not about.needs or value_in(config, name) == about.default:
            continue
        fits = []
        for other, wanted in about.needs.items():
            value = value_in(config, other)
            fits.append(value not in (None, False, {}) if wanted is True else value in wanted)
        if not any(fits):
            ways = " or ".join(needed(known[other], wanted) for other, wanted in about.needs.items())
            raise ConfigError(f"{about.flag} has no effect here: it needs {ways}", option=name)


def one_of(name: str, value, choices) -> None:
    """Raises ConfigError unless the value is one of the choices."""
    if problem := Rule(choices=tuple(choices)).problem(value):
        raise ConfigError(f"{name} is {value!r}; it must be {problem}")


def value_in(config, name: str):
    """The value of an option, of the config itself or of a config inside it."""
    if hasattr(config, name):
        return getattr(config, name)
    inner = [getattr(config, f.name) for f in fields(config) if dataclasses.is_dataclass(f.type)]
    return next(getattr(part, name) for part in inner if hasattr(part, name))


def needed(other: Option, wanted) -> str:
    """An option that another one needs, as a message names it."""
    return other.flag if wanted is True else f"{other.flag} {' or '.join(map(str, wanted))}"


def to_dict(config) -> dict:
    return dataclasses.asdict(config)


def from_dict(cls, values: dict):
    """Build a config from parsed JSON; an unknown key or a value of the wrong type raises ConfigError.

    cls.upgraded(values), where there is one, maps what older versions wrote.
    """
    values = getattr(cls, "upgraded", dict)(values)
    known = {f.name: f for f in fields(cls)}
    check_names(values, known)
    nested = {}
    for name, value in values.items():
        kind = known[name].type
        allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if dataclasses.is_dataclass(kind):
            allowed = (kind, dict)
            if isinstance(value, dict):
                nested[name] = from_dict(kind, value)
        if not (type(value) in allowed or (type(value) is int and float in allowed)):
            names = " or ".join(TYPE_NAMES.get(t, t.__name__) for t in allowed)
            raise ConfigError(f"option {name!r} is {value!r}; it must be {names}", option=name)
    return cls(**values | nested)


def from_flat(cls, values: dict):
    """Build a config from {option: value} in which the options of configs inside it stand beside its own."""
    check_names(values, options_of(cls))
    own = {f.name: f.type for f in fields(cls)}
    inner = {name: kind for name, kind in own.items() if dataclasses.is_dataclass(kind)}
    parts = {}
    for name, kind in inner.items():
        parts[name] = kind(**{n: v for n, v in values.items() if n in options_of(kind)})
    return cls(**parts, **{n: v for n, v in values.items() if n in own})


def check_names(names, known) -> None:
    """Raises ConfigError for names that are no options; it lists all of them."""
    wrong = [name for name in names if name not in known]
    if len(wrong) == 1:
        raise ConfigError(f"unknown option {wrong[0]!r}{did_you_mean(wrong[0], known)}")
    if wrong:
        found = []
        for name in wrong:
            meant = did_you_mean(name, known).removeprefix("; ")
            found.append(f"{name!r} ({meant})" if meant else repr(name))
        raise ConfigError(f"unknown options {', '.join(found)}")


def to_flat(config) -> dict:
    """{option: value} of a config and the configs inside it: from_flat() the other way round."""
    return {name: value_in(config, name) for name in options_of(type(config))}


def did_you_mean(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
