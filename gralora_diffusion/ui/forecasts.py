"""What a run will take, before it is started: memory and files from shapes alone, time from a run like it or from three batches."""

import json
import os
import re
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
    """The config with its folders in HOME as full paths, for this process, which is elsewhere."""
    values = {n: v for n, v in to_dict(config).items() if isinstance(v, str)}
    own = {
        n
        for n, v in values.items()
        if v.startswith(("images/", "models/", "runs/")) or (n in BY_NAME and BY_NAME[n].kind == "folder")
    }
    return replace(config, **{n: str(home.root / values[n]) for n in own})


def forecast_of(config: TrainConfig, home: Workspace) -> list[list[str]]:
    """[what, how much]; raises ConfigError, with the reason, when the run cannot be."""
    text = as_text(config, home)
    if not isinstance(
        _plans.get(text), list
    ):  # what was refused may have been mended: images may have been added
        try:
            found = _plan(text)
        except ConfigError as error:
            found = str(error)
        _plans.pop(text, None)
        while len(_plans) >= 32:
            del _plans[next(iter(_plans))]
        _plans[text] = found
    if refusal := known_refusal(config, home):
        raise ConfigError(refusal)
    return [list(row) for row in _plans[text]]


def known_refusal(config: TrainConfig, home: Workspace) -> str | None:
    """Why forecast_of() refused this config before, if it did."""
    found = _plans.get(as_text(config, home))
    return found if isinstance(found, str) else None


def as_text(config: TrainConfig, home: Workspace) -> str:
    return json.dumps(
        to_dict(absolute(replace(config, output_dir=str(home.root / "runs" / ".planned")), home)),
        sort_keys=True,
    )


_plans: dict[str, list | str] = {}  # the latest forecasts, or why there is none


def _plan(text: str) -> list[tuple[str, str]]:
    from gralora_diffusion.training.dry_run import plan

    with ONE_AT_A_TIME:
        lines = plan(from_dict(TrainConfig, json.loads(text))).splitlines()
    last = next(
        i for i, line in enumerate(lines) if re.fullmatch(r"[\d,]+ layers, [\d,]+ parameters", line)
    )  # of the table of layers
    rows = [line.partition(": ")[::2] for line in lines[last + 1 :]]
    return [
        ("adapter", lines[last]),
        *((what, much.partition(" from /")[0]) for what, much in rows if much and what != "run folder"),
    ]


def known_time(config: TrainConfig, home: Workspace) -> str | None:
    """How long it takes, from a run that did the same work per step, if there is one."""
    per_step = alike(config)
    for name in home.run_names():
        run = home.runs / name
        try:
            other = from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
            lines = [
                json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()[:50]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if len(lines) > 2 and alike(other) == per_step:
            steps = config.resolved().max_train_steps or other.max_train_steps
            return f"about {clock(steps * sum(lines[1:]) / len(lines[1:]))} for {steps} steps, as fast as {name}, and the sample images"
    return None


def alike(config: TrainConfig) -> str:
    """What the time of a step hangs on."""
    values = to_dict(
        replace(config.resolved(), **dict.fromkeys(("instance_prompt", "validation_prompt", "output_dir")))
    )
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
    """Begin the run in a folder of its own, and end it when the trainer has made its forecast, after three batches: that is yielded, and None before.

    Closing the generator ends the trial.  Raises ConfigError with the trainer's sentence when the run ends at once.
    """
    folder = Path(tempfile.mkdtemp(prefix="try-", dir=home.root / ".page"))
    config = replace(config, output_dir=str(folder / "run"), push_to_hub=False, report_to="none")
    log = open(folder / "log.txt", "wb")  # noqa: SIM115 - the child's
    child = subprocess.Popen(
        [*TRAIN, *arguments(config)], cwd=home.root, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    log.close()
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if isinstance(found := raw_status(folder / "run").get("forecast"), dict):
                memory, disk = (
                    f"memory {found['memory in MB']:,.0f} MB",
                    f"disk {found['disk in MB']:,.0f} MB",
                )
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
    """Load what the first forecast and the first image need, while the page is being looked at."""
