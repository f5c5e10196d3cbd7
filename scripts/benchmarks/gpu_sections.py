"""Run sections of gpu.sh in this process: gpu_sections.py FOLDER UNTIL LATER QUICK SECTION=SHARE ...

UNTIL: the time, in seconds since 1970, at which all sections of all processes are to end.  LATER: the shares
of the sections that other processes run afterward.  Exit code 3: the device no longer answers, and the
sections that are left need another process; 4: there is no device.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_results import TITLES, Results

BROKEN = 3
NO_DEVICE = 4
LATE = 5.0  # seconds by which a measurement may overrun the time of its section


class OutOfTime(BaseException):
    """A section's time is over; not an Exception, which a section notes and goes on."""


@dataclass(frozen=True)
class Clock:
    """The time of a section.  until: in seconds since 1970."""

    until: float

    def left(self) -> float:
        return self.until - time.time()

    def part(self, share: float) -> "Clock":
        """The first part of what is left."""
        return Clock(time.time() + share * self.left())


def main(folder: str, until: str, later: str, quick: str, *shares: str) -> int:
    weights = {}
    for word in shares:
        section, _, share = word.partition("=")
        weights[section] = float(share)
    print("loading torch and diffusers", flush=True)
    from gpu_base import FULL, QUICK

    if not device_answers():
        return NO_DEVICE
    sizes = QUICK if quick == "1" else FULL
    results = Results(Path(folder))
    for section, weight in weights.items():
        others = list(weights.values())[list(weights).index(section) :]
        part = weight / (sum(others) + float(later))
        clock = Clock(float(until)).part(part)
        run_section(section, results, clock, sizes)
        if not device_answers():
            print("the device no longer answers: the rest runs in another process", flush=True)
            return BROKEN
    return 0


def run_section(section: str, results: Results, clock: Clock, sizes) -> None:
    """Run one section; whatever it raises is a sentence in the results."""
    title = TITLES[section]
    print(f"{title}: at most {clock.left():.0f} s", flush=True)
    results.begin(section, clock.until)

    def add(**row) -> None:
        results.add(section, row)
        facts = [f"{name} {short(value)}" for name, value in row.items()]
        print(f"  {', '.join(facts)}", flush=True)

    state, sentence = "done", ""
    try:
        with alarm(clock.left() + LATE):
            sentence = importlib.import_module(f"gpu_{section}").run(sizes, clock, add) or ""
    except OutOfTime:
        state, sentence = "stopped", "its time was over"
    except Exception as error:
        state, sentence = "failed", sentence_of(error)
        traceback.print_exc()
    results.end(section, state, sentence)
    print(f"{title}: {state}{': ' if sentence else ''}{sentence}", flush=True)


def short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after these seconds."""

    def ring(*_) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sentence_of(error: BaseException) -> str:
    """An exception's kind and the first lines of what it says."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__


def attempt(facts: dict, function: Callable[..., dict], *values) -> dict:
    """The facts with what function(*values) gives, or with the sentence of the error as "problem"."""
    try:
        return facts | function(*values)
    except Exception as error:
        traceback.print_exc()
        return facts | dict(problem=sentence_of(error))
    finally:
        release()


def release() -> None:
    """Give back the memory of what is no longer used."""
    import torch

    gc.collect()
    with contextlib.suppress(RuntimeError):  # of a device that no longer answers
        torch.cuda.empty_cache()


def device_answers() -> bool:
    import torch

    release()
    try:
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):  # the latter of a torch without CUDA
        return False
    return True


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.modules["gpu_sections"] = sys.modules["__main__"]  # what the sections import is this module
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # threads that prepare batches would be waited for
