"""A sweep on a Ray cluster: a task for each run, which is restarted elsewhere where its process dies.

All machines need the package, and the sweep's folder, images and base at the same paths.
"""

import contextlib
import os
import socket
import time
from pathlib import Path

from gralora_diffusion.console import counted
from gralora_diffusion.experiments.plan import SweepPlan
from gralora_diffusion.experiments.queue import WAIT, claimed, not_done, run_name, stopped
from gralora_diffusion.experiments.results import append_result
from gralora_diffusion.experiments.sweep import runner
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.signals import Interrupts, Stopped

LOCAL = "local"  # in place of an address: a cluster of this machine's processors, for as long as the sweep
RETRIES = 3  # of a run whose process or machine dies
AHEAD = 2  # runs that are claimed for each processor or GPU
READY = {}  # in a worker: {precision: its runner()}


def do_sweep_on_ray(plan: SweepPlan, folder: Path, address: str, mixed_precision: str | None = None) -> None:
    """All runs that are not done, each on one processor, or one GPU where the cluster has them.

    address: HOST:PORT, "auto", or LOCAL.  Other processes may share the runs.  Raises ConfigError without Ray
    or a cluster, and for runs that were given up; Stopped after a signal.
    """
    ray = connected(address)
    try:
        with Interrupts(lambda: None) as interrupts:
            interrupts.patient = True
            Tasks(ray, plan, folder, mixed_precision).do_all(interrupts)
    finally:
        ray.shutdown()


def connected(address: str):
    """The module ray, connected to the cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        problem = "--ray needs the package ray, which is missing"
        raise ConfigError(f"{problem}: pip install 'gralora-diffusion[cluster]'", option="ray") from None
    check_address(address)
    own = dict(include_dashboard=False) if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise no_cluster(address, " ".join(str(error).split()) or type(error).__name__) from None
    return ray


def check_address(address: str) -> None:
    """Raises ConfigError where nobody listens: Ray tries for minutes, and then ends the process."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise no_cluster(address, "an address is HOST:PORT, auto or local")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise no_cluster(address, str(error)) from None


def no_cluster(address: str, reason: str) -> ConfigError:
    return ConfigError(f"--ray {address}: cannot connect to a cluster ({reason})", option="ray")


class Tasks:
    """The runs of a plan as tasks of a cluster, each claimed from its submission until it is recorded."""

    def __init__(self, ray, plan: SweepPlan, folder: Path, mixed_precision: str | None):
        self.ray, self.plan, self.folder = ray, plan, folder
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.room = AHEAD * (gpus or max(1, int(resources.get("CPU", 1))))
        needs = dict(num_cpus=1, num_gpus=1 if gpus else 0)
        task = ray.remote(max_retries=RETRIES, **needs)(do_here)
        shared = ray.put(plan)
        self.submit = lambda run: task.remote(shared, mixed_precision, os.getcwd(), run)
        self.waiting = {}  # {reference: (run, what releases its claim)}
        self.lost = {}  # {name of a run that was given up: why}

    def do_all(self, interrupts: Interrupts) -> None:
        try:
            while left := self.left():
                self.submit_some(left)
                if self.waiting:
                    self.ray.wait(list(self.waiting), timeout=WAIT)
                else:
                    time.sleep(WAIT)  # other processes do the rest
                self.collect()
                if interrupts.asked:
                    progress = stopped(self.folder, self.plan.runs)
                    raise Stopped(f"{progress}; run the same command to resume")
        finally:
            for reference, (_, claim) in self.waiting.items():
                self.ray.cancel(reference, force=True)
                claim.close()
        if self.lost:
            name, reason = next(iter(self.lost.items()))
            given_up = f"{counted(len(self.lost), 'run')} given up after {RETRIES} retries"
            raise ConfigError(f"{given_up}, first {name} ({reason}): run the same command to try again")

    def left(self) -> list[dict]:
        return [run for run in not_done(self.folder, self.plan.runs) if run_name(run) not in self.lost]

    def submit_some(self, left: list[dict]) -> None:
        under_way = [run for run, _ in self.waiting.values()]
        for run in left:
            if len(self.waiting) == self.room:
                return
            if run in under_way:
                continue
            with contextlib.ExitStack() as claim:
                if claim.enter_context(claimed(self.folder, run)):
                    self.waiting[self.submit(run)] = run, claim.pop_all()

    def collect(self) -> None:
        """Record what is finished; the first error of a run is raised after all that."""
        if not self.waiting:
            return
        finished, _ = self.ray.wait(list(self.waiting), num_returns=len(self.waiting), timeout=0)
        errors = []
        for reference in finished:
            run, claim = self.waiting.pop(reference)
            name = run_name(run)
            with claim:
                try:
                    append_result(self.folder, dict(run=run, name=name) | self.ray.get(reference))
                    print(f"{len(self.plan.runs) - len(self.left())} of {len(self.plan.runs)}: {name}")
                except self.ray.exceptions.RayTaskError as error:
                    errors.append(error.cause)
                except self.ray.exceptions.RayError as error:
                    self.lost[name] = type(error).__name__
        if errors:
            raise errors[0]


def do_here(plan: SweepPlan, mixed_precision: str | None, folder: str, run: dict) -> dict:
    """One run, in a worker of the cluster, which keeps encoders for the next one.

    folder: the current one of the command, which relative paths start from.
    """
    os.chdir(folder)
    if mixed_precision not in READY:
        READY[mixed_precision] = runner(plan, mixed_precision, Interrupts(lambda: None))
    return READY[mixed_precision](run)
