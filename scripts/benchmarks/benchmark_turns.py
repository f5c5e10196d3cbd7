"""Timing in turns: what is compared alternates in one process, so that other load slows all alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Bench:
    """Where and how long to measure.

    clock: wall, or cpu, the processor time of this process (with one thread, on a busy machine).
    rounds, seconds: the most for one comparison; there are five rounds at least, unless `rounds` is less.
    """

    device: str = "cpu"
    clock: str = "wall"
    rounds: int = 30
    seconds: float = 20.0

    def now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() if self.clock == "wall" else time.process_time()

    def timed(self, run: Callable[[], object]) -> float:
        before = self.now()
        run()
        return self.now() - before

    def in_turns(
        self, contestants: dict[str, Callable[[], object]], warm_up: int = 2
    ) -> dict[str, list[float]]:
        """{name: seconds of each round}; every round runs all, and starts with another one each time."""
        names = list(contestants)
        times = {name: [] for name in names}
        began = time.monotonic()
        for number in range(-warm_up, self.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                seconds = self.timed(contestants[name])
                if number >= 0:
                    times[name].append(seconds)
            if number >= 4 and time.monotonic() - began > self.seconds:
                break
        return times


def print_profile(title: str, run: Callable[[], object], device: str = "cpu", times: int = 5) -> None:
    """Print torch.profiler's table of several runs, after one that warms up."""
    run()
    with torch.profiler.profile() as profiler:
        for _ in range(times):
            run()
    averages = profiler.key_averages()
    order = f"self_{device}_time_total"
    print(f"\n{title}, {times} times")
    print(averages.table(sort_by=order, row_limit=12, max_name_column_width=40))


def ratio(
    times: dict[str, list[float]], one: str, other: str, without: str | None = None
) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios of `one` to `other`.

    without: its time is subtracted from both.  Rounds in which `other` took no longer than that are left out;
    where more than half of the rounds are, the result is NaN.
    """
    base = times[without] if without else [0.0] * len(times[one])
    extra = [(a - c, b - c) for a, b, c in zip(times[one], times[other], base, strict=True)]
    ratios = [a / b for a, b in extra if b > 0]
    if len(ratios) < max(2, len(extra) / 2):
        return dict(median=float("nan"), low=float("nan"), high=float("nan"))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return dict(median=middle, low=low, high=high)


def ratio_text(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def milliseconds(times: list[float]) -> float:
    return statistics.median(times) * 1e3


def milliseconds_of(times: dict[str, list[float]]) -> dict[str, float]:
    """{name: median in ms}"""
    return {name: milliseconds(t) for name, t in times.items()}
