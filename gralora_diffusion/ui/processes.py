"""Processes of runs: whether one is still there, and how it is ended, on Windows too."""

import contextlib
import os
import signal

import psutil


def birth_of(pid: int) -> float:
    """When a process was created, in seconds; on Linux since the machine's start.

    Linux knows nothing else: its creation times by the clock move with a clock that is set meanwhile.

    Raises psutil.Error where there is no such process.
    """
    created = psutil.Process(pid).create_time()
    return created - psutil.boot_time() if psutil.LINUX else created


def is_alive(pid: int, born: float) -> bool:
    """Whether the process with this birth_of() still runs; its number may be another's by now."""
    try:
        # the clock may be set by a second between the two times that birth_of() reads
        return abs(birth_of(pid) - born) < 2 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, TypeError, ValueError):
        return False


def end_group(pid: int, at_once: bool = False) -> None:
    """Ask a process that leads a group, and all others of the group, to end; at_once: kill them.

    Windows has no such groups and no SIGTERM: there the process and its children are killed in both cases.
    """
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL if at_once else signal.SIGTERM)
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        for process in [*leader.children(recursive=True), leader]:
            process.kill()


def end_process(pid: int) -> None:
    """Ask one process to end."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).terminate()
