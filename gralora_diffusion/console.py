"""Messages for the person at the terminal: one sentence, on stderr."""

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

NOISY = (
    "torch.utils._pytree",  # torchao's enums
    "torch.multiprocessing.spawn",  # processes that it ends
    "diffusers.pipelines.pipeline_utils",  # a hub that cannot be reached
    "huggingface_hub.utils._http",  # its retries
    "diffusers.quantizers.torchao.torchao_quantizer",  # a torchao that it does not know
    "transformers.tokenization_utils_base",
)
# A way out that needs an option: ", or use --on_bad_image skip", or " (--caption_lines join uses all lines)".
WAY = re.compile(
    r",( or)? (use|name another folder with) --(?P<last>[a-z_-]+)( [a-z0-9]+)?(?=[,:;]|$)"
    r"| \(--(?P<aside>[a-z_-]+)[^()]*\)"
)
_program = None
_options = None
_work_is_shared = False


def set_program(name: str) -> None:
    """The command that messages and --help are from, for instance "gralora train"."""
    global _program
    _program = name


def program() -> str:
    return _program or Path(sys.argv[0]).stem


@contextlib.contextmanager
def only_options(names: Iterable[str]):
    """Within it the command has these options alone: sentences leave out ways that need another one."""
    global _options
    _options = frozenset(names)
    try:
        yield
    finally:
        _options = None


def usable(sentence: str) -> str:
    """The sentence, without ways that need an option which the command lacks."""
    if _options is None:
        return sentence
    return WAY.sub(lambda way: way[0] if (way["last"] or way["aside"]) in _options else "", sentence)


def fail(message: str, code: int = 2):
    """Print one sentence and exit: code 2 for invalid options or files, 1 for a failed run.

    While several processes check the same options, the first one prints for all.
    """
    if code != 2 or is_first_process() or _work_is_shared:
        print(f"{program()}: {usable(printable(message))}", file=sys.stderr)
    raise SystemExit(code)


def share_work() -> None:
    """From now on each process works on a part, and its mistakes are its own."""
    global _work_is_shared
    _work_is_shared = True


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def plain_warnings() -> None:
    """Show warnings as one line, without the place in the code; not those of libraries about themselves."""
    warnings.filterwarnings("ignore", "nvmlDeviceGetGpuFabricInfoV")  # of torch's allocator
    warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")  # of diffusers' own call
    warnings.formatwarning = lambda message, *_, **__: f"{program()}: {message}\n"


def no_telemetry() -> None:
    """Keep onnxruntime, which other libraries import too, from sending events, unless the user chose."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def quiet_libraries() -> None:
    """Keep notes of libraries about themselves off the terminal; their errors stay."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def print_any_character() -> None:
    """Print characters that the terminal's encoding lacks as escapes, such as emoji in cp1252."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def duration(seconds: float) -> str:
    """1 h 2 min, 3 min 4 s, or 5.6 s."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s"


def about(seconds: float) -> str:
    """An estimate in words: about 1 h 5 min, about 24 min, or about 40 s."""
    if seconds < 57.5:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 90:
        return f"about {minutes} min"
    minutes = 5 * round(minutes / 5)
    return f"about {minutes // 60} h {minutes % 60} min" if minutes % 60 else f"about {minutes // 60} h"


def clock_time(seconds: float | None) -> str:
    """4:05, or 1:02:03."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def speed_text(seconds: float | None) -> str:
    """it/s or s/it of a step that takes so many seconds, whichever is above 1."""
    if not seconds:
        return "-"
    return f"{1 / seconds:.2f} it/s" if seconds < 1 else f"{seconds:.2f} s/it"


def counted(number: int, noun: str) -> str:
    """1 run, or 2 runs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def note(sentence: str) -> None:
    """Print one sentence about something that does not stop the run; from the first process only."""
    if is_first_process():
        print(f"note: {usable(printable(sentence))}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text that may be from a file, without control characters, which would act on the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
