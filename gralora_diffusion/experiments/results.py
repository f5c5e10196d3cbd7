"""runs.jsonl: a line for each finished run, read and written here alone."""

import contextlib
import json
import os
import statistics
from pathlib import Path

from filelock import FileLock

from gralora_diffusion.evaluation.metric import Score

RESULTS = "runs.jsonl"
LOCK = ".lock"  # held while runs.jsonl is written, and while a run is claimed
BLOCK = 20  # steps of training loss that a report averages


def read_results(folder: Path) -> list[dict]:
    """All finished runs, {"run": options, "scores": {Score: values}, ...}; skips half-written lines."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / RESULTS).read_text().split("\n"):
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return [entry_from_json(entry) for entry in found]


def entry_from_json(entry: dict) -> dict:
    if "scores" not in entry:
        return entry
    return entry | dict(scores={Score.parse(name): values for name, values in entry["scores"].items()})


def line_of(entry: dict) -> str:
    if "scores" in entry:
        entry = entry | dict(scores={str(score): values for score, values in entry["scores"].items()})
    return json.dumps(entry) + "\n"


def append_result(folder: Path, entry: dict) -> None:
    """Add a line and sync it; a half line that a killed process left is ended first."""
    with FileLock(folder / LOCK), open(folder / RESULTS, "a+b") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read() not in (b"", b"\n"):
            file.write(b"\n")
        file.write(line_of(entry).encode())
        file.flush()
        os.fsync(file.fileno())


def shortened(entry: dict) -> dict:
    """The entry with the mean of each score, and of each block of losses: reports from it are the same."""
    if "scores" not in entry or "in_short" in entry:
        return entry
    scores = {score: [round(statistics.mean(values), 6)] for score, values in entry["scores"].items()}
    losses = [round(loss, 5) for loss in means_of_blocks(entry["losses"])]
    return entry | dict(scores=scores, losses=losses, in_short=True)


def block_losses(entry: dict) -> list[float]:
    """The mean loss of each block of steps, of a whole entry or a shortened one."""
    return entry["losses"] if "in_short" in entry else means_of_blocks(entry["losses"])


def means_of_blocks(losses: list[float]) -> list[float]:
    """The mean of each BLOCK steps; what is left over goes into the last."""
    count = max(1, len(losses) // BLOCK)
    blocks = [losses[i * BLOCK : (i + 1) * BLOCK] for i in range(count - 1)]
    blocks.append(losses[(count - 1) * BLOCK :])
    return [statistics.mean(block) for block in blocks]
