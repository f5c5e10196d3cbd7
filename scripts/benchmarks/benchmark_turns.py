"""Timing in turns: what is compared runs alternately within one process, so that whatever else the machine does falls on all alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Bench:
    """Where and how long to measure.  clock: wall, or cpu, the time that the processor gave to this process (with one thread, on a busy machine)."""

    device: str = "cpu"
    clock: str = "wall"
    rounds: int = 30
    seconds: float = 20.0  # the most for one comparison; never fewer than five rounds

    def now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() if self.clock == "wall" else time.process_time()

    def in_turns(
        self, contestants: dict[str, Callable[[], object]], warm_up: int = 2
    ) -> dict[str, list[float]]:
        """{name: seconds of each round}; every round runs all, beginning with another one each time."""
        names, times, began = list(contestants), {name: [] for name in contestants}, time.monotonic()
        for number in range(-warm_up, self.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                before = self.now()
                contestants[name]()
                if number >= 0:
                    times[name].append(self.now() - before)
            if number >= 4 and time.monotonic() - began > self.seconds:
                break
        return times


def profiled(title: str, run: Callable[[], object], device: str = "cpu", times: int = 5) -> None:
    """Print torch.profiler's table of so many runs, after one to warm up."""
    run()
    with torch.profiler.profile() as profiler:
        for _ in range(times):
            run()
    print(f"\n{title}, {times} times")
    print(
        profiler.key_averages().table(
            sort_by=f"self_{device}_time_total", row_limit=12, max_name_column_width=40
        )
    )


def ratio(
    times: dict[str, list[float]], one: str, other: str, without: str | None = None
) -> dict[str, float]:
    """How `one` compares with `other`: the median and the quartiles of the rounds' ratios, of what each takes beyond `without` if given.

    Rounds in which `other` seemed no slower than `without` say nothing; where there are more than a few, the result is not a number.
    """
    base = times[without] if without else [0.0] * len(times[one])
    extra = [(a - c, b - c) for a, b, c in zip(times[one], times[other], base, strict=True)]
    told = [a / b for a, b in extra if b > 0]
    if len(told) < max(2, len(extra) / 2):
        return dict(median=float("nan"), low=float("nan"), high=float("nan"))
    low, middle, high = statistics.quantiles(told, n=4)
    return dict(median=middle, low=low, high=high)


def shown(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def milliseconds(times: list[float]) -> float:
    return statistics.median(times) * 1e3
