"""What a run will take: memory and files from shapes alone, time from steps that were measured."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError, from_dict, to_dict
from gralora_diffusion.ui.config_form import FIELDS
from gralora_diffusion.ui.processes import end_group
from gralora_diffusion.ui.run_files import UNREADABLE, config_from_json, final_message, raw_status
from gralora_diffusion.ui.run_queue import start_trainer
from gralora_diffusion.ui.run_view import clock_time, metrics
from gralora_diffusion.ui.sampler import ONE_AT_A_TIME
from gralora_diffusion.ui.workspace import Workspace

MAX_WAIT = 180.0  # seconds for a measurement

EMBEDDED_RESOLUTION = 64  # what a blank resolution means on the embedded base


def with_full_paths(config: TrainConfig, workspace: Workspace) -> TrainConfig:
    """The config with full paths of its folders in HOME, since this process works in another folder."""
    paths = {}
    for name, value in to_dict(config).items():
        if not isinstance(value, str):
            continue
        own_folder = name in FIELDS and FIELDS[name].kind == "folder"
        if own_folder or value.startswith(("images/", "models/", "runs/")):
            paths[name] = str(workspace.root / value)
    return replace(config, **paths)


def forecast_of(config: TrainConfig, workspace: Workspace) -> list[list[str]]:
    """[what, how much]; raises ConfigError, with the reason, when the run is impossible."""
    text = as_text(config, workspace)
    if not isinstance(_plans.get(text), list):  # a refusal is checked again: images may have been added
        try:
            found = plan_rows(text)
        except ConfigError as error:
            found = error
        _plans.pop(text, None)
        while len(_plans) >= 32:
            del _plans[next(iter(_plans))]
        _plans[text] = found
    if refusal := known_refusal(config, workspace):
        raise refusal
    return [list(row) for row in _plans[text]]


def known_refusal(config: TrainConfig, workspace: Workspace) -> ConfigError | None:
    """Why forecast_of() refused this config before, with the option that is wrong, if it did."""
    found = _plans.get(as_text(config, workspace))
    return ConfigError(str(found), option=found.option) if isinstance(found, ConfigError) else None


def as_text(config: TrainConfig, workspace: Workspace) -> str:
    """The config of a forecast, as a key and as what plan_rows() reads."""
    planned = replace(config, output_dir=str(workspace.root / "runs" / ".planned"))
    return json.dumps(to_dict(with_full_paths(planned, workspace)), sort_keys=True)


_plans: dict[str, list | ConfigError] = {}  # the latest forecasts, or why there is none


def plan_rows(text: str) -> list[tuple[str, str]]:
    """(what, how much) of the plan for a config in JSON."""
    from gralora_diffusion.training.dry_run import plan

    with ONE_AT_A_TIME:
        return list(plan(from_dict(TrainConfig, json.loads(text))).summary().items())


def known_time(config: TrainConfig, workspace: Workspace) -> str | None:
    """How long it takes, from a run whose steps do the same work, if there is one."""
    steps = config.resolved().max_train_steps
    if steps is None:  # epochs: the plan knows their steps
        return None
    work = work_of_a_step(config)
    for name in workspace.run_names():
        try:
            other = config_from_json((workspace.runs / name / "config.json").read_text())
        except UNREADABLE:
            continue
        seconds = [line["seconds"] for line in metrics(workspace.runs / name)[1:50]]
        if len(seconds) > 1 and work_of_a_step(other) == work:
            total = clock_time(steps * sum(seconds) / len(seconds))
            return f"about {total} for {steps} steps, as fast as {name}, and the sample images"
    return None


def work_of_a_step(config: TrainConfig) -> str:
    """The options that determine the time of a step, as one text to compare."""
    resolved = config.resolved()
    names = (
        "pretrained_model_name_or_path",
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "train_text_encoder",
    )
    values = [to_dict(resolved.adapter), *(getattr(resolved, name) for name in names)]
    if resolved.pretrained_model_name_or_path is None:
        values.append(resolved.resolution or EMBEDDED_RESOLUTION)
    else:
        values.append(resolved.resolution)
    return json.dumps(values, sort_keys=True)


def try_out(config: TrainConfig, workspace: Workspace) -> Iterator[str | None]:
    """Start the run in a temporary folder, and kill it after three batches, when it has made its forecast.

    Yields None until then, and the forecast at the end; closing the generator ends the trial.
    Raises ConfigError with the trainer's message when the run ends at once.
    """
    folder = Path(tempfile.mkdtemp(prefix="try-", dir=workspace.scratch))
    config = replace(config, output_dir=str(folder / "run"), push_to_hub=False, report_to="none")
    child = start_trainer(config, workspace.root, folder / "log.txt")
    try:
        until = time.monotonic() + MAX_WAIT
        while time.monotonic() < until:
            if isinstance(found := raw_status(folder / "run").get("forecast"), dict):
                memory = f"memory {found['memory_mb']:,.0f} MB"
                disk = f"disk {found['disk_mb']:,.0f} MB"
                yield f"about {clock_time(found['seconds'])}; {memory}, {disk} (measured on three batches)"
                return
            if child.poll() is not None:
                raise ConfigError(final_message(folder))
            yield None
            time.sleep(0.3)
        yield "not known yet: the run itself measures it, after its first batches"
    finally:
        if child.poll() is None:
            end_group(child.pid, at_once=True)
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def warm_up() -> None:
    """Import what the first forecast and the first image need; to be called in a thread at the start."""
    import gralora_diffusion.sdxl.sampling
    import gralora_diffusion.training.dry_run  # noqa: F401
