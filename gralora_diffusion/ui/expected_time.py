"""The time of a planned run, from what a run or a trial whose steps do the same work has measured."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from gralora_diffusion.checks import parse_size
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.config.choices import EMBEDDED_RESOLUTION, SDXL_RESOLUTION
from gralora_diffusion.console import about
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.training.time_left import Costs, costs_from_json, seconds_left
from gralora_diffusion.ui.run_files import UNREADABLE, config_from_json, raw_status, resolved_config_of
from gralora_diffusion.ui.run_view import metrics, sample_prompts, speed_of
from gralora_diffusion.ui.workspace import Workspace

MOST = 32  # entries of what is kept of trials and of plans
STEP_OPTIONS = (  # that determine the time of a step, beside the adapter's
    "pretrained_model_name_or_path",
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "train_text_encoder",
    "base_model_precision",
    "offload_unet",
    "compile",
    "with_prior_preservation",
    "prior_by_prediction",
    "optimizer",
)


@dataclass(frozen=True)
class Measured:
    """What a run or a trial took for the parts of its work."""

    speed: float  # seconds of a step
    costs: Costs | None  # None for a run of an earlier version
    image_work: float  # of all its sample images of a step, see image_work()
    run: str | None  # None for a trial


@dataclass(frozen=True)
class Work:
    """What a planned run does."""

    steps: int
    look_every: tuple[int, ...]  # steps between sample images and evaluations
    save_every: int
    images: int  # sample images of a step
    is_evaluated: bool


@dataclass(frozen=True)
class ExpectedTime:
    seconds: float
    with_images: bool  # whether its sample images are in it, if it has any
    run: str | None  # whose speed it is; None for a trial

    def text(self) -> str:
        """about 24 min, with what is left out."""
        return about(self.seconds) + ("" if self.with_images else ", plus sample images")


_trials: dict[tuple[Path, str], Measured] = {}  # {(HOME, work of a step): what the latest trial measured}


def keep_trial(config: TrainConfig, workspace: Workspace, measured: Measured) -> None:
    keep(_trials, (workspace.root, work_of_a_step(config)), measured)


def keep(found: dict, key, value) -> None:
    """found[key] = value, without the oldest entry where there are more than MOST."""
    found.pop(key, None)
    while len(found) >= MOST:
        del found[next(iter(found))]
    found[key] = value


def known_time(config: TrainConfig, work: Work, workspace: Workspace) -> ExpectedTime | None:
    """The time of a planned run, if a run, or else a trial, has measured steps that do the same work."""
    of_step = work_of_a_step(config)
    for name in workspace.run_names():
        run = workspace.runs / name
        try:
            other = config_from_json((run / "config.json").read_text())
        except UNREADABLE:
            continue
        if work_of_a_step(other) == of_step and len(metrics(run)) > 1:
            return expected_time(config, work, measured_by(run))
    trial = _trials.get((workspace.root, of_step))
    return expected_time(config, work, trial) if trial else None


def measured_by(run: Path) -> Measured:
    """What a run with steps has measured: the speed that the strip shows, the costs in its status.json."""
    costs = costs_from_json(raw_status(run).get("costs"))
    try:
        images = image_work(resolved_config_of(run), len(sample_prompts(run)))
    except ConfigError:
        images = 0.0
    return Measured(speed_of(metrics(run)), costs, images, run.name)


def expected_time(config: TrainConfig, work: Work, measured: Measured) -> ExpectedTime:
    """The time from start to end of a run that does `work`, at the measured costs."""
    costs = measured.costs
    if costs is None:
        return ExpectedTime(work.steps * measured.speed, not work.images, measured.run)
    images, known = 0.0, True
    if work.images:
        known = costs.images > 0 and measured.image_work > 0
        if known:
            images = costs.images * image_work(config, work.images) / measured.image_work
    costs = replace(
        costs,
        images=images,
        evaluation=costs.evaluation if work.is_evaluated else 0.0,
        look_every=work.look_every,
        save_every=work.save_every,
    )
    seconds = costs.preparation + costs.images + costs.evaluation  # until the first step
    seconds += seconds_left(costs, 0, work.steps, measured.speed, 0)
    return ExpectedTime(seconds, known, measured.run)


def image_work(config: TrainConfig, images: int) -> float:
    """A number that the time of so many sample images is proportional to."""
    config = config.resolved()
    if config.skip_final_inference:
        return 0.0
    side = resolution_of(config)
    try:
        height, width = parse_size(config.validation_size, "") if config.validation_size else (side, side)
    except ConfigError:  # of a run: anybody may have written it
        height = width = side
    guidance = config.guidance_scale
    passes = 2 if guidance is None or guidance > 1 else 1
    return float(images * config.num_inference_steps * passes * height * width)


def resolution_of(config: TrainConfig) -> int:
    """The resolution; a blank one stands for the base's."""
    of_base = EMBEDDED_RESOLUTION if config.pretrained_model_name_or_path is None else SDXL_RESOLUTION
    return config.resolution or of_base


def look_every(config: TrainConfig, steps: int, epochs: float) -> tuple[int, ...]:
    """Steps between two series of sample images of a run that makes so many passes over its images."""
    intervals = [config.validation_steps]
    if config.validation_epochs:
        intervals.append(config.validation_epochs * math.ceil(round(steps / epochs, 6)))
    return tuple(n for n in intervals if n)


def work_of_a_step(config: TrainConfig) -> str:
    """The options that determine the time of a step, as one text to compare."""
    from gralora_diffusion.training.accelerator import precision  # torch takes seconds

    resolved = config.resolved()
    values = [to_dict(resolved.adapter), resolution_of(resolved), precision(resolved)[0]]
    values += [getattr(resolved, name) for name in STEP_OPTIONS]
    return json.dumps(values, sort_keys=True)
