"""Locks for changes: one for each dataset, one for all runs, and one for the history of Sample."""

import threading
import weakref
from pathlib import Path

NAMES = threading.Lock()  # while a dataset gets its name; nobody who holds it waits for another lock
_guard = threading.Lock()
_locks: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # only those that are in use


def changing(folder: Path):
    """The lock of a folder: `with changing(folder):` around each change of it.

    folder: a dataset's, that of all runs, or the history's.  Captions and images share files and names, and
    so one lock.  A thread may take it several times, and takes several in this order: one dataset's, that of
    the runs, the history's.
    """
    with _guard:
        return _locks.setdefault(folder, threading.RLock())
