"""Notes on captions: those that are read in another way than their writer may expect, or not at all."""

import re
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, note
from gralora_diffusion.data.captions import Caption
from gralora_diffusion.data.listing import printable, some
from gralora_diffusion.data.wildcards import has_wildcards
from gralora_diffusion.options import ConfigError

NAMES = "trigger|trigger_?word|name|filewords|instance|class|(?:class|instance)_?token|token"
PLACEHOLDERS = {  # {what other programs replace or leave out of a caption: how a note calls it}
    re.compile(rf"\[({NAMES})\]|\{{({NAMES})\}}|%({NAMES})%", re.I): "a placeholder such as [trigger]",
    re.compile(r"\|\|\||;;;"): "a separator of tags such as |||",
    re.compile(r"<(lora|lyco|lycoris|hypernet):[^<>]{1,200}>", re.I): "<lora:...>",
    re.compile(r"__[\w/*-]{1,100}__"): "the name of a wildcard file",
    re.compile(r"\A(#|//)\s"): "a comment at its beginning",
}
# {2$$red|blue}, {0.5::red|blue}: how many are chosen, and how often each is
DYNAMIC_PROMPTS = re.compile(r"\{[^{}|]{0,40}\$\$|[{|]\s*\d{0,9}\.?\d{1,9}::")


def note_captions(folder: Path, captions: list[Caption], lines: str, prompt: str | None) -> None:
    """Note which captions were read in a way that their writer may not expect.

    lines: the value of --caption_lines. prompt: what stands in for empty captions.
    """
    guessed = [caption for caption in captions if caption.guessed]
    several = [caption.file for caption in captions if caption.lines > 1]
    empty = [caption.empty for caption in captions if caption.empty]
    if guessed:
        files = some([caption.file for caption in guessed])
        first = printable(guessed[0].text[:40])
        note(f"captions in {folder} that are not UTF-8 are read as cp1252: {files} (the first: {first!r})")
    if several and lines == "first":
        what = f"only the first line of {counted(len(several), 'caption file')} in {folder} is used"
        note(f"{what}: {some(several)} (--caption_lines join or random uses all lines)")
    unused = [f"{caption.unused} ({caption.file} is used)" for caption in captions if caption.unused]
    if unused:
        note(f"captions in {folder} that are not used, since their images have another: {some(unused)}")
    if empty:
        note(f"{prompt!r} replaces empty captions in {folder}: {some(empty)}")


def check_captions(captions: list[tuple[str, str]], config: TrainConfig) -> None:
    """Note captions that hold more than words, as training leaves them; captions: (image, caption).

    Raises ConfigError for forms of wildcards that --caption_wildcards does not read.
    """
    if config.caption_wildcards:
        check_wildcards(captions)
    elif names := [image for image, caption in captions if has_wildcards(caption)]:
        what = f"{{a|b}} is left as it is in {counted(len(names), 'caption')}"
        note(f"{what}: {some(names)} (--caption_wildcards draws one of the words)")
    for pattern, what in PLACEHOLDERS.items():
        if names := [image for image, caption in captions if pattern.search(caption)]:
            note(f"{what} is trained on as text in {counted(len(names), 'caption')}: {some(names)}")


def check_wildcards(captions: list[tuple[str, str]]) -> None:
    for image, caption in captions:
        if match := DYNAMIC_PROMPTS.search(caption):
            problem = f"the caption of {image} has {match[0]!r}, a number for a wildcard"
            way = "write {a|b} without numbers; a word that is there twice is drawn twice as often"
            raise ConfigError(
                f"{problem}, which --caption_wildcards does not read: {way}", option="caption_wildcards"
            )
