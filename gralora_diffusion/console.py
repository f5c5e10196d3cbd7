"""Messages for the person at the terminal: one sentence, on stderr."""

import os
import sys
import warnings
from pathlib import Path

_program = None


def set_program(name: str) -> None:
    """The command that messages and --help are from, for instance "gralora train"."""
    global _program
    _program = name


def program() -> str:
    return _program or Path(sys.argv[0]).stem


def fail(message: str, code: int = 2):
    """Print one sentence and exit: with 2 for a mistake in what was asked, with 1 for a run that failed.

    Of several processes, all of which see the same mistake, the first one prints it.
    """
    if code != 2 or is_first_process():
        print(f"{program()}: {message}", file=sys.stderr)
    raise SystemExit(code)


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def plain_warnings() -> None:
    """Show warnings as one line, without the place in the code."""
    warnings.formatwarning = lambda message, *_, **__: f"{program()}: {message}\n"


def note(sentence: str) -> None:
    """Print one sentence about something that does not stop the run; from the first process only."""
    if is_first_process():
        print(f"note: {sentence}", file=sys.stderr, flush=True)
