"""The run folder: which one a command means, who may write to it, and what it records.

status.json holds the run's state: starting, running, stopped, failed or done. A run that is "running" while
no process holds its lock was killed. metrics.jsonl has a line for each step, evaluations.jsonl one for each
evaluation.
"""

import dataclasses
import itertools
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.concepts import image_folders
from gralora_diffusion.data.image_folder import TrainingImage, content_of
from gralora_diffusion.files import resolved, without_folders, write_text
from gralora_diffusion.options import PATHS, ConfigError, from_dict, options_of, to_dict, to_flat
from gralora_diffusion.training import checkpoint as checkpoints

LOCK = ".lock"
EVALUATIONS = "evaluations.jsonl"
LENGTH_BEFORE = 75  # tokens of a caption that were read before --max_token_length


class Run:
    """A run folder that this process writes to; raises ConfigError while another one does."""

    def __init__(self, path: Path):
        path.mkdir(parents=True, exist_ok=True)
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
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def status(self, state: str, **facts) -> None:
        """Write status.json: the state, and every fact given since the run started."""
        self.recorded |= dict(state=state, pid=os.getpid(), time=round(time.time(), 3)) | facts
        write_text(self.path / "status.json", json.dumps(self.recorded) + "\n")

    def log(self, line: dict) -> None:
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
    """The lines of metrics.jsonl, without a last one that a kill has cut off."""
    return read_lines(run / "metrics.jsonl")


def read_evaluations(run: Path) -> list[dict]:
    """The lines of evaluations.jsonl; [] for a run without evaluations."""
    return read_lines(run / EVALUATIONS)


def read_lines(path: Path) -> list[dict]:
    """The lines of a file that a run writes, up to one that is cut off; [] where it does not exist."""
    lines = []
    if path.exists():
        for text in path.read_text(errors="replace").split("\n"):
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def recorded_status(run: Path) -> dict:
    """status.json as the run wrote it last; the state "unknown" where it cannot be read."""
    try:
        return json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return dict(state="unknown")


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
    try:
        who = f" (process {json.loads((run / 'status.json').read_text())['pid']})"
    except (OSError, ValueError, KeyError):
        who = ""
    return f"{run} is being written by another run{who}: wait for it, stop it, or choose another --output_dir"


def locate(config: TrainConfig, images: list[TrainingImage]) -> Path:
    """The folder that this command writes to; raises ConfigError where it cannot, and writes nothing.

    images: the instance images. It is --output_dir, new or with a run of the same config; by default the
    first of runs/NAME, runs/NAME-2, ... that does not exist or holds an unfinished run of the same config.
    """
    try:
        run = default_folder(config, images) if config.output_dir is None else given_folder(config)
        nearest = next(p for p in (run, *run.absolute().parents) if p.exists())
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"--output_dir cannot be used: {error}", option="output_dir") from None
    effective = os.access in os.supports_effective_ids
    if not nearest.is_dir() or not os.access(nearest, os.W_OK, effective_ids=effective):
        problem = f"{run} cannot be written: {nearest} is a file, or there is no permission"
        raise ConfigError(problem, option="output_dir")
    check_beside_images(run, config)
    if busy(run):
        raise ConfigError(who_writes(run), option="output_dir")
    return run


def given_folder(config: TrainConfig) -> Path:
    run = Path(config.output_dir)
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is a file: choose another --output_dir", option="output_dir")
    if (run / "config.json").exists():
        check_same(run, config, given_only=True)
    return run


def check_beside_images(run: Path, config: TrainConfig) -> None:
    """Raises ConfigError for a new run in a folder of images, whose files would become images of the run."""
    path = resolved(run)
    for folder in image_folders(config):
        inside = resolved(folder) in path.parents
        if path == resolved(folder) or (inside and not (run / "config.json").exists()):
            where = "inside" if inside else "the same as"
            problem = f"the run folder {run} is {where} the folder of images {folder}"
            raise ConfigError(f"{problem}: choose another --output_dir", option="output_dir")


def default_folder(config: TrainConfig, images: list[TrainingImage]) -> Path:
    given = config.instance_data_dir or config.dataset_name
    subject = "robot" if given is None else resolved(Path(given)).name
    if config.concepts is not None:
        subject = Path(config.concepts).stem
    name = f"{subject}-{config.adapter_name}-r{config.adapter.rank}"
    for number in itertools.count(1):
        run = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not run.exists() or resumable(run, config, images):
            return run


def resumable(run: Path, config: TrainConfig, images: list[TrainingImage]) -> bool:
    """Whether the folder holds an unfinished run of this config and these images."""
    try:
        check_same(run, config, given_only=True)
        saved = from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
    except (ConfigError, OSError, ValueError):
        return False
    return read_status(run)["state"] != "done" and same_source(run, saved, config, images)


def same_source(run: Path, saved: TrainConfig, config: TrainConfig, images: list[TrainingImage]) -> bool:
    """Whether a run trains on the same images, wherever they are, or on a folder of the same name."""
    try:
        facts = json.loads((run / "environment.json").read_text())
        if facts["must_match"].get("instance") == content_of(images):
            return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    names = ("instance_data_dir", "concepts", "instance_prompt", "class_data_dir")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return all(getattr(saved, name) == value for name, value in given.items())


def with_recorded_options(run: Path, config: TrainConfig) -> TrainConfig:
    """The config with what the run that it resumes has recorded: sample prompts, unless it names others.

    Images of one run are compared with each other, and what a run without prompts draws may change.
    """
    try:
        recorded = json.loads((run / "config.json").read_text())
        prompt = recorded["validation_prompt"]
    except (OSError, ValueError, KeyError, TypeError):
        return config
    if config.validation_prompt is None:
        config = dataclasses.replace(config, validation_prompt=prompt)
    return as_it_was(recorded, config)


def is_older(run: Path) -> bool:
    """Whether a run was started before --max_token_length."""
    try:
        return "max_token_length" not in json.loads((run / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def as_it_was(recorded: dict, config: TrainConfig) -> TrainConfig:
    """The config with the caption length of a run that is older than --max_token_length: 75 tokens.

    recorded: the run's config.json. Another length than the default is left to be compared.
    """
    if "max_token_length" in recorded or config.max_token_length != TrainConfig().max_token_length:
        return config
    return dataclasses.replace(config, max_token_length=LENGTH_BEFORE)


def check_same(run: Path, config: TrainConfig, given_only: bool = False) -> None:
    """Raises ConfigError, with the differences, unless run/config.json is the same but for resumable options.

    given_only: options that are None in `config` are not compared.
    """
    try:
        recorded = json.loads((run / "config.json").read_text())
        saved = as_it_was(recorded, from_dict(TrainConfig, recorded))
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{run} holds a config.json that cannot be read ({error})"
        raise ConfigError(f"{problem}: choose another --output_dir", option="output_dir") from None
    if changed := differences(saved, as_it_was(recorded, config), given_only):
        problem = f"{run} was started with {'; '.join(changed)}"
        ways = "use the same options to resume it, or choose another --output_dir"
        raise ConfigError(f"{problem}: {ways}", option="output_dir")


def differences(saved: TrainConfig, config: TrainConfig, given_only: bool) -> list[str]:
    """What a resumed run must not change, and does."""
    before, now = to_flat(saved), to_flat(config)
    changed = []
    for name, about in options_of(TrainConfig).items():
        compared = not about.resumable and not (given_only and now[name] is None)
        if compared and before[name] != now[name]:
            changed.append(f"{about.flag} {before[name]}, not {now[name]}")
    return changed


def checkpoint_to_resume(run: Path, wanted: str | None) -> Path | None:
    """That of --resume_from_checkpoint, or the newest intact one; None to start at step 0."""
    if wanted in (None, "latest"):
        return checkpoints.newest(run)
    path = run / Path(wanted).name
    flag = f"--resume_from_checkpoint {wanted}"
    if Path(wanted) not in (Path(path.name), path) and resolved(Path(wanted)) != resolved(path):
        problem = f"{flag} is not in {run}: a run resumes from its own checkpoints only"
        raise ConfigError(problem, option="resume_from_checkpoint")
    steps = sorted(checkpoints.candidates(run))
    if path.name not in [f"checkpoint-{step}" for step in steps]:
        there = ", ".join(f"checkpoint-{step}" for step in steps) or "none"
        problem = f"{flag} does not exist; {run} has: {there}"
        raise ConfigError(problem, option="resume_from_checkpoint")
    if steps[-1] > checkpoints.step_of(path):
        later = f"{run} has later checkpoints than {path.name} (checkpoint-{steps[-1]})"
        problem = f"{later}: move them out of it first, or resume the latest"
        raise ConfigError(problem, option="resume_from_checkpoint")
    return path


def environment() -> dict:
    """Versions of what the numbers depend on."""
    packages = ("gralora-diffusion", "torch", "diffusers", "transformers", "accelerate")
    versions = {name: version(name) for name in packages}
    return versions | dict(python=platform.python_version(), machine=platform.machine())
