"""What a run will take: memory and files from shapes alone, time from steps that were measured."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import about, counted
from gralora_diffusion.options import PATHS, ConfigError, fault_of, from_dict, to_dict
from gralora_diffusion.training.time_left import costs_from_json
from gralora_diffusion.ui.config_form import BASE, FIELDS
from gralora_diffusion.ui.expected_time import Measured, Work, image_work, keep, keep_trial, look_every
from gralora_diffusion.ui.page_words import in_page_words, page_words
from gralora_diffusion.ui.processes import end_group
from gralora_diffusion.ui.run_files import final_message, raw_status
from gralora_diffusion.ui.run_queue import start_trainer
from gralora_diffusion.ui.sampler import ONE_AT_A_TIME
from gralora_diffusion.ui.workspace import EMBEDDED, Workspace

if TYPE_CHECKING:
    from gralora_diffusion.training.run_plan import Plan

MAX_WAIT = 180.0  # seconds for a measurement
PAUSE = 2.0  # seconds between two messages about it
PLANNED = ".planned"  # stands for the folder of a run that is only planned
TITLES = {  # of the facts of a plan
    "base": "Base model",
    "adapter": "Adapter",
    "starts from": "Starts from",
    "images": "Images",
    "captions": "Captions",
    "masks": "Masks",
    "timesteps": "Timesteps",
    "evaluations": "Evaluations",
    "class images": "Class images",
    "concepts": "Parts of the dataset",
    "sample prompts": "Sample prompts",
    "steps": "Training",
    "device": "Device",
    "memory": "Memory (approx.)",
    "memory of a training step": "Memory per step (approx.)",
    "memory of the gradient pass": "Memory of the gradient pass",
    "time": "Time",
}


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from shapes alone."""

    rows: tuple[tuple[str, str], ...]  # (what, how much), without the files
    plan: "Plan"  # of a run in the folder PLANNED
    memory: int  # bytes at the peak
    work: Work
    prompts: tuple[str, ...]  # of the sample images

    def files(self, run: str) -> str:
        """Each file of a run with this name, and its size."""
        return self.plan.in_folder(Path(run)).disk_text()

    def size(self) -> str:
        """The size of the file that other tools read, or else of the adapter, and of all files."""
        from gralora_diffusion.formats.read import NATIVE

        adapter = f"adapter {size_text(self.plan.files[NATIVE])}"
        if self.plan.for_other_tools is not None:
            adapter = f"{size_text(self.plan.for_other_tools)} for other tools"
        return f"{adapter}, {size_text(self.plan.disk())} in all"


def with_full_paths(config: TrainConfig, workspace: Workspace) -> TrainConfig:
    """The config with full paths of its folders in HOME, since this process works in another folder."""
    paths = {}
    for name, option in FIELDS.items():
        value = getattr(config, name, None)
        if value is None or option.kind not in PATHS:
            continue
        own_folder = option.kind == "folder"
        if own_folder or value.startswith(("images/", "models/", "runs/", "adapters/")):
            paths[name] = str(workspace.root / value)
    return replace(config, **paths)


def estimate_of(config: TrainConfig, workspace: Workspace) -> Estimate:
    """Raises ConfigError, with the reason in the page's words, when the run is impossible."""
    key = key_of(config, workspace)
    if not isinstance(_plans.get(key), Estimate):  # a refusal is checked again: other files may be there now
        try:
            found = estimate_of_text(key[0], workspace)
        except ConfigError as error:
            found = in_page_words(error, workspace)
        keep(_plans, key, found)
    found = _plans[key]
    if isinstance(found, ConfigError):
        raise ConfigError(str(found), option=found.option)
    return found


def memory_text(config: TrainConfig, estimate: Estimate, workspace: Workspace) -> str:
    """The memory that a trial of this config has measured, or else about what shapes alone tell."""
    measured = _trial_memory.get(as_text(config, workspace))
    return f"about {size_text(estimate.memory)}" if measured is None else size_text(measured)


def is_estimated(config: TrainConfig, workspace: Workspace) -> bool:
    """Whether estimate_of() has loaded the shapes of this config's base before."""
    return isinstance(_plans.get(key_of(config, workspace)), Estimate)


def known_refusal(config: TrainConfig, workspace: Workspace) -> ConfigError | None:
    """Why estimate_of() refused this config with these images before, with the option that is wrong."""
    found = _plans.get(key_of(config, workspace))
    return ConfigError(str(found), option=found.option) if isinstance(found, ConfigError) else None


def key_of(config: TrainConfig, workspace: Workspace) -> tuple[str, str]:
    """The config as a text, and the version of its images and captions, by which estimates are kept."""
    folders = [getattr(config, name, None) for name, option in FIELDS.items() if option.kind == "images"]
    files = []
    for folder in filter(None, folders):
        with contextlib.suppress(OSError), os.scandir(workspace.root / folder) as entries:
            stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
            files += [[folder, name, stat.st_mtime_ns, stat.st_size] for name, stat in stats]
    return as_text(config, workspace), json.dumps(sorted(files))


def as_text(config: TrainConfig, workspace: Workspace) -> str:
    """The config of a forecast, as a key and as what plan_rows() reads."""
    planned = replace(config, output_dir=str(workspace.runs / PLANNED))
    return json.dumps(to_dict(with_full_paths(planned, workspace)), sort_keys=True)


_trial_memory: dict[str, int] = {}  # {config as a text: bytes at the peak that the latest trial found}
_last_trial: dict[Path, float] = {}  # {HOME: seconds that the latest measurement took}
_plans: dict[tuple[str, str], Estimate | ConfigError] = {}  # the latest estimates, or why there is none


def estimate_of_text(text: str, workspace: Workspace) -> Estimate:
    """The estimate for a config in JSON."""
    from gralora_diffusion.sdxl.single_file import names_in
    from gralora_diffusion.training.dry_run import plan

    config = from_dict(TrainConfig, json.loads(text))
    base = config.pretrained_model_name_or_path
    if base and base.endswith(".safetensors"):  # of which a plan takes the shapes for granted
        with fault_of(BASE):
            names_in(Path(base))
    with ONE_AT_A_TIME:
        found = plan(config)
    summary = found.summary()
    summary["base"] = found.config.pretrained_model_name_or_path or EMBEDDED
    epochs = counted(round(found.epochs), "epoch") if found.epochs >= 1 else "less than one epoch"
    summary["steps"] = f"{counted(found.steps, 'step')}, batch size {found.images_per_step}, {epochs}"
    del summary["disk"]  # see Estimate.files(); the run's name is not known here
    rows = [(TITLES[name], page_words(value, workspace)) for name, value in summary.items()]
    memory = max(found.phases.values()) + found.libraries
    return Estimate(tuple(rows), found, memory, work_of(found), tuple(found.prompts))


def work_of(plan) -> Work:
    """What a run with this Plan does that takes time."""
    from gralora_diffusion.training.setup import checkpoint_interval

    config = plan.config
    images = 0 if config.skip_final_inference else len(plan.prompts) * config.num_validation_images
    every = look_every(config, plan.steps, plan.epochs)
    saves = checkpoint_interval(config, plan.steps)
    return Work(plan.steps, every, saves, images, bool(plan.evaluations))


def try_out(config: TrainConfig, estimate: Estimate, workspace: Workspace) -> Iterator[str | Measured]:
    """Start the run in a temporary folder, and kill it after three batches, when it has made its forecast.

    Yields what it does every two seconds, and at the end what was measured, or nothing where it took too
    long; closing the generator ends the trial. Raises ConfigError with the trainer's message when the run
    ends.
    """
    key = as_text(config, workspace)
    folder = Path(tempfile.mkdtemp(prefix="try-", dir=workspace.scratch))
    config, images = with_few_images(config, estimate)
    planned = replace(config, output_dir=str(folder / "run"), push_to_hub=False, report_to="none")
    began = time.monotonic()
    child = start_trainer(planned, workspace.root, folder / "log.txt")
    try:
        shown = -PAUSE
        while (elapsed := time.monotonic() - began) < MAX_WAIT:
            status = raw_status(folder / "run")
            costs = costs_from_json(status.get("costs"))
            if costs and isinstance(status.get("forecast"), dict):
                measured = Measured(costs.step, costs, image_work(config, images), None)
                keep_trial(config, workspace, measured)
                _last_trial[workspace.root] = elapsed
                keep(_trial_memory, key, int(1e6 * status["forecast"]["memory_mb"]))
                yield measured
                return
            if child.poll() is not None:
                raise ConfigError(page_words(final_message(folder), workspace))
            if elapsed - shown >= PAUSE:
                shown = elapsed
                doing = status.get("doing") or "loading the base model"
                yield f"{elapsed:.0f} s of {trial_time(workspace)}: {doing}"
            time.sleep(0.3)
    finally:
        if child.poll() is None:
            end_group(child.pid, at_once=True)
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def trial_time(workspace: Workspace) -> str:
    """How long a trial takes: as long as the last one, or the most that it may."""
    last = _last_trial.get(workspace.root)
    return about(last) if last else f"at most {MAX_WAIT / 60:.0f} min"


def with_few_images(config: TrainConfig, estimate: Estimate) -> tuple[TrainConfig, int]:
    """(the config with no more sample images than are generated at once, their number).

    The time of more images follows from theirs; scores need them all.
    """
    images, most = estimate.work.images, config.resolved().train_batch_size or 1
    if images <= most or estimate.work.is_evaluated:
        return config, images
    each = min(config.num_validation_images, most)
    prompts = estimate.prompts[: max(1, most // each)]
    config = replace(config, validation_prompt=" | ".join(prompts), num_validation_images=each)
    return config, len(prompts) * each


def size_text(size: float) -> str:
    """1.2 GB, or 345 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def warm_up() -> None:
    """Import what the first forecast and the first image need, and measure the memory of the libraries.

    To be called in a thread at the start, before this process has a model.
    """
    import gralora_diffusion.sdxl.sampling
    import gralora_diffusion.training.dry_run  # noqa: F401
    from gralora_diffusion.devices import best_device
    from gralora_diffusion.training.library_memory import library_memory

    library_memory(best_device())
