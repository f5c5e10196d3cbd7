"""The run folder: who may write to it, and what it records; choose_run.py finds the one of a command.

status.json holds the run's state: starting, running, stopped, failed or done. A run that is "running" while
no process holds its lock was killed. metrics.jsonl has a line for each step, evaluations.jsonl one for each
evaluation.
"""

import contextlib
import dataclasses
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import without_folders, write_text
from gralora_diffusion.options import PATHS, ConfigError, options_of, to_dict
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.time_left import is_duration

LOCK = ".lock"
EVALUATIONS = "evaluations.jsonl"


class Run:
    """A run folder that this process writes to; raises ConfigError while another one does."""

    def __init__(self, path: Path, began: float | None = None):
        """began: time.monotonic() when the command started; by default now."""
        path.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic() if began is None else began
        self.earlier = 0.0  # seconds that the commands before this one took
        self.before: dict = {}  # status.json as they left it
        self.ended: float | None = None  # seconds that the whole run took, once it is complete
        self.step = 0  # the last that is in metrics.jsonl
        self.path = path
        self.lock = FileLock(path / LOCK)
        self.recorded: dict = {}  # the content of status.json
        try:
            self.lock.acquire(timeout=2, poll_interval=0.05)  # other processes take it for a moment in busy()
        except Timeout:
            raise ConfigError(who_writes(path), option="output_dir") from None
        checkpoints.sweep(path)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.lock.release()

    def begin(self, config: TrainConfig, facts: dict, step: int) -> None:
        """Write config.json and environment.json, to reproduce the run, and end metrics.jsonl at `step`."""
        public = to_dict(dataclasses.replace(config, hub_token=None))
        if is_older(self.path):
            del public["max_token_length"]  # so that the same command resumes it again
        write_text(self.path / "config.json", json.dumps(public, indent=2) + "\n")
        write_text(self.path / "environment.json", json.dumps(environment() | facts, indent=2) + "\n")
        self.before, lines = recorded_status(self.path), self.metrics()
        self.earlier = wall_seconds(self.before, lines) or steps_seconds(lines)
        self.step = step
        kept = [line for line in lines if line["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def status(self, state: str, **facts) -> None:
        """Write status.json: the state, and every fact given since the run started.

        seconds: the wall time of the run, resumes summed.
        """
        now = dict(state=state, pid=os.getpid(), time=round(time.time(), 3))
        self.recorded |= now | dict(seconds=round(self.seconds(), 3)) | facts
        write_text(self.path / "status.json", json.dumps(self.recorded) + "\n")

    def doing(self, what: str, **facts) -> None:
        """Write into status.json what the run does when it is not at a step; "" while it makes steps.

        Without room on the disk it is left out: the run itself decides what it cannot do without.
        """
        with contextlib.suppress(OSError):
            self.status(self.recorded["state"], doing=what, step=self.step, **facts)

    def seconds(self) -> float:
        """The wall time of the run until now, or until end(): from the start of each command to its end."""
        if self.ended is not None:
            return self.ended
        return self.earlier + time.monotonic() - self.began

    def end(self) -> float:
        """The wall time of the whole run, which stays from now on."""
        self.ended = self.seconds()
        return self.ended

    def log(self, line: dict) -> None:
        self.step = line["step"]
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict]:
        return read_metrics(self.path)


def public_options(values: dict) -> dict:
    """The options of a config as files show them: a path is its last component, and there is no token.

    values: {option: value} as in config.json.
    """
    known = options_of(TrainConfig)
    shown = {}
    for name, value in values.items():
        kind = known[name].kind if name in known else "value"
        if kind == "secret":
            continue
        is_path = kind in PATHS or name == "resume_from_checkpoint"
        if kind == "encoders" and isinstance(value, str):
            value = ",".join(map(public_encoder, value.split(",")))
        shown[name] = without_folders(value) if is_path and isinstance(value, str) else value
    return shown


def public_encoder(name: str) -> str:
    """An encoder's name, of whose file or folder only the last component is shown: clip:MODEL:FILE."""
    kind, colon, which = name.rpartition(":")
    return f"{kind}{colon}{without_folders(which)}" if colon else name


def read_metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl that have a time, without a last one that a kill has cut off."""
    return [line for line in read_lines(run / "metrics.jsonl") if is_duration(line.get("seconds"))]


def read_evaluations(run: Path) -> list[dict]:
    """The lines of evaluations.jsonl; [] for a run without evaluations."""
    return read_lines(run / EVALUATIONS)


def read_lines(path: Path) -> list[dict]:
    """The lines of a file that a run writes, up to one that is cut off or no object with a step.

    [] where the file does not exist.
    """
    lines = []
    if path.exists():
        for text in path.read_text(errors="replace").split("\n"):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                break
            if not isinstance(line, dict) or not is_duration(line.get("step")):
                break
            lines.append(line)
    return lines


def recorded_status(run: Path) -> dict:
    """status.json as the run wrote it last; the state "unknown" where it cannot be read."""
    try:
        status = json.loads((run / "status.json").read_text())
    except (OSError, ValueError, RecursionError):
        status = None
    has_state = isinstance(status, dict) and isinstance(status.get("state"), str)
    return status if has_state else dict(state="unknown")


def wall_seconds(status: dict, lines: list[dict]) -> float | None:
    """The wall time of a run that has ended, resumes summed; None for a run of an earlier version.

    A run that was killed took the steps after its last status too.

    lines: of metrics.jsonl, with numbers.
    """
    seconds, step = status.get("seconds"), status.get("step")
    if not is_duration(seconds):
        return None
    if status.get("state") in ("starting", "running", "stopping", "killed") and is_duration(step):
        seconds += steps_seconds([line for line in lines if line["step"] > step])
    return seconds


def steps_seconds(lines: list[dict]) -> float:
    """What the steps alone took."""
    return sum(line["seconds"] for line in lines)


def read_status(run: Path) -> dict:
    """recorded_status(), with the state "killed" for a run that is "running" and whose lock is free."""
    status = recorded_status(run)
    if status["state"] in ("starting", "running") and not busy(run):
        status["state"] = "killed"
    return status


def busy(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    if not (run / LOCK).exists():
        return False
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0.3, poll_interval=0.02)  # longer than busy() takes in another process
    except Timeout:
        return True
    lock.release()
    return False


def who_writes(run: Path) -> str:
    """The sentence for a folder whose lock another process holds."""
    process = recorded_status(run).get("pid")
    who = f" (process {process})" if isinstance(process, int) else ""
    return f"{run} is being written by another run{who}: wait for it, stop it, or choose another --output_dir"


def is_older(run: Path) -> bool:
    """Whether a run was started before --max_token_length."""
    try:
        return "max_token_length" not in json.loads((run / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def environment() -> dict:
    """Versions of what the numbers depend on."""
    packages = ("gralora-diffusion", "torch", "diffusers", "transformers", "accelerate")
    versions = {name: version(name) for name in packages}
    return versions | dict(python=platform.python_version(), machine=platform.machine())
