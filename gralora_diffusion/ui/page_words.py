"""Sentences of the trainer as the page writes them: labels instead of flags, names instead of paths."""

import re
from pathlib import Path

import gralora_diffusion
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.options import ConfigError, Option, options_of
from gralora_diffusion.ui.workspace import BUNDLED, Workspace

RUN_NAME = "Name of the run"  # the label of the field that determines the run folder
FLAG = re.compile(r"(?<![\w'\"`-])--([a-z][a-z0-9_]*)")  # not at the front of a quoted text of the user
VALUE = re.compile(r" (\S+?)(?=[\s,:;.]*(\s|$))")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
VERBS = {  # before a flag or "one of them": what one does to a field
    "give": "fill in",
    "add": "turn on",
    "drop": "clear",
}
VERB = re.compile(r"\b(give|add|drop)\b(?= (an? |the |only )?(--|it\b|them\b|one of))")
NEGATED = re.compile(r"\b(drop|use) --no-([a-z][a-z0-9_]*)")  # of a check box that is on by default
OPTION = re.compile(r"\boption '([a-z0-9_]+)'(?= is )")  # of a config file
NAME = re.compile(r"(?<![\w'\"`.-])([a-z]+(?:_[a-z0-9]+)+)(?=[ :,;]|$)")  # hybrid_rank, as adapters say
FOLDER = re.compile(  # an encoder in a folder, which a run on the page cannot have
    r"; either (run once with a network, .{1,300}? hub), or copy .{1,300}?:FOLDER; (.{1,80}) without either:"
)
COMMAND = re.compile(r",? as `gralora [^`]*` does")
AGAIN = re.compile(r"\brun the same command to (start again|resume(?: from \S*checkpoint-(\d+))?)")
PATH = re.compile(r"(?<![\w.'\"~<>/])(?:~|\.{1,2})?/[^\s:'\",;()]+/([^\s/:'\",;()]+)")


def labels_by_flag() -> dict[str, Option]:
    """{flag without its dashes: option}, with all names of each."""
    found = {}
    for option in options_of(TrainConfig).values():
        for flag in (option.name, *option.flags):
            found[flag.removeprefix("--")] = option
    return found


OPTIONS = labels_by_flag()


def label_of(option: str) -> str:
    """An option's label as a sentence has it."""
    return f"“{OPTIONS[option].label}”"


def page_words(text: str, workspace: Workspace) -> str:
    """A sentence of the trainer with labels for flags, and without paths of this machine."""
    text = FOLDER.sub(r"; \1; \2 without it:", text)
    return without_paths(without_flags(AGAIN.sub(resume_words, text)), workspace)


def resume_words(match: re.Match) -> str:
    """What to do on the page instead of calling the command again."""
    if match[1] == "start again":
        return "press “Resume” to start again"
    return "press “Resume” to continue" + (f" from step {match[2]}" if match[2] else "")


def in_page_words(error: ConfigError, workspace: Workspace) -> ConfigError:
    """The error in the page's words, with the label of its option."""
    words = page_words(str(error), workspace)
    if error.option in OPTIONS and OPTIONS[error.option].label not in words:
        words = f"{label_of(error.option)}: {words}"
    return ConfigError(words, option=error.option)


def without_flags(text: str) -> str:
    """--rank 8 becomes the label of the option with the value, and "drop" becomes "clear"."""
    text = NEGATED.sub(on_or_off, COMMAND.sub("", text)).replace("give one of them", "give only one of them")
    for pattern in (OPTION, NAME):
        text = pattern.sub(lambda match: label_of(match[1]) if match[1] in OPTIONS else match[0], text)
    if not FLAG.search(text):
        return text
    text = VERB.sub(lambda match: VERBS[match[1]], text)
    parts, end = [], 0
    for match in FLAG.finditer(text):
        option = OPTIONS.get(match[1])
        if option is None or match.start() < end:
            continue
        values, stop = values_after(text, match.end(), option)
        label = RUN_NAME if option.name == "output_dir" else option.label
        words = f"{label}: {values}" if values else label
        parts += [text[end : match.start()], f"“{words}”"]
        end = stop
    return "".join([*parts, text[end:]])


def on_or_off(match: re.Match) -> str:
    """Without --no-OPTION the option is on, with it off."""
    if match[2] not in OPTIONS:
        return match[0]
    return f"{'turn on' if match[1] == 'drop' else 'clear'} {label_of(match[2])}"


def values_after(text: str, start: int, option: Option) -> tuple[str, int]:
    """("AdamW or Prodigy", where it ends): the option's own values right after its flag, or ("", start)."""
    found, end = [], start
    match = VALUE.match(text, start)
    while match and is_value(match[1], option):
        found.append(match[1])
        end = match.end(1)
        match = VALUE.match(text, end + 3) if text.startswith(" or ", end) else None
    return " or ".join(found), end


def is_value(word: str, option: Option) -> bool:
    if option.rule.choices:
        return word in option.rule.choices or word == "gora"
    return option.type in (int, float) and NUMBER.fullmatch(word) is not None


def without_paths(text: str, workspace: Workspace) -> str:
    """Names of datasets, runs, bases and adapters instead of their paths; of any other file its name."""
    text = text.replace(str(EXAMPLE), BUNDLED)
    for folder in (workspace.images, workspace.runs, workspace.models, workspace.adapters):
        text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
        text = re.sub(rf"(?<![\w/.'\"-]){folder.name}/(?=[\w.])", "", text)
    for root in (workspace.root, Path(gralora_diffusion.__file__).parent, Path.home()):
        if root != Path(root.anchor):
            text = re.sub(rf"{re.escape(str(root))}(/[^\s/:'\",;()]+)*/", "", text)
    return PATH.sub(lambda match: match[1], text)
