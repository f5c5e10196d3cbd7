"""The time that a run still takes: its steps at their recent speed, and all else as it was measured last.

The trainer writes Costs into status.json, so that its log and the page compute the same number.
"""

import math
from dataclasses import asdict, dataclass, fields

RECENT = 20  # the last steps, whose mean is the speed
MOST_STEPS = 10**9


@dataclass(frozen=True)
class Costs:
    """Seconds of each thing that a run does, as measured last, and every how many steps it does it."""

    step: float = 0.0  # of the batches that were tried before the first step
    images: float = 0.0  # of all sample images of a step
    evaluation: float = 0.0
    checkpoint: float = 0.0
    export: float = 0.0  # of the adapter, after all else
    preparation: float = 0.0  # until the first step, without the sample images and evaluation of step 0
    look_every: tuple[int, ...] = ()  # steps between sample images and evaluations, beside those of the end
    save_every: int = MOST_STEPS

    def to_json(self) -> dict:
        return asdict(self)


def costs_from_json(values) -> Costs | None:
    """The costs in a status.json, which anybody may have written; None where they are not of to_json()."""
    if not isinstance(values, dict):
        return None
    found = {}
    for field in fields(Costs):
        value = values.get(field.name, 0.0 if field.name == "export" else None)  # earlier versions lack it
        if field.name == "look_every":
            if not isinstance(value, list | tuple) or len(value) > 2 or not all(map(is_interval, value)):
                return None
            value = tuple(value)
        elif field.name == "save_every":
            if not is_interval(value):
                return None
        elif not is_duration(value):
            return None
        found[field.name] = value
    return Costs(**found)


def is_interval(value) -> bool:
    return type(value) is int and 0 < value <= MOST_STEPS


def is_duration(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def times_due(intervals: tuple[int, ...], after: int, last: int) -> int:
    """How many of the steps after + 1, ..., last are a multiple of one of at most two intervals."""
    if last <= after:
        return 0
    found = sum(last // n - after // n for n in intervals)
    if len(intervals) == 2:
        both = math.lcm(*intervals)
        found -= last // both - after // both
    return found


def looks_left(costs: Costs, looked: int, steps: int) -> int:
    """How often sample images are still generated; looked: the step of the last ones."""
    return times_due(costs.look_every, looked, steps - 1) + (looked < steps)


def saves_left(every: int, step: int, steps: int) -> int:
    """How many checkpoints a run at `step` still writes: at each multiple of `every`, and at the end."""
    return times_due((every,), step, steps) + (step < steps and steps % every > 0)


def recent_speed(seconds: list[float]) -> float | None:
    """Mean seconds of a step, from those of all steps; None without steps."""
    recent = seconds[-RECENT:]
    return sum(recent) / len(recent) if recent else None


def seconds_left(
    costs: Costs, step: int, steps: int, speed: float | None, looked: int, share: float = 0.0
) -> float:
    """Seconds that a run at `step` of `steps` still takes.

    speed: seconds of a step, or None before the first; looked: the step of the last sample images;
    share: how much of the next ones is done, from 0 to 1.
    """
    seconds = (steps - step) * (costs.step if speed is None else speed)
    seconds += saves_left(costs.save_every, step, steps) * costs.checkpoint
    looks = looks_left(costs, looked, steps)
    if looks:
        seconds += looks * (costs.images + costs.evaluation) - share * costs.images
    return max(0.0, seconds + costs.export)
