"""What a run will take: memory and files from shapes, time from a similar run or from three batches."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError, from_dict, to_dict
from gralora_diffusion.ui.config_form import BY_NAME, arguments
from gralora_diffusion.ui.drawing import ONE_AT_A_TIME
from gralora_diffusion.ui.run_queue import TRAIN, last_words, raw_status
from gralora_diffusion.ui.run_view import clock
from gralora_diffusion.ui.workspace import Workspace

PATIENCE = 180.0  # seconds for a measurement


def absolute(config: TrainConfig, home: Workspace) -> TrainConfig:
    """The config with its folders in the workspace as full paths, since this process runs elsewhere."""
    values = {}
    for name, value in to_dict(config).items():
        is_folder = name in BY_NAME and BY_NAME[name].kind == "folder"
        if isinstance(value, str) and (is_folder or value.startswith(("images/", "models/", "runs/"))):
            values[name] = str(home.root / value)
    return replace(config, **values)


def forecast_of(config: TrainConfig, home: Workspace) -> list[list[str]]:
    """[what, how much] for each row of the table; raises ConfigError when the run cannot start."""
    text = as_text(config, home)
    if not isinstance(
        _plans.get(text), list
    ):  # what was refused may be fixed by now, for instance its images
        try:
            found = plan_rows(text)
        except ConfigError as error:
            found = error
        _plans.pop(text, None)
        while len(_plans) >= 32:
            del _plans[next(iter(_plans))]
        _plans[text] = found
    if refusal := known_refusal(config, home):
        raise refusal
    return [list(row) for row in _plans[text]]


def known_refusal(config: TrainConfig, home: Workspace) -> ConfigError | None:
    """The error of forecast_of() for this config, if there was one."""
    found = _plans.get(as_text(config, home))
    return found if isinstance(found, ConfigError) else None


def as_text(config: TrainConfig, home: Workspace) -> str:
    """The config as JSON, with a run folder that does not exist."""
    planned = replace(config, output_dir=str(home.root / "runs" / ".planned"))
    return json.dumps(to_dict(absolute(planned, home)), sort_keys=True)


_plans: dict[str, list | ConfigError] = {}  # the latest forecasts, or why there is none


def plan_rows(text: str) -> list[tuple[str, str]]:
    """(what, how much) of the plan for a config in JSON."""
    from gralora_diffusion.training.dry_run import plan

    with ONE_AT_A_TIME:
        return list(plan(from_dict(TrainConfig, json.loads(text))).summary().items())


def known_time(config: TrainConfig, home: Workspace) -> str | None:
    """How long the run takes, from an earlier run with the same work per step, if there is one."""
    per_step = work_per_step(config)
    for name in home.run_names():
        run = home.runs / name
        try:
            other = from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
            lines = (run / "metrics.jsonl").read_text().splitlines()[:50]
            seconds = [json.loads(line)["seconds"] for line in lines]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if len(seconds) > 2 and work_per_step(other) == per_step:
            steps = config.resolved().max_train_steps or other.max_train_steps
            total = clock(steps * sum(seconds[1:]) / len(seconds[1:]))
            return f"about {total} for {steps} steps at the speed of {name}, plus the sample images"
    return None


def work_per_step(config: TrainConfig) -> str:
    """The options that the time of a step depends on."""
    values = to_dict(config.resolved())
    names = (
        "adapter",
        "pretrained_model_name_or_path",
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "train_text_encoder",
    )
    return json.dumps([values[n] for n in names] + [config.resolution], sort_keys=True)


def try_out(config: TrainConfig, home: Workspace) -> Iterator[str | None]:
    """Start the run in a temporary folder, and yield None until the trainer has made its forecast, then that.

    The run is ended then, or when the generator is closed. Raises ConfigError with the trainer's message when
    the run fails before its forecast.
    """
    folder = Path(tempfile.mkdtemp(prefix="try-", dir=home.root / ".page"))
    config = replace(config, output_dir=str(folder / "run"), push_to_hub=False, report_to="none")
    log = open(folder / "log.txt", "wb")  # noqa: SIM115 - the child's
    child = subprocess.Popen(
        [*TRAIN, *arguments(config)],
        cwd=home.root,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log.close()
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if isinstance(found := raw_status(folder / "run").get("forecast"), dict):
                memory, disk = f"memory {found['memory_mb']:,.0f} MB", f"disk {found['disk_mb']:,.0f} MB"
                yield f"about {clock(found['seconds'])}; {memory}, {disk} (measured on three batches)"
                return
            if child.poll() is not None:
                raise ConfigError(last_words(folder))
            yield None
            time.sleep(0.3)
        yield "not known yet: the run itself measures it, after its first batches"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def warm_up() -> None:
    """Load what the first forecast and the first image need, while the user looks at the page."""
    for module in ("training.dry_run", "sdxl.sampling"):
        importlib.import_module(f"gralora_diffusion.{module}")
