"""A table of training runs that differ in method, size, learning rate and seed alone; several processes share it, and it resumes at any run."""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from filelock import FileLock

from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.signals import Stopped

RESULTS = "runs.jsonl"
WAIT = 0.5  # seconds between two looks at what other processes have done


def name_of(run: dict) -> str:
    """A run's name: what can be read of it, and a hash of all of it."""
    parts = [
        run.get("subject"),
        run["method"],
        f"r{run['rank']}",
        f"k{run['k']}" if run.get("k") else "",
        f"lr{run['lr']:g}",
        f"seed{run['seed']}",
    ]
    return (
        "-".join(filter(None, parts))
        + "-"
        + hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]
    )


def results(folder: Path) -> list[dict]:
    """All finished runs; a line that a killed process left half-written is none."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / RESULTS).read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


@contextlib.contextmanager
def claimed(folder: Path, run: dict) -> Iterator[bool]:
    """Whether this process may do the run: nobody has done it, and no living process has it.  The claim ends with the block.

    A claim is a file that names its process, made with O_EXCL; one whose process is gone is taken over.
    """
    claim, mine = folder / "claims" / name_of(run), False
    claim.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not any(done["run"] == run for done in results(folder)):
            if claim.exists() and not alive(claim):
                claim.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):
                handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                with open(handle, "w") as file:
                    json.dump(
                        dict(
                            host=socket.gethostname(), pid=os.getpid(), began=psutil.Process().create_time()
                        ),
                        file,
                    )
                mine = True
    try:
        yield mine
    finally:
        if mine:
            claim.unlink(missing_ok=True)


def alive(claim: Path) -> bool:
    """Whether the process of a claim lives; another machine's is taken to."""
    try:
        owner = json.loads(claim.read_text())
        if owner["host"] != socket.gethostname():
            return True
        process = psutil.Process(owner["pid"])
        return process.create_time() == owner["began"] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return False


def sweep(
    folder: Path,
    runs: list[dict],
    do: Callable[[dict], dict],
    say: Callable[[str], None] = print,
    asked: Callable[[], bool] = lambda: False,
) -> None:
    """Do all runs that are not done and that nobody else is doing: a line of runs.jsonl for each.  do(run) -> what came out.

    Ends when all are done: what other processes are at is waited for, and taken over where one of them dies, so that a command which needs these
    runs may follow.  Raises Stopped between two runs, and while it waits, when asked() says so.
    """
    numbers, told = {name_of(run): number for number, run in enumerate(runs, 1)}, False
    while left := not_done(folder, runs):
        began_one = False
        for run in left:
            if asked():
                raise Stopped(f"stopped before {name_of(run)}, where the same command goes on")
            with claimed(folder, run) as mine:
                if mine:
                    write_line(folder, dict(run=run, name=name_of(run)) | do(run))
            if mine:
                began_one = True
                say(f"{numbers[name_of(run)]} of {len(runs)}: {name_of(run)}")
        if not began_one:
            if not told:
                names = ", ".join(map(name_of, left))
                say(
                    f"waiting for other processes' runs: {names} (if their machine is gone for good, delete {folder / 'claims'})"
                )
            told = True
            time.sleep(WAIT)
    if asked():
        raise Stopped("stopped when all runs were done")


def not_done(folder: Path, runs: list[dict]) -> list[dict]:
    done = [entry["run"] for entry in results(folder)]
    return [run for run in runs if run not in done]


def write_line(folder: Path, entry: dict) -> None:
    with FileLock(folder / ".lock"), open(folder / RESULTS, "a+b") as file:
        file.seek(max(0, file.tell() - 1))
        torn = file.read() not in (b"", b"\n")  # a killed process's half line
        file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def split(images: list[TrainingImage], part: str) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """(to learn, to test on): a tenth is for validation, another for the test, the same for every run.  part: validation or test."""
    if len(images) < 10:
        raise ConfigError(
            f"{len(images)} images are too few to hold a tenth out twice: give at least 10, or --prompts with a subject's images"
        )
    order = torch.randperm(len(images), generator=generator(0, 102)).tolist()
    tenth = round(len(images) / 10)
    held = dict(test=order[:tenth], validation=order[tenth : 2 * tenth])[part]
    return [images[i] for i in sorted(order[2 * tenth :])], [images[i] for i in sorted(held)]
