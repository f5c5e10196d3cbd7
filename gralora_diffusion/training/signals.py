"""SIGINT and SIGTERM: the first asks a run to stop where nothing is lost, the second stops it at once."""

import os
import signal
import time
from collections.abc import Callable


class Stopped(Exception):
    """The run was asked to stop, and did."""


class Interrupts:
    """with Interrupts(at_once) as interrupts: the first signal raises Stopped, or with `patient` is only noted in `asked`.

    A second one calls at_once() and ends the process with 128 + the signal's number; one within a second of the first is the same request,
    which a launcher passes on.  Outside the main thread, where no signal arrives, nothing is changed.
    """

    def __init__(self, at_once: Callable[[], None]):
        self.at_once, self.patient, self.asked, self.first = at_once, False, False, 0.0

    def __enter__(self):
        try:
            self.before = {
                number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not the main thread
            self.before = {}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number, _frame):
        if self.asked:
            if time.monotonic() - self.first < 1:
                return
            self.at_once()
            os._exit(128 + number)
        self.asked, self.first = True, time.monotonic()
        if not self.patient:
            raise Stopped("stopped before the first step; nothing is lost, and the same command begins again")
