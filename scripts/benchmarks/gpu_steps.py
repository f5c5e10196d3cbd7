"""gpu.sh's section of training steps: ours beside PEFT's and those of diffusers' script."""

import contextlib
import statistics
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

import torch
from gpu_base import GIB, Sizes, gib, half_precision
from gpu_contestants import CONTESTANTS, OurSteps, Parts, prepare
from gpu_sections import Clock, release, sentence_of

TOGETHER = 30 * GIB  # a card of so much holds all contestants at once, so that they can take turns
WARM_UP = 3  # steps
FEWEST = 3  # rounds after which the time may end the turns
RESERVE = 0.35  # part of the section's time that is kept for the compiled blocks
REFERENCE = "LoRA"


def run(sizes: Sizes, clock: Clock, add: Callable) -> str:
    parts = prepare(sizes, half_precision())
    turns = torch.cuda.get_device_properties(0).total_memory >= TOGETHER
    release()
    shared = Memory.now()
    timed = clock.part(1 - RESERVE)
    measure_all(parts, shared, timed.part(0.5), add, turns, checkpointing=False)
    measure_all(parts, shared, timed, add, turns, checkpointing=True)
    measure_compiled(parts, shared, clock, add)
    how = "all in turns" if turns else "one after the other, since the card does not hold all at once"
    about = f"{sizes.resolution} px, batch 1, rank {sizes.rank}, k {sizes.k}, {parts.precision}"
    return f"{about}; {how}; peaks are those of a kind alone"


class Memory(NamedTuple):
    """Bytes on the GPU."""

    allocated: int
    reserved: int

    @classmethod
    def now(cls) -> "Memory":
        return cls(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())


class Running:
    """A contestant that has warmed up: its step, its memory as if it were alone, its steps' times."""

    def __init__(self, make: Callable, shared: "Memory"):
        """make() builds it; shared: what the frozen weights take, which it shares with the others."""
        release()
        before = Memory.now()
        torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        self.contestant = make()
        self.times = []
        for _ in range(WARM_UP):
            self.contestant.step()
        torch.cuda.synchronize()
        self.warm_up = time.monotonic() - start
        self.peak = torch.cuda.max_memory_allocated() - before.allocated + shared.allocated
        self.reserved = torch.cuda.max_memory_reserved() - before.reserved + shared.reserved

    def time_step(self) -> None:
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.contestant.step()
        torch.cuda.synchronize()
        self.times.append(time.perf_counter() - start)

    def row(self) -> dict:
        """Median and quartiles of a step, in milliseconds, and memory in GiB."""
        low, median, high = statistics.quantiles([1e3 * t for t in self.times], n=4)
        return {
            "steps/s": 1e3 / median,
            "ms": median,
            "ms, quartiles": f"{low:.1f}-{high:.1f}",
            "steps": len(self.times),
            "peak GiB": gib(self.peak),
            "reserved GiB": gib(self.reserved),
            "warm-up s": round(self.warm_up, 1),
        }


def measure_all(
    parts: Parts, shared: Memory, clock: Clock, add: Callable, turns: bool, checkpointing: bool
) -> None:
    """A row for each contestant, and its time as a ratio to our LoRA's."""
    makers = {}
    for name, make in CONTESTANTS.items():
        makers[name] = lambda make=make: make(parts, checkpointing)
    groups = [list(makers)] if turns else [[name] for name in makers]
    medians = {}
    for number, group in enumerate(groups):
        share = clock.part(1 / (len(groups) - number))
        chosen = {name: makers[name] for name in group}
        found = measure_group(parts, shared, chosen, share, add, dict(checkpointing=checkpointing))
        medians |= {name: row["ms"] for name, row in found.items()}
        reference = medians.get(REFERENCE)
        for name, row in found.items():
            ratio = {f"time / {REFERENCE}'s": row["ms"] / reference} if reference else {}
            add(kind=name, checkpointing=checkpointing, **row, **ratio)


def measure_group(
    parts: Parts, shared: Memory, makers: dict[str, Callable], clock: Clock, add: Callable, facts: dict
) -> dict[str, dict]:
    """{name: row} of contestants that take turns; those that cannot run get a row with the problem."""
    parts.accelerator.free_memory()  # it keeps every optimizer that it prepared
    running = {}
    for name, make in makers.items():
        if clock.left() <= 0:
            add(kind=name, **facts, problem="skipped: no time was left")
            continue
        try:
            running[name] = Running(make, shared)
        except Exception as error:
            traceback.print_exc()
            add(kind=name, **facts, problem=sentence_of(error))
        release()
    names = list(running)
    for number in range(parts.sizes.rounds):
        if number >= FEWEST and clock.left() <= 0:
            break
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            if problem := problem_of(running[name].time_step):
                add(kind=name, **facts, problem=problem)
                names.remove(name)
    return {name: running[name].row() for name in names}


def problem_of(function: Callable[[], None]) -> str | None:
    """What goes wrong, if anything does."""
    try:
        function()
    except Exception as error:
        traceback.print_exc()
        return sentence_of(error)
    return None


def measure_compiled(parts: Parts, shared: Memory, clock: Clock, add: Callable) -> None:
    """GraLoRA with compiled transformer blocks, beside the same without."""
    facts = dict(checkpointing=False)
    if clock.left() <= 0:
        add(kind="GraLoRA, compiled blocks", **facts, problem="skipped: no time was left")
        return
    makers = {
        "GraLoRA, beside the compiled": lambda: OurSteps(parts, "gralora"),
        "GraLoRA, compiled blocks": lambda: OurSteps(parts, "gralora", compiled=True),
    }
    for name, make in makers.items():
        found = measure_group(parts, shared, {name: make}, clock, add, facts)
        for row in found.values():
            add(kind=name, **facts, **row)
    with contextlib.suppress(Exception):
        torch._dynamo.reset()
