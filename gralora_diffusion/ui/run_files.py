"""The files of a run's folder, as the page reads them: anybody may have written them."""

import json
import os
import re
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError, from_dict
from gralora_diffusion.ui.workspace import quoted, real_file

# errors of json.loads() and from_dict() for a file that holds something else
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, RecursionError)
JOB_STATES = ("queued", "canceled", "withdrawn", "started", "broken")
WORDS = {"canceled": "cancelled", "withdrawn": "cancelled"}  # of states, as the page shows them
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
LIBRARY_WARNING = re.compile(r"\S{1,300}\.py:\d{1,6}: \w{1,40}Warning: ")
MAX_CONFIG_BYTES = 1_000_000
LOG_BYTES = 60_000  # of the end of a log that are read
PROGRAM = "gralora train: "  # what the trainer's error messages begin with


def read_job(run: Path) -> dict:
    """job.json, or {} where there is none or it is not what the page writes.

    config: as it was asked for; created: when; state: one of JOB_STATES.
    started: when the process was started; pid, born: its number and birth_of() it.
    """
    job = read_json(run / "job.json")
    if job.get("state") not in JOB_STATES or not isinstance(job.get("config"), dict):
        return {}
    numbers = ["created"]
    if job["state"] == "started":
        numbers += ["pid", "born", "started"]
    return job if all(isinstance(job.get(name), int | float) for name in numbers) else {}


def raw_status(run: Path) -> dict:
    """status.json as it stands, or {} where there is none or it is not what the trainer writes."""
    status = read_json(run / "status.json")
    good = isinstance(status.get("state"), str) and isinstance(status.get("time"), int | float)
    return status if good else {}


def read_json(path: Path) -> dict:
    """The object in a JSON file, or {}."""
    try:
        found = json.loads(path.read_text()) if real_file(path) else {}
    except (OSError, ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def config_from_json(text: str) -> TrainConfig:
    """The config of a config.json for a new run; raises one of UNREADABLE."""
    return from_dict(TrainConfig, without_session(json.loads(text)))


def without_session(values: dict) -> dict:
    """The values of a config without those that belong to one start of the trainer."""
    return values | dict(hub_token=None, resume_from_checkpoint=None, dry_run=False)


def config_of(run: Path) -> TrainConfig:
    """The config of a run: as it was asked for, or without job.json as the trainer wrote it."""
    values = read_job(run).get("config")
    try:
        if values is not None:
            return from_dict(TrainConfig, without_session(values))
        if not real_file(run / "config.json"):
            raise ConfigError("there is no config.json")
        return config_from_json((run / "config.json").read_text())
    except UNREADABLE as error:
        raise ConfigError(f"the config of {quoted(run.name)} cannot be read: {error}") from None


def resolved_config_of(run: Path) -> TrainConfig:
    """The config as the trainer resolved it, or before the trainer has written it as it was asked for."""
    if not (run / "config.json").is_file():
        return config_of(run)
    try:
        return from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
    except UNREADABLE as error:
        raise ConfigError(f"the config of {quoted(run.name)} cannot be read: {error}") from None


def log_tail(run: Path, lines: int = 30) -> str:
    """The last lines of log.txt without escape sequences, progress bars as their last state.

    Warnings of libraries about themselves, with paths of this machine, are left out; the file has them.
    """
    try:
        with open(run / "log.txt", "rb") as file:
            file.seek(max(0, os.path.getsize(run / "log.txt") - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    found = [clean(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    return "\n".join(without_noise([line for line in found if line.strip()])[-lines:])


def without_noise(lines: list[str]) -> list[str]:
    """The lines without Python's warnings of libraries, and the line of code that follows each."""
    kept = []
    after_warning = False
    for line in lines:
        is_code = after_warning and line.startswith("  ")
        after_warning = LIBRARY_WARNING.match(line) is not None
        if not (after_warning or is_code):
            kept.append(line)
    return kept


def clean(line: str) -> str:
    """A line without escape sequences and control characters, of at most 400 characters."""
    line = "".join(c for c in ESCAPES.sub("", line[:2000]) if c.isprintable() or c == "\t")
    return line if len(line) <= 400 else line[:400] + " ..."


def final_message(run: Path) -> str:
    """The last line of the log: why the trainer ended, where it did not write a status."""
    return log_tail(run, 1).removeprefix(PROGRAM) or "it ended without a message"


def read_config(path: str) -> TrainConfig:
    """An uploaded config.json; raises ConfigError where it is none."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError("this is not a config file: it is larger than 1 MB")
        return config_from_json(text)
    except ConfigError:
        raise
    except UNREADABLE:
        raise ConfigError("this is not a config file: it does not contain a JSON object") from None
