"""A card whose memory is full while one function runs, so that the first thing it needs is not there."""

import contextlib
import functools
import gc
import importlib
from collections.abc import Iterator

import torch

LARGEST = 2**34  # bytes of the first block that is tried
SMALLEST = 512  # bytes; the allocator hands out multiples of them


@contextlib.contextmanager
def full_card() -> Iterator[None]:
    """Take all memory that is left, in whatever pieces it comes, until the block ends."""
    gc.collect()
    torch.cuda.empty_cache()
    taken = []
    size = LARGEST
    while size >= SMALLEST:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        taken.clear()


@contextlib.contextmanager
def full_during(place: str) -> Iterator[list[int]]:
    """Fill the card during one call; place is "module:function@number", the first call has the number 1.

    Gives the numbers of the calls that found a full card: [number], or [] if it was never called so often.
    """
    path, _, number = place.partition("@")
    module, _, name = path.partition(":")
    owner = importlib.import_module(module)
    *classes, last = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = getattr(owner, last)
    calls = 0
    met = []

    @functools.wraps(function)
    def counted(*values, **options):
        nonlocal calls
        calls += 1
        if calls != int(number):
            return function(*values, **options)
        met.append(calls)
        with full_card():
            return function(*values, **options)

    setattr(owner, last, counted)
    try:
        yield met
    finally:
        setattr(owner, last, function)
