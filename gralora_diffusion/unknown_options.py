"""What the sentence for an option that does not exist says: ours, where another trainer or tool has one."""

import difflib
import json
from pathlib import Path

HERE = Path(__file__).parent
FOREIGN = json.loads((HERE / "foreign_options.json").read_text())
# {other trainers' option, or our option with a value of theirs: a sentence with ours}
FOREIGN_VALUES = {name.lower(): hint for name, hint in FOREIGN.items() if " " in name}
OWN_NAMES = json.loads((HERE / "own_option_names.json").read_text())  # {name that users try: option}
SIMILAR = 0.82  # of difflib's ratio; less similar names are other options
MANY = 4  # options with the same words, of which none is likely to be meant


def unknown(words: list[str], known: dict) -> str:
    """The sentence for options that do not exist; other trainers' options get ours.

    words: what argparse could not read, values included. known: {flag: its action}.
    """
    flags = list(dict.fromkeys(word.partition("=")[0] for word in words if word.startswith("-")))
    if not flags:
        return f"{words[0]!r} is not expected here; options start with --"
    everything = "--help_all" if "--help_all" in known else "--help"
    if len(flags) == 1:
        (flag,) = flags
        if hint := foreign_hint(flag, known):
            return f"unknown option {flag}: {hint}"
        meant = meant_by(flag, known)
        return f"unknown option {flag}{'; ' if meant else ';'}{meant} {everything} lists all options"
    found = []
    for flag in flags:
        hint = foreign_hint(flag, known) or meant_by(flag, known)
        found.append(f"{flag} ({hint})" if hint else flag)
    return f"unknown options {', '.join(found)}; {everything} lists all options"


def foreign_hint(flag: str, known: dict) -> str | None:
    """The sentence with our option for one of another tool, with _ or - between its words."""
    name = with_underscores(flag)
    if "--help_all" in known:  # of `gralora train`
        return FOREIGN.get(name)
    own = OWN_NAMES.get(name)
    return f"{own} is its name here" if own in known else None


def meant_by(flag: str, known: dict) -> str:
    """Which options are meant by a name, as a question; "" where none can be told."""
    name = with_underscores(flag)
    meant = [name] if name in known else with_words_of(name, known)
    meant = meant or difflib.get_close_matches(name, list(known), 1, SIMILAR)
    return f"did you mean {' or '.join(map(repr, meant))}?" if meant else ""


def with_words_of(name: str, known: dict) -> list[str]:
    """The options whose names have all words of this one, each once; [] where there are MANY."""
    words = set(name[2:].split("_"))
    found = {}
    for flag, action in known.items():
        if words <= set(flag[2:].split("_")) and not flag.startswith("--no-"):
            found.setdefault(action.dest, flag)
    return list(found.values()) if len(found) < MANY else []


def with_underscores(flag: str) -> str:
    """--network-dim as --network_dim."""
    return "--" + flag[2:].replace("-", "_") if flag.startswith("--") else flag
