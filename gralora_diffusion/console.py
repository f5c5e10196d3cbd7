"""Messages for the person at the terminal: one sentence, on stderr."""

import logging
import os
import sys
import warnings
from pathlib import Path

NOISY = (
    "torch.utils._pytree",  # torchao's enums
    "torch.multiprocessing.spawn",  # processes that it ends
    "diffusers.pipelines.pipeline_utils",  # a hub that cannot be reached
    "huggingface_hub.utils._http",  # its retries
    "diffusers.quantizers.torchao.torchao_quantizer",  # a torchao that it does not know
    "transformers.tokenization_utils_base",
)
_program = None
_work_is_shared = False


def set_program(name: str) -> None:
    """The command that messages and --help are from, for instance "gralora train"."""
    global _program
    _program = name


def program() -> str:
    return _program or Path(sys.argv[0]).stem


def fail(message: str, code: int = 2):
    """Print one sentence and exit: code 2 for invalid options or files, 1 for a failed run.

    While several processes check the same options, the first one prints for all.
    """
    if code != 2 or is_first_process() or _work_is_shared:
        print(f"{program()}: {printable(message)}", file=sys.stderr)
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


def counted(number: int, noun: str) -> str:
    """1 run, or 2 runs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def note(sentence: str) -> None:
    """Print one sentence about something that does not stop the run; from the first process only."""
    if is_first_process():
        print(f"note: {printable(sentence)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text that may be from a file, without control characters, which would act on the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
