"""The run folder: which one a command means, who may write to it, and what it tells of itself.

status.json says whether the run is starting, running, stopped, failed or done; metrics.jsonl has a line for each step.  A run whose status is
"running" while nobody holds its lock was killed.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, from_dict, options_of, to_dict, to_flat
from gralora_diffusion.training import checkpoint as checkpoints

LOCK = ".lock"


class Run:
    """A run folder that this process writes to; raises ConfigError while another one does."""

    def __init__(self, path: Path):
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.lock, self.told = path, FileLock(path / LOCK), {}
        try:
            self.lock.acquire(timeout=2, poll_interval=0.05)  # others may be looking whether it is free
        except Timeout:
            raise ConfigError(who_writes(path)) from None
        checkpoints.sweep(path)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.lock.release()

    def begin(self, config: TrainConfig, facts: dict, step: int) -> None:
        """config.json and environment.json, what is needed to do the same again; metrics.jsonl ends at `step`."""
        write_text(
            self.path / "config.json",
            json.dumps(to_dict(dataclasses.replace(config, hub_token=None)), indent=2) + "\n",
        )
        write_text(self.path / "environment.json", json.dumps(environment() | facts, indent=2) + "\n")
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def status(self, state: str, **facts) -> None:
        """status.json: the state, and every fact that was told since the run began."""
        self.told |= dict(state=state, pid=os.getpid(), time=round(time.time(), 3)) | facts
        write_text(self.path / "status.json", json.dumps(self.told) + "\n")

    def log(self, line: dict) -> None:
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict]:
        return read_metrics(self.path)


def read_metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl; a last one that a kill cut off is left out."""
    lines = []
    if (run / "metrics.jsonl").exists():
        for text in (run / "metrics.jsonl").read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def read_status(run: Path) -> dict:
    """status.json as it is true now: a run that says it is at work, and whose lock nobody holds, is "killed"."""
    try:
        status = json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return dict(state="unknown")
    return (
        status | dict(state="killed")
        if status["state"] in ("starting", "running") and not busy(run)
        else status
    )


def busy(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    if not (run / LOCK).exists():
        return False
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0.3, poll_interval=0.02)  # longer than another one's look takes
    except Timeout:
        return True
    lock.release()
    return False


def who_writes(run: Path) -> str:
    try:
        who = f" (process {json.loads((run / 'status.json').read_text())['pid']})"
    except (OSError, ValueError, KeyError):
        who = ""
    return f"{run} is being written by another run{who}: wait for it, stop it, or choose another --output_dir"


def locate(config: TrainConfig) -> Path:
    """The folder that this command writes to: output_dir, new or with a run of the same config; or else the first of runs/NAME, NAME-2, ...
    that is not there yet or holds such a run unfinished.  Raises ConfigError; writes nothing.
    """
    try:
        if config.output_dir is not None:
            run = Path(config.output_dir)
            if run.exists() and not run.is_dir():
                raise ConfigError(f"{run} is a file: choose another --output_dir")
            if (run / "config.json").exists():
                check_same(run, config, given_only=True)
        else:
            given = config.instance_data_dir or config.dataset_name
            subject = "robot" if given is None else Path(given).resolve().name
            name = f"{subject}-{config.adapter_name}-r{config.adapter.rank}"
            names = (name if n == 1 else f"{name}-{n}" for n in range(1, 10**6))
            run = next(
                path
                for name in names
                if not (path := Path("runs") / name).exists() or resumable(path, config)
            )
        nearest = next(p for p in (run, *run.absolute().parents) if p.exists())
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--output_dir cannot be used: {error}") from None
    if not nearest.is_dir() or not os.access(
        nearest, os.W_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        raise ConfigError(f"{run} cannot be written: {nearest} is a file, or there is no permission")
    if busy(run):
        raise ConfigError(who_writes(run))
    return run


def resumable(run: Path, config: TrainConfig) -> bool:
    """Whether the folder holds an unfinished run of this config."""
    try:
        check_same(run, config, given_only=True)
    except ConfigError:
        return False
    return read_status(run)["state"] != "done"


def check_same(run: Path, config: TrainConfig, given_only: bool = False) -> None:
    """Raises ConfigError, with the differences, unless run/config.json is the same but for options that may change on the way.

    given_only: what `config` leaves open (None) is not compared.
    """
    try:
        saved = from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{run} holds a config.json that cannot be read ({error}): choose another --output_dir"
        ) from None
    if changed := list(differences(saved, config, given_only)):
        raise ConfigError(
            f"{run} was begun with {'; '.join(changed)}: give the same options to go on, or choose another --output_dir"
        )


def differences(saved: TrainConfig, config: TrainConfig, given_only: bool) -> Iterator[str]:
    """What a resumed run must not change, and does."""
    before, now = to_flat(saved), to_flat(config)
    for name, about in options_of(TrainConfig).items():
        changed = before[name] != now[name] and not (given_only and now[name] is None)
        if changed and not about.resumable:
            yield f"{about.flag} {before[name]}, not {now[name]}"


def start_of(run: Path, config: TrainConfig) -> Path | None:
    """The checkpoint to go on from: the one that --resume_from_checkpoint names, or the newest whole one; None to begin at step 0."""
    wanted = config.resume_from_checkpoint
    if wanted in (None, "latest"):
        return checkpoints.newest(run)
    path = run / Path(wanted).name
    if Path(wanted) not in (Path(path.name), path) and Path(wanted).resolve() != path.resolve():
        raise ConfigError(
            f"--resume_from_checkpoint {wanted} is not in {run}: a run goes on from its own checkpoints"
        )
    found = sorted(checkpoints.candidates(run))
    if path.name not in [f"checkpoint-{step}" for step in found]:
        there = ", ".join(f"checkpoint-{step}" for step in found) or "none"
        raise ConfigError(f"--resume_from_checkpoint {wanted} is not there; {run} has: {there}")
    if later := [
        step
        for step in found
        if f"checkpoint-{step}" != path.name and step > int(path.name.rpartition("-")[2])
    ]:
        raise ConfigError(
            f"{run} has later checkpoints than {path.name} (checkpoint-{later[-1]}): move them out of it first, or resume the latest"
        )
    return path


def environment() -> dict:
    packages = ("gralora-diffusion", "torch", "diffusers", "transformers", "accelerate")
    return {name: version(name) for name in packages} | dict(
        python=platform.python_version(), machine=platform.machine()
    )
