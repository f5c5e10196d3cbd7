"""A table of runs that several processes of one machine share, each run done once; it resumes at any run."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gralora_diffusion.console import counted
from gralora_diffusion.experiments.results import LOCK, append_result, read_results
from gralora_diffusion.training.signals import Stopped

CLAIMS = "claims"  # folder of the locks that processes hold on their runs
WAIT = 0.5  # seconds between two looks at what other processes have done


def run_name(run: dict) -> str:
    """A run's name: what people need of its options, and a hash of all of them."""
    parts = [run["method"], f"r{run['rank']}"]
    if run.get("subject"):
        parts.insert(0, run["subject"])
    if run.get("k"):
        parts.append(f"k{run['k']}")
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]
    parts += [f"lr{run['lr']:g}", f"seed{run['seed']}", digest]
    return "-".join(parts)


@contextlib.contextmanager
def claimed(folder: Path, run: dict) -> Iterator[bool]:
    """Whether this process may do the run: nobody has done it, and no other process is doing it.

    A claim is a lock that is held until the block ends; the system releases that of a killed process.
    """
    (folder / CLAIMS).mkdir(parents=True, exist_ok=True)
    claim = FileLock(folder / CLAIMS / run_name(run))
    with FileLock(folder / LOCK):
        if any(entry["run"] == run for entry in read_results(folder)) or not acquired(claim):
            claim = None
    try:
        yield claim is not None
    finally:
        if claim:
            with FileLock(folder / LOCK):  # so that nobody has the file open that is deleted
                Path(claim.lock_file).unlink(missing_ok=True)
                claim.release()


def acquired(claim: FileLock) -> bool:
    try:
        claim.acquire(timeout=0)
    except Timeout:
        return False
    return True


def others_at_work(folder: Path) -> bool:
    """Whether another process holds a claim."""
    if not (folder / CLAIMS).is_dir():
        return False
    with FileLock(folder / LOCK):
        for path in (folder / CLAIMS).iterdir():
            claim = FileLock(path)
            if not acquired(claim):
                return True
            claim.release()
    return False


def do_runs(
    folder: Path,
    runs: list[dict],
    do: Callable[[dict], dict],
    log: Callable[[str], None] = print,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Do all runs that are not done and that no other process is doing: a line of runs.jsonl for each.

    do(run) -> its result.  Ends when all are done: runs of other processes are waited for, and done here
    where such a process dies, so that a command which needs these runs may follow.  Raises Stopped between
    two runs, and while it waits, after stop_requested().
    """
    numbers = {run_name(run): number for number, run in enumerate(runs, 1)}
    has_announced_wait = False
    while left := not_done(folder, runs):
        did_one = False
        for run in left:
            name = run_name(run)
            if stop_requested():
                raise Stopped(f"{stopped(folder, runs)}; run the same command to resume with {name}")
            with claimed(folder, run) as mine:
                if mine:
                    try:
                        result = do(run)
                    except Stopped:
                        ways = f"run the same command to resume with the first step of {name}"
                        raise Stopped(f"{stopped(folder, runs)}; {ways}") from None
                    append_result(folder, dict(run=run, name=name) | result)
            if mine:
                did_one = True
                log(f"{numbers[name]} of {len(runs)}: {name}")
        if not did_one:
            if not has_announced_wait:
                log(f"waiting for other processes' runs: {', '.join(map(run_name, left))}")
            has_announced_wait = True
            time.sleep(WAIT)
    if stop_requested():
        raise Stopped("stopped; all runs are done")


def stopped(folder: Path, runs: list[dict]) -> str:
    return f"stopped after {len(runs) - len(not_done(folder, runs))} of {counted(len(runs), 'run')}"


def not_done(folder: Path, runs: list[dict]) -> list[dict]:
    done = [entry["run"] for entry in read_results(folder)]
    return [run for run in runs if run not in done]
