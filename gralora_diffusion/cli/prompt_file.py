"""Prompts from a file: one per line, followed by settings of its own, as in the files of sd-scripts."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from gralora_diffusion.checks import check_side
from gralora_diffusion.data.text_files import read_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.sampling_settings import SamplingSettings

MAX_BYTES = 2**20
MAX_PROMPTS = 1000
FLAGS = {  # of a line: what each holds, and how it reads its value
    "n": ("negative prompt", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "s": ("steps", int),
    "l": ("guidance scale", float),
}
FLAG = re.compile(r"(?:^| )--([A-Za-z]{1,8})(?= |$)")


@dataclass(frozen=True)
class Line:
    """A prompt with what its line sets; None where the command's own setting counts."""

    prompt: str
    seed: int | None = None
    n: str | None = None
    w: int | None = None
    h: int | None = None
    s: int | None = None
    l: float | None = None

    def settings(self, common: SamplingSettings) -> SamplingSettings:
        changes = dict(negative_prompt=self.n, num_inference_steps=self.s, guidance_scale=self.l)
        changes["size"] = (self.h, self.w) if self.h else None
        return replace(common, **{name: value for name, value in changes.items() if value is not None})


def read_prompts(path: Path) -> list[Line]:
    """The prompts of a file; lines that begin with # are comments.  Raises ConfigError."""
    try:
        text = read_text(path, MAX_BYTES).text
    except ValueError as error:
        raise ConfigError(f"--prompt_file: {error}") from None
    except OSError as error:
        raise ConfigError(f"--prompt_file {path} cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            found.append(parse_line(line, f"line {number} of {path.name}"))
    if not found:
        raise ConfigError(f"--prompt_file {path} holds no prompts: write one per line")
    if len(found) > MAX_PROMPTS:
        raise ConfigError(f"--prompt_file {path} holds {len(found):,} prompts; the limit is {MAX_PROMPTS:,}")
    return found


def parse_line(line: str, where: str) -> Line:
    """`a dog --n blurry --w 832 --h 1216 --d 7 --s 30 --l 6`.  Raises ConfigError that names the line."""
    if "\0" in line:
        raise ConfigError(f"{where} holds a NUL character: save the file as UTF-8")
    prompt, *parts = FLAG.split(line)
    given = {}
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        given[name] = parse_flag(name, value.strip(), where)
    if ("w" in given) != ("h" in given):
        raise ConfigError(f"{where} has one of --w and --h: give both")
    seed = given.pop("d", None)
    return Line(prompt.strip(), seed, **given)


def parse_flag(name: str, text: str, where: str) -> str | int | float:
    if name not in FLAGS:
        known = ", ".join(f"--{flag} ({what})" for flag, (what, _) in FLAGS.items())
        raise ConfigError(f"{where} has --{name}, which is not one of {known}")
    what, kind = FLAGS[name]
    try:
        value = kind(text)
    except ValueError:
        value = None
    if name in "wh" and value is not None:
        return check_side(value, f"{where}: the {what}")
    least = 0 if name in "dl" else 1
    if value is None or (kind is not str and not least <= value < 2**63):
        rule = "a number" if kind is float else "a whole number"
        raise ConfigError(f"{where}: --{name}, the {what}, is {text!r}; it must be {rule} from {least}")
    return value
