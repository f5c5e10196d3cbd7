"""Work in a thread whose steps are followed from a generator, and which ends when nobody follows it."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass


class Cancelled(Exception):
    """Raised in the work at its next report once its reports are no longer read."""


@dataclass(frozen=True)
class Done:
    """What the work returned."""

    result: object


def watched(work: Callable[[Callable[[object], None]], object]) -> Iterator[object]:
    """What work(report) reports, each as soon as it is there, then Done; raises what the work raises.

    Where the generator is closed, as Gradio does with that of a cancelled event, report() raises Cancelled.
    """
    reports = queue.SimpleQueue()
    cancelled = threading.Event()

    def report(value: object) -> None:
        if cancelled.is_set():
            raise Cancelled
        reports.put(value)

    def run() -> None:
        try:
            reports.put(Done(work(report)))
        except BaseException as error:  # handed to the reader, whatever it is
            reports.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            value = reports.get()
            if isinstance(value, BaseException):
                raise value
            yield value
            if isinstance(value, Done):
                return
    finally:
        cancelled.set()
