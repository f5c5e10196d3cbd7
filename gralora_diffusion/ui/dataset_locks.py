"""Locks for changes of datasets and of the history: one for each, so that nobody waits for another."""

import threading
import weakref
from pathlib import Path

NAMES = threading.Lock()  # while a dataset gets its name; nobody who holds it waits for another lock
_guard = threading.Lock()
_locks: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # only those that somebody holds


def changing(folder: Path):
    """The lock of a dataset's folder, or of the history's: `with changing(folder):` around each change of it.

    Captions and images share files and names, and so one lock. A thread may take it several times, and must
    take no second dataset's meanwhile.
    """
    with _guard:
        return _locks.setdefault(folder, threading.RLock())
