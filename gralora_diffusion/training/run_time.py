"""What a run does at the moment and how long it still takes: in status.json, and beside its progress bar."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from gralora_diffusion.console import clock_time, duration, speed_text
from gralora_diffusion.training.run_folder import Run, steps_seconds
from gralora_diffusion.training.time_left import RECENT, Costs, recent_speed, seconds_left


class RunTime:
    """The costs of a run, measured again with each series of sample images and each evaluation.

    run: None in all processes but the first, which write nothing.
    """

    def __init__(self, run: Run | None, steps: int):
        self.run, self.steps = run, steps
        self.costs = Costs()
        self.looked = run.step if run else 0  # the step of the last sample images
        self.exporting = 0.0  # time.monotonic() when the export started
        self.recent = deque(maxlen=RECENT)  # seconds of the last steps
        if run:
            self.recent.extend(line["seconds"] for line in run.metrics()[-RECENT:])

    def doing(self, doing: str, **facts) -> None:
        if self.run:
            self.run.doing(doing, **facts)

    def images(self, done: int, total: int) -> None:
        """So many of the sample images of a step are done."""
        self.doing(f"sample image {done + 1} of {total}", share=done / total)

    def begin(self, costs: Costs, before: Costs | None) -> None:
        """The costs as they are known before the first step; before: those of the run that is resumed."""
        preparation = self.run.seconds() - self.run.earlier - costs.images - costs.evaluation
        if self.run.step:  # the seconds are those of all parts of the run
            preparation = before.preparation if before else 0.0
        self.costs = replace(costs, preparation=max(0.0, preparation))

    def facts(self) -> dict:
        """What status.json has of it beside what the run is doing."""
        return dict(doing="", share=0.0, looked=self.looked, costs=self.costs.to_json())

    def look_ended(self, step: int, previews, evaluations) -> None:
        """The sample images of a step and its evaluation are done: the next ones will take as long."""
        self.looked = step
        if previews:
            self.costs = replace(self.costs, images=previews.seconds)
        if evaluations:
            self.costs = replace(self.costs, evaluation=evaluations.seconds)
        self.doing(**self.facts())

    def start_export(self) -> None:
        self.exporting = time.monotonic()
        self.doing("exporting")

    def export_ended(self) -> None:
        """The next run that does the same work will take as long for its export."""
        self.costs = replace(self.costs, export=time.monotonic() - self.exporting)

    def add_step(self, step: int, seconds: float) -> str:
        """What the progress bar shows after a step that took so many seconds; "" without a run folder."""
        if self.run is None:
            return ""
        self.recent.append(seconds)
        left = seconds_left(self.costs, step, self.steps, self.speed(), self.looked)
        return f"{self.elapsed()}, {clock_time(left)} left, {speed_text(self.speed())}"

    def after_steps(self) -> str:
        """What the progress bar still shows when no step follows, which may be for good: no time left."""
        return f"{self.elapsed()}, {speed_text(self.speed())}" if self.run else ""

    def speed(self) -> float | None:
        return recent_speed(list(self.recent))

    def elapsed(self) -> str:
        return f"{clock_time(self.run.seconds())} elapsed"


def time_text(seconds: float, lines: list[dict]) -> str:
    """13 min 34 s, of which the steps took 4 min 46 s; lines: of metrics.jsonl."""
    return f"{duration(seconds)}, of which the steps took {duration(steps_seconds(lines))}"


def counter(total: int, report: Callable[[int, int], object]) -> Callable[[float], None]:
    """A callback for parts of images that calls report(images done, total), first with 0, for each image."""
    done = 0.0
    report(0, total)

    def add(images: float) -> None:
        nonlocal done
        before = math.floor(done + 1e-6)
        done += images
        now = math.floor(done + 1e-6)
        if before < now < total:
            report(now, total)

    return add
