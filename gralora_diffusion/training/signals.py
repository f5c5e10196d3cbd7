"""SIGINT and SIGTERM: the first stops a run after its current step, the second stops it at once."""

import contextlib
import os
import signal
import time
from collections.abc import Callable


class Stopped(Exception):
    """The run was stopped by a signal."""


class Interrupts:
    """with Interrupts(at_once) as interrupts: the first signal raises Stopped, or sets `asked`.

    A second one calls at_once() and ends the process with 128 + the signal's number. One within a second of
    the first counts as the same, since launchers send it again. Outside the main thread, where no signal
    arrives, nothing changes.
    """

    def __init__(self, at_once: Callable[[], None]):
        self.at_once = at_once
        self.patient = False
        self.asked = False
        self.first = 0.0  # when the first signal came
        self.before: dict = {}  # the handlers that were there

    def __enter__(self) -> "Interrupts":
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.receive)
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
            raise Stopped(
                "stopped before the first step; nothing is lost: run the same command to start again"
            )
