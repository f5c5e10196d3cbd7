"""Which run folder a command writes to, whether it may resume the run there, and from which checkpoint."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted
from gralora_diffusion.data.concepts import image_folders
from gralora_diffusion.data.image_folder import TrainingImage, content_of
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError, from_dict, options_of, to_flat
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.run_folder import busy, read_status, who_writes

LENGTH_BEFORE = 75  # tokens of a caption that were read before --max_token_length


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
            changed.append(difference(about.flag, before[name], now[name]))
    return changed


def difference(flag: str, before, now) -> str:
    """What follows "with" in a sentence on an option that had another value."""
    before, now = (json.dumps(value) if isinstance(value, dict) else value for value in (before, now))
    if before is None:
        return f"no {flag}, not {now}"
    return f"{flag} {before}, not {'without it' if now is None else now}"


def start_of(run: Path, config: TrainConfig, steps: int) -> int:
    """The step of the checkpoint that a command of so many steps resumes from, or 0 without one."""
    wanted = config.resume_from_checkpoint
    found = holds_run(run, wanted) and checkpoint_to_resume(run, wanted)
    start = checkpoints.step_of(found) if found else 0
    check_steps(run, start, steps)
    return start


def holds_run(folder: Path, wanted: str | None) -> bool:
    """Whether a run was started in the folder.  Raises ConfigError where not, and a checkpoint is wanted."""
    found = (folder / "config.json").exists()
    if wanted and not found:
        problem = f"--resume_from_checkpoint {wanted}: {folder} holds no run"
        raise ConfigError(problem, option="resume_from_checkpoint")
    return found


def check_steps(run: Path, start: int, steps: int) -> None:
    """Raises ConfigError for a run that has more steps than the command."""
    if start > steps:
        problem = f"{run} is at step {start} already, beyond the {counted(steps, 'step')} of this command"
        raise ConfigError(f"{problem}: nothing is left to do", option="max_train_steps")


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
        latest = f"{path.name} is not the latest checkpoint of {run}, which is checkpoint-{steps[-1]}"
        problem = f"{latest}: move whatever is later out of the run folder first, or resume the latest"
        raise ConfigError(problem, option="resume_from_checkpoint")
    return path
