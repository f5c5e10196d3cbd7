"""Runs as processes: start, queue, stop, resume, and the true state of each.

A run's folder holds job.json (the config that was asked for, when, which process) and log.txt beside what the
trainer writes.  A run is queued when its job.json has that state.  This process keeps only the handles of its
children and the tokens of queued runs, so that it may be killed at any time.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, from_dict, to_dict
from gralora_diffusion.training.checkpoint import candidates
from gralora_diffusion.training.run_folder import read_status
from gralora_diffusion.ui.config_form import arguments
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.processes import birth_of, end_group, end_process, is_alive
from gralora_diffusion.ui.run_files import WORDS, config_of, final_message, raw_status, read_job
from gralora_diffusion.ui.workspace import Workspace

TRAIN = (sys.executable, "-P", "-m", "gralora_diffusion", "train")  # -P: no module of the workspace
GRACE = 120.0  # seconds that a stopping run has to finish its step and save
ACTIVE = ("starting", "running", "stopping")
NOT_STARTED = ("queued", "canceled", "withdrawn", "broken")  # states in job.json


class RunQueue:
    """Starts one run at a time, each as a process that outlives this one."""

    def __init__(self, workspace: Workspace, before_start: Callable[[], None] = lambda: None):
        self.workspace = workspace
        self.before_start = before_start
        self.lock = changing(workspace.runs)
        self.children: dict[str, subprocess.Popen] = {}
        self.tokens: dict[str, str] = {}  # of queued runs; never on disk

    def add(self, name: str, config: TrainConfig, token: str | None = None) -> str:
        """Make the run's folder and put it in the queue; raises ConfigError when the name is taken."""
        with self.lock:
            run = self.workspace.runs / name
            try:
                run.mkdir()
            except FileExistsError:
                advice = "resume it under Watch, or choose another name"
                raise ConfigError(f"a run named {name} already exists: {advice}") from None
            if token:
                self.tokens[name] = token
            write_job(run, dict(state="queued", config=to_dict(config), created=time.time()))
            return self.start_next()

    def resume(self, name: str) -> str:
        """Queue a run that ended early again, with its own config."""
        with self.lock:
            run = self.workspace.run(name)
            state = self.state(run)["state"]
            if state in (*ACTIVE, "queued", "done"):
                raise ConfigError(f"{name} is {state}: there is nothing to resume")
            write_job(run, dict(state="queued", config=to_dict(config_of(run)), created=time.time()))
            return self.start_next()

    def start_next(self) -> str:
        """Start the oldest queued run unless a run is active; returns a message about it."""
        with self.lock:
            runs = [self.workspace.runs / name for name in self.workspace.run_names()]
            states = {run: self.state(run)["state"] for run in runs}
            active = [run.name for run in runs if states[run] in ACTIVE]
            queued = [run for run in runs if states[run] == "queued"]
            if active and queued:
                return f"{len(queued)} in the queue, after {active[0]}"
            if not queued:
                return ""
            run = min(queued, key=lambda run: (read_job(run)["created"], run.name))
            try:
                self.start(run)
            except (ConfigError, OSError, TypeError) as error:  # a job.json of another program, no memory
                write_job(run, read_job(run) | dict(state="broken", message=str(error)))
                return f"{run.name} cannot be started: {error}"
            return f"{run.name} is starting"

    def start(self, run: Path) -> None:
        job = read_job(run)
        env = os.environ | {"TQDM_MININTERVAL": "5", "PYTHONUNBUFFERED": "1"}
        if token := self.tokens.pop(run.name, None):
            env["HF_TOKEN"] = token
        self.before_start()
        config = from_dict(TrainConfig, job["config"] | dict(output_dir=f"runs/{run.name}"))
        child = start_trainer(config, self.workspace.root, run / "log.txt", env)
        self.children[run.name] = child
        process = dict(pid=child.pid, born=birth_of(child.pid), started=time.time())
        write_job(run, job | dict(state="started", **process))

    def stop(self, name: str) -> str:
        """Ask a run to finish its step, save and end, or take it out of the queue; idempotent."""
        with self.lock:
            run = self.workspace.run(name)
            job = read_job(run)
            status = self.state(run)
            if status["state"] == "queued":
                write_job(run, job | dict(state="canceled"))
                return f"{name} was removed from the queue"
            if status["state"] == "stopping":
                return f"{name} is already stopping after this step"
            if status["state"] not in ACTIVE:
                return f"{name} is not active: its state is {WORDS.get(status['state'], status['state'])}"
            if is_active(job):
                end_group(job["pid"])
            else:  # started on the command line: the process that holds the folder's lock wrote status.json
                end_process(status["pid"])
            if job.get("state") == "queued":  # or it would start again as soon as it has ended
                job["state"] = "canceled"
            write_job(run, job | dict(stop_asked=time.time(), stop_pid=status.get("pid") or job["pid"]))
            return f"Stopping {name} after this step; progress will be saved"

    def queued(self) -> list[str]:
        """The runs that wait, the next one first."""
        return queued_runs(self)

    def move(self, name: str, places: int) -> str:
        """Let a queued run start so many places later, or earlier below zero, as far as there are places."""
        with self.lock:
            self.workspace.run(name)
            names = self.queued()
            if name not in names:
                raise ConfigError(f"{name} is not in the queue")
            place = min(max(names.index(name) + places, 0), len(names) - 1)
            jobs = {other: read_job(self.workspace.runs / other) for other in names}
            times = sorted(job["created"] for job in jobs.values())
            names.remove(name)
            names.insert(place, name)
            for other, created in zip(names, times, strict=True):
                if jobs[other]["created"] != created:
                    write_job(self.workspace.runs / other, jobs[other] | dict(created=created))
            return f"{name} is number {place + 1} of {len(names)} in the queue"

    def stop_active(self) -> str:
        """stop() for the run that is active."""
        name = self.current()
        if name is None or self.state(self.workspace.runs / name)["state"] not in ACTIVE:
            return "no run is active"
        return self.stop(name)

    def current(self) -> str | None:
        """The run that is active, or else the newest."""
        return current_run(self)

    def state(self, run: Path) -> dict:
        """state_of() of a run."""
        return state_of(run)

    def watch(self) -> None:
        """Run tend() twice a second, until the process ends; to be called in a thread."""
        previous = ""
        while True:
            time.sleep(0.5)
            try:
                self.tend()
            except Exception as error:  # a folder that is deleted meanwhile must not end the queue
                message = f"queue: {type(error).__name__}: {error}"
                if message != previous:
                    print(message, file=sys.stderr)
                previous = message

    def tend(self) -> None:
        """Reap children that ended, kill runs that did not stop in time, start what is queued."""
        with self.lock:
            for name, child in list(self.children.items()):
                if child.poll() is not None:
                    del self.children[name]
            for name in self.workspace.run_names():
                job = read_job(self.workspace.runs / name)
                if job.get("stop_asked", time.time()) < time.time() - GRACE and is_active(job):
                    end_group(job["pid"], at_once=True)
            self.start_next()


def queued_runs(runs) -> list[str]:
    """The runs that wait, the next one first; runs: has a workspace and the state() of each."""
    found = []
    for name in runs.workspace.run_names():
        run = runs.workspace.runs / name
        job = read_job(run)
        if job.get("state") == "queued" and runs.state(run)["state"] == "queued":
            found.append((job["created"], name))
    return [name for _, name in sorted(found)]


def current_run(runs) -> str | None:
    """The run that is active, or else the newest; runs: has a workspace and the state() of each."""
    names = runs.workspace.run_names()
    for name in names:
        if runs.state(runs.workspace.runs / name)["state"] in ACTIVE:
            return name
    return names[0] if names else None


def start_trainer(config: TrainConfig, folder: Path, log: Path, env: dict | None = None) -> subprocess.Popen:
    """The trainer as a process in its own session, so that it outlives the page, with its output in a log."""
    command = [*TRAIN, *arguments(config)]
    with open(log, "ab") as file:
        output = dict(stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **output)


def write_job(run: Path, job: dict) -> None:
    write_text(run / "job.json", json.dumps(job, indent=2) + "\n")


def state_of(run: Path) -> dict:
    """What status.json holds, corrected by whether the process is there: {"state", "message", ...}.

    The states: queued, canceled, starting, running, stopping, stopped, done, failed, killed, unknown.
    """
    job = read_job(run)
    if job.get("state") in NOT_STARTED and (status := state_outside(run, job)) is not None:
        return status
    if job.get("state") in ("queued", "canceled", "withdrawn"):
        return dict(state=job["state"], message="")
    if job.get("state") == "broken":
        return dict(state="failed", message=f"it cannot be started: {job.get('message')}")
    return active_state(run, job) if is_active(job) else ended_state(run, job)


def is_active(job: dict) -> bool:
    """Whether the process that was started for this job is still there."""
    return "pid" in job and is_alive(job["pid"], job.get("born"))


def active_state(run: Path, job: dict) -> dict:
    """The state of a run whose process is there."""
    status = raw_status(run)
    if status.get("time", 0) < job["started"]:  # what an earlier process wrote
        status = {name: status[name] for name in ("step", "steps") if name in status}
        status |= dict(state="starting", message="")
    if job.get("stop_asked") and status["state"] in ACTIVE:
        status["state"] = "stopping"
    return status


def state_outside(run: Path, job: dict) -> dict | None:
    """The state of a run in NOT_STARTED that its command trains, or has trained since; None where neither."""
    raw = raw_status(run)
    if not raw:
        return None
    status = ended_state(run, job)
    ended = job["state"] != "queued" and raw["time"] > job["created"]
    return status if ended or status["state"] in ACTIVE else None


def ended_state(run: Path, job: dict) -> dict:
    """The state of a run that this page did not start, or whose process has ended."""
    status = read_status(run) if raw_status(run) else dict(state="unknown")
    if job.get("state") == "started" and status.get("time", 0) < job["started"]:  # it wrote no status
        if job.get("stop_asked"):
            return dict(state="stopped", message="stopped before its first step")
        return dict(state="failed", message=final_message(run))
    if status["state"] == "unknown" and (run / "adapter.safetensors").is_file():
        return dict(state="done", message="")
    if status["state"] in ACTIVE and job.get("stop_pid") == status.get("pid"):
        status["state"] = "stopping"
    if status["state"] == "killed":
        step = max(candidates(run), default=0)
        what = f"continues from checkpoint-{step}" if step else "starts at the first step"
        status["message"] = f"its process was killed; Resume {what}"
    return status
