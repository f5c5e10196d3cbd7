"""Runs as processes: start, queue, stop, resume, and what state each one is truly in.

A run's folder holds job.json (what was asked: the config, when, which process) and log.txt beside what the trainer writes.  A queued run is a
folder whose job.json says so; nothing is kept in this process but the handles of its children, so that it may be killed at any time.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, from_dict, to_dict
from gralora_diffusion.training.checkpoint import candidates
from gralora_diffusion.training.run_folder import read_status
from gralora_diffusion.ui.config_form import arguments
from gralora_diffusion.ui.workspace import Workspace, real_file, shown

TRAIN = (sys.executable, "-m", "gralora_diffusion", "train")
GRACE = 120.0  # seconds that a stopping run has to finish its step and save
AT_WORK = ("starting", "running", "stopping")
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")


class RunQueue:
    def __init__(self, home: Workspace, before_start=lambda: None):
        self.home, self.before_start, self.lock = home, before_start, threading.RLock()
        self.children: dict[str, subprocess.Popen] = {}
        self.tokens: dict[str, str] = {}  # of queued runs; never on disk

    def add(self, name: str, config: TrainConfig, token: str | None = None) -> str:
        """Make the run's folder and put it in the queue; raises ConfigError when the name is taken."""
        with self.lock:
            run = self.home.runs / name
            try:
                run.mkdir()
            except FileExistsError:
                raise ConfigError(
                    f"a run named {name} is there already: resume it under Watch, or choose another name"
                ) from None
            if token:
                self.tokens[name] = token
            self.write_job(run, dict(state="queued", config=to_dict(config), created=time.time()))
            return self.turn()

    def resume(self, name: str) -> str:
        """Put a run that ended early in the queue again, with the config that it was begun with."""
        with self.lock:
            run = self.home.run(name)
            state = self.state(run)["state"]
            if state in (*AT_WORK, "queued", "done"):
                raise ConfigError(f"{name} is {state}: there is nothing to resume")
            self.write_job(run, dict(state="queued", config=to_dict(config_of(run)), created=time.time()))
            return self.turn()

    def turn(self) -> str:
        """Start the oldest queued run unless one is at work; says what happened."""
        with self.lock:
            states = {name: self.state(self.home.runs / name)["state"] for name in self.home.run_names()}
            busy = [name for name, state in states.items() if state in AT_WORK]
            queued = sorted(
                (read_job(self.home.runs / name)["created"], name)
                for name, state in states.items()
                if state == "queued"
            )
            if queued and not busy:
                name = queued.pop(0)[1]
                try:
                    self.start(self.home.runs / name)
                except (
                    ConfigError,
                    OSError,
                    TypeError,
                ) as error:  # a job.json that this page did not write, no memory for a process
                    self.write_job(
                        self.home.runs / name,
                        read_job(self.home.runs / name) | dict(state="broken", message=str(error)),
                    )
                    return f"{name} cannot be started: {error}"
                return f"{name} is starting"
            return f"{len(queued)} in the queue, after {busy[0]}" if busy and queued else ""

    def start(self, run: Path) -> None:
        job, env = read_job(run), os.environ | {"TQDM_MININTERVAL": "5", "PYTHONUNBUFFERED": "1"}
        if token := self.tokens.pop(run.name, None):
            env["HF_TOKEN"] = token
        self.before_start()
        config = from_dict(TrainConfig, job["config"] | dict(output_dir=f"runs/{run.name}"))
        with open(run / "log.txt", "ab") as log:
            child = subprocess.Popen(
                [*TRAIN, *arguments(config)], cwd=self.home.root, env=env, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.children[run.name] = child
        self.write_job(
            run,
            job
            | dict(
                state="started",
                pid=child.pid,
                born=psutil.Process(child.pid).create_time(),
                started=time.time(),
            ),
        )

    def stop(self, name: str) -> str:
        """Ask a run to finish its step, save and end; take a queued one out of the queue.  Asking twice is asking once."""
        with self.lock:
            run = self.home.run(name)
            job, now = read_job(run), self.state(run)
            if now["state"] == "queued":
                self.write_job(run, job | dict(state="withdrawn"))
                return f"{name} is out of the queue"
            if now["state"] == "stopping":
                return f"{name} is stopping already: it finishes its step and saves"
            if now["state"] not in AT_WORK:
                return f"{name} is not at work: it is {now['state']}"
            if alive(job):
                os.killpg(job["pid"], signal.SIGTERM)
            else:  # begun on the command line: whoever holds the folder's lock wrote status.json
                os.kill(now["pid"], signal.SIGTERM)
            self.write_job(run, job | dict(stop_asked=time.time(), stop_pid=now.get("pid") or job["pid"]))
            return f"{name} finishes its step and saves"

    def state(self, run: Path) -> dict:
        """What status.json says, made true: {"state", "message", ...}.

        The states: queued, withdrawn, starting, running, stopping, stopped, done, failed, killed, unknown.
        """
        job = read_job(run)
        if job.get("state") in ("queued", "withdrawn"):
            return dict(state=job["state"], message="")
        if job.get("state") == "broken":
            return dict(state="failed", message=f"it cannot be started: {job.get('message')}")
        if alive(job):
            status = raw_status(run)
            own = status.get("time", 0) >= job["started"]
            status = (
                status
                if own
                else {k: v for k, v in status.items() if k in ("step", "steps")}
                | dict(state="starting", message="")
            )
            return (
                status | dict(state="stopping")
                if job.get("stop_asked") and status["state"] in AT_WORK
                else status
            )
        status = read_status(run) if raw_status(run) else dict(state="unknown")
        if (
            job.get("state") == "started" and status.get("time", 0) < job["started"]
        ):  # it ended before it could say anything
            asked = "stopped before it began" if job.get("stop_asked") else ""
            return dict(state="stopped" if asked else "failed", message=asked or last_words(run))
        if status["state"] == "unknown" and (run / "adapter.safetensors").is_file():
            return dict(state="done", message="")
        if status["state"] in AT_WORK and job.get("stop_pid") == status.get("pid"):
            status = status | dict(state="stopping")
        if status["state"] == "killed":
            step = max(candidates(run), default=0)
            status = status | dict(
                message=f"its process was killed; Resume goes on from {f'checkpoint-{step}' if step else 'the beginning'}"
            )
        return status

    def write_job(self, run: Path, job: dict) -> None:
        write_text(run / "job.json", json.dumps(job, indent=2) + "\n")

    def watch(self) -> None:
        """For ever: let children end, start what waits, end what was asked to stop and did not."""
        said = ""
        while True:
            time.sleep(0.5)
            try:
                self.look_after()
            except Exception as error:  # a folder that goes away in between must not end the queue
                if said != (said := f"queue: {type(error).__name__}: {error}"):
                    print(said, file=sys.stderr)

    def look_after(self) -> None:
        with self.lock:
            for name, child in list(self.children.items()):
                if child.poll() is not None:
                    del self.children[name]
            for name in self.home.run_names():
                job = read_job(self.home.runs / name)
                if job.get("stop_asked", time.time()) < time.time() - GRACE and alive(job):
                    os.killpg(job["pid"], signal.SIGKILL)
            self.turn()


def read_job(run: Path) -> dict:
    """job.json, or {} where there is none or it is not what this page writes."""
    job = read_json(run / "job.json")
    numbers = ("created", *(("pid", "born", "started") if job.get("state") == "started" else ()))
    good = isinstance(job.get("config"), dict) and all(isinstance(job.get(n), int | float) for n in numbers)
    return job if good and job.get("state") in ("queued", "withdrawn", "started", "broken") else {}


def raw_status(run: Path) -> dict:
    """status.json as it stands, or {} where there is none or it is not what the trainer writes."""
    status = read_json(run / "status.json")
    good = isinstance(status.get("state"), str) and isinstance(status.get("time"), int | float)
    return status if good else {}


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text()) if real_file(path) else {}
    except (OSError, ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def alive(job: dict) -> bool:
    """Whether the process that was started for this job is still there: the same one, not another with its number."""
    try:
        process = psutil.Process(job["pid"])
        return abs(process.create_time() - job["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def config_of(run: Path) -> TrainConfig:
    """The config that a run was begun with: as it was asked, or as the trainer wrote it."""
    values = read_job(run).get("config")
    try:
        if values is None:
            if not real_file(run / "config.json"):
                raise ConfigError("there is no config.json")
            values = json.loads((run / "config.json").read_text())
        return from_dict(
            TrainConfig, values | dict(hub_token=None, resume_from_checkpoint=None, dry_run=False)
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"the config of {shown(run.name)} cannot be read: {error}") from None


def log_tail(run: Path, lines: int = 30) -> str:
    """The last lines of log.txt without escape sequences, progress bars as their last state."""
    try:
        with open(run / "log.txt", "rb") as file:
            file.seek(max(0, os.path.getsize(run / "log.txt") - 60_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    found = [clean(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    return "\n".join([line for line in found if line.strip()][-lines:])


def clean(line: str) -> str:
    line = "".join(c for c in ESCAPES.sub("", line[:2000]) if c.isprintable() or c == "\t")
    return line if len(line) <= 400 else line[:400] + " ..."


def last_words(run: Path) -> str:
    found = log_tail(run, 1)
    return found.removeprefix("train_sdxl: ") or "it ended without a word"
