"""Locks for changes of datasets: one for each, so that nobody waits for a change of another dataset."""

import threading
import weakref
from pathlib import Path

NAMES = threading.Lock()  # while a dataset gets its name; nobody who holds it waits for another lock
_guard = threading.Lock()
_locks: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # only those that somebody holds


def changing(folder: Path):
    """The lock of a dataset's folder: `with changing(folder):` around each change of it.

    Captions and images share files and names, and so one lock. A thread may take it several times, and must
    take no second dataset's meanwhile.
    """
    with _guard:
        return _locks.setdefault(folder, threading.RLock())
