"""What each phase and each step of a run takes on the stub: launches, synchronizations, copies and memory."""

import collections
import functools
import importlib
import itertools
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import counters
import torch
from card import GIB

HERE = Path(__file__).parent
PHASES = (  # (module, function or class.method, what it is called here), in the order of a run
    ("training.setup", "load_sdxl", "load"),
    ("data.class_images", "generate_missing", "class images"),
    ("training.validation_images", "embed_prompts", "embed prompts"),
    ("training.encode_dataset", "plan_batches", "encode images"),
    ("training.encode_dataset", "encode_captions", "encode captions"),
    ("training.validation_images", "Previews.generate", "previews"),
    ("training.train", "allocate", "gradient pass"),
    ("training.train", "forecast_run", "forecast"),
    ("training.train", "export", "export"),
)
STEPS = "training.loop", "run_steps"  # a generator that yields after each step
CHECKPOINT = "training.loop", "checkpoints"  # a module with save()


class Peaks:
    """Peaks of a phase and of the whole process: torch counts one of them at a time.

    The package sees the process's own, as without this class.
    """

    def __init__(self):
        self.allocated = torch.cuda.max_memory_allocated
        self.reserved = torch.cuda.max_memory_reserved
        self.forget = torch.cuda.reset_peak_memory_stats
        self.before = 0
        torch.accelerator.max_memory_allocated = self.whole
        torch.accelerator.reset_peak_memory_stats = self.forget_whole

    def whole(self, device=None) -> int:
        return max(self.before, self.allocated())

    def forget_whole(self, device=None) -> None:
        self.before = 0
        self.forget()

    def begin_phase(self) -> None:
        self.before = self.whole()
        self.forget()


class Recorder:
    """A line for each phase and step, in the order in which they end."""

    def __init__(self, printing: bool = True, where: bool = False):
        self.printing, self.where = printing, where
        self.at_once = True  # each step is read at once, so that none begins within the line of another
        self.peaks = Peaks()
        self.lines = []
        self.kernels = collections.Counter()  # of the last step
        self.sites = collections.Counter()  # of the last step: {file:line: synchronizations}

    def begin(self) -> tuple[float, float]:
        counters.reset()
        self.peaks.begin_phase()
        return time.process_time(), time.monotonic()

    def end(self, phase: str, began: tuple[float, float], failed: bool = False) -> None:
        """Record what happened since begin()."""
        cpu, seconds = time.process_time() - began[0], time.monotonic() - began[1]
        report = counters.report()
        line = dict(
            phase=phase,
            failed=failed,
            host_cpu=round(cpu, 3),
            seconds=round(seconds, 3),
            launches=report.launches,
            products=report.counters["products"],
            syncs=report.syncs,
            copies=report.copies,
            allocated=torch.cuda.memory_allocated() / GIB,
            peak=self.peaks.allocated() / GIB,
            reserved=torch.cuda.memory_reserved() / GIB,
            peak_reserved=self.peaks.reserved() / GIB,
            counters=report.counters,
        )
        self.lines.append(line)
        if self.printing:
            print(text_of(line), flush=True)

    def wrap(self, function, phase: str):
        """The function, recorded as a phase."""

        @functools.wraps(function)
        def recorded(*values, **options):
            began = self.begin()
            failed = True
            try:
                result = function(*values, **options)
                failed = False
                return result
            finally:
                self.end(phase, began, failed)

        return recorded

    def wrap_steps(self, function):
        """The generator of steps, each recorded; what its consumer does between two steps is not."""

        @functools.wraps(function)
        def recorded(*values, **options) -> Iterator:
            needed = dict(state_needed=lambda step: True) if self.at_once else {}
            steps = function(*values, **options | needed)
            for number in itertools.count(1):
                began = self.begin()
                try:
                    item = self.next_step(steps)
                except BaseException:
                    self.end(f"step {number}", began, failed=True)
                    raise
                if item is None:
                    return
                self.end(f"step {number}", began)
                self.kernels = counters.launches_by_name()
                yield item

        return recorded

    def next_step(self, steps: Iterator):
        """The next item, or None; `where` counts the lines of the package that synchronize."""
        if not self.where:
            return next(steps, None)
        sites = collections.Counter()

        def note_site(message, *place, **more) -> None:
            if "synchronizing CUDA operation" in str(message):
                sites[site_of(traceback.extract_stack())] += 1

        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note_site
            item = next(steps, None)
        torch.cuda.set_sync_debug_mode("default")
        if item is not None:
            self.sites = sites
        return item

    def install(self, files: bool = True) -> None:
        """Record the package's phases; without `files` no checkpoint and no export is written."""
        for module, function, phase in PHASES:
            replace(module, function, functools.partial(self.wrap, phase=phase))
        replace(*STEPS, self.wrap_steps)
        if not files:
            importlib.import_module(f"gralora_diffusion.{CHECKPOINT[0]}").checkpoints.save = nothing
            for name in ("export", "write_report"):
                replace("training.train", name, lambda function: nothing)


def nothing(*values, **options) -> None:
    """In place of what writes files."""


def replace(module: str, name: str, change) -> None:
    """Replace a function or method of the package by change(it)."""
    owner = importlib.import_module(f"gralora_diffusion.{module}")
    *classes, last = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    setattr(owner, last, change(getattr(owner, last)))


def text_of(line: dict) -> str:
    """A line for the terminal."""
    failed = "  FAILED" if line["failed"] else ""
    memory = f"peak {line['peak']:6.2f}, reserved {line['peak_reserved']:6.2f}, then {line['allocated']:6.2f}"
    counts = f"launches {line['launches']:>7,} syncs {line['syncs']:>6,} copies {line['copies']:>6,}"
    return f"{line['phase']:<16} {counts}  {memory} GiB  host {line['host_cpu']:6.2f} s{failed}"


def named(lines: list[dict], phase: str) -> list[dict]:
    """The lines of a phase; "step" means all steps."""
    return [line for line in lines if line["phase"] == phase or line["phase"].startswith(f"{phase} ")]


def site_of(stack: traceback.StackSummary) -> str:
    """The innermost line of the package, and behind it the innermost of other code that is not the stub's."""
    own = [frame for frame in stack if "/gralora_diffusion/" in frame.filename]
    hidden = (str(HERE), warnings.__file__)
    others = [frame for frame in stack if not frame.filename.startswith(hidden)]
    found = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (own[-1:] + others[-1:])]
    return " ".join(dict.fromkeys(found))


def sites_text(sites: collections.Counter) -> list[str]:
    """Where a step waits for the device, the most frequent place first."""
    return [f"{times:>6} {site}" for site, times in sites.most_common()]
