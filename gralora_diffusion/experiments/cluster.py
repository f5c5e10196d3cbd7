"""A sweep on a Ray cluster: a task for each run, which is done again elsewhere where its process dies.

All machines need the package, and the sweep's folder, images and base at the same paths.
"""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from gralora_diffusion.experiments.plan import SweepPlan
from gralora_diffusion.experiments.queue import not_done, run_name, stopped
from gralora_diffusion.experiments.results import append_result
from gralora_diffusion.experiments.sweep import runner
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.signals import Interrupts, Stopped

LOCAL = "local"  # in place of an address: a cluster of this machine's processors, for as long as the sweep
RETRIES = 3  # of a run whose process or machine dies
WAIT = 1.0  # seconds between two looks at signals
READY = {}  # in a worker: {settings of a sweep: its runner()}


def do_sweep_on_ray(plan: SweepPlan, folder: Path, address: str, mixed_precision: str | None = None) -> None:
    """All runs that are not done, each on one processor, or one GPU where the cluster has them.

    address: HOST:PORT, "auto", or LOCAL.  Raises ConfigError without Ray or a cluster, and for runs that were
    given up; Stopped after a signal.
    """
    ray = connected(address)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".ray.lock", timeout=0), Interrupts(lambda: None) as interrupts:
            interrupts.patient = True
            do_tasks(ray, plan, folder, mixed_precision, interrupts)
    except Timeout:
        problem = f"another command with --ray is at work in {folder}"
        raise ConfigError(f"{problem}: wait for it, or stop it", option="ray") from None
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
    how = dict(include_dashboard=False) if address == LOCAL else dict(address=address)
    try:
        ray.init(log_to_driver=False, logging_level="error", **how)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise no_cluster(address, str(error).strip().splitlines()[0]) from None
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
    return ConfigError(f"--ray {address}: there is no such cluster ({reason})", option="ray")


def do_tasks(ray, plan: SweepPlan, folder: Path, mixed_precision: str | None, interrupts: Interrupts) -> None:
    needs = dict(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU") else 0)
    task = ray.remote(max_retries=RETRIES, **needs)(do_here)
    shared = ray.put(plan)
    left = not_done(folder, plan.runs)
    waiting = {task.remote(shared, mixed_precision, run): run for run in left}
    number, lost = len(plan.runs) - len(left), []
    while waiting:
        finished, _ = ray.wait(list(waiting), timeout=WAIT)
        if interrupts.asked:
            for reference in waiting:
                ray.cancel(reference, force=True)
            raise Stopped(f"{stopped(folder, plan.runs)}; run the same command to resume")
        for reference in finished:
            run = waiting.pop(reference)
            name = run_name(run)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayError as error:
                lost.append(f"{name} ({type(error).__name__})")
                continue
            append_result(folder, dict(run=run, name=name) | result)
            number += 1
            print(f"{number} of {len(plan.runs)}: {name}")
    if lost:
        problem = f"{len(lost)} runs were given up after {RETRIES} retries, first {lost[0]}"
        raise ConfigError(f"{problem}: run the same command to try them again")


def do_here(plan: SweepPlan, mixed_precision: str | None, run: dict) -> dict:
    """One run, in a worker of the cluster, which keeps encoders for the next one."""
    key = repr([run["setting"], plan.encoders, mixed_precision])
    if key not in READY:
        READY[key] = runner(plan, mixed_precision, Interrupts(lambda: None))
    return READY[key](run)
