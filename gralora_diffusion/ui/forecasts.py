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

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import PATHS, ConfigError, fault_of, from_dict, to_dict
from gralora_diffusion.ui.config_form import BASE, EMBEDDED_RESOLUTION, FIELDS
from gralora_diffusion.ui.page_words import in_page_words, page_words
from gralora_diffusion.ui.processes import end_group
from gralora_diffusion.ui.run_files import UNREADABLE, config_from_json, final_message, raw_status
from gralora_diffusion.ui.run_queue import start_trainer
from gralora_diffusion.ui.run_view import clock_time, metrics
from gralora_diffusion.ui.sampler import ONE_AT_A_TIME
from gralora_diffusion.ui.workspace import EMBEDDED, Workspace

MAX_WAIT = 180.0  # seconds for a measurement
TITLES = {  # of the facts of a plan
    "base": "Base model",
    "adapter": "Adapter",
    "starts from": "Starts from",
    "images": "Images",
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
    "disk": "Files written",
}


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from shapes alone."""

    rows: tuple[tuple[str, str], ...]  # (what, how much)
    memory: int  # bytes at the peak
    disk: int  # bytes of all files that it leaves
    adapter: int  # bytes of the largest exported file


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
        _plans.pop(key, None)
        while len(_plans) >= 32:
            del _plans[next(iter(_plans))]
        _plans[key] = found
    found = _plans[key]
    if isinstance(found, ConfigError):
        raise ConfigError(str(found), option=found.option)
    return found


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
    planned = replace(config, output_dir=str(workspace.root / "runs" / ".planned"))
    return json.dumps(to_dict(with_full_paths(planned, workspace)), sort_keys=True)


_plans: dict[tuple[str, str], Estimate | ConfigError] = {}  # the latest estimates, or why there is none


def estimate_of_text(text: str, workspace: Workspace) -> Estimate:
    """The estimate for a config in JSON."""
    from gralora_diffusion.devices import best_device, memory_in_use, total_memory
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
    summary["steps"] = f"{found.steps} steps, batch size {found.images_per_step}, {found.epochs:.0f} epochs"
    rows = [(TITLES[name], page_words(value, workspace)) for name, value in summary.items()]
    device = best_device()
    libraries = memory_in_use(device) if total_memory(device) is None else 0
    disk = sum(found.files.values()) + found.checkpoints * found.checkpoint_size
    return Estimate(tuple(rows), max(found.phases.values()) + libraries, disk, max(found.files.values()))


def known_time(config: TrainConfig, workspace: Workspace) -> tuple[str, str] | None:
    """(about 4:05, a run whose steps do the same work), if there is such a run."""
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
            return f"about {clock_time(steps * sum(seconds) / len(seconds))}", name
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


def try_out(config: TrainConfig, workspace: Workspace) -> Iterator[dict | None]:
    """Start the run in a temporary folder, and kill it after three batches, when it has made its forecast.

    Yields None until then, and at the end {"seconds", "memory_mb", "disk_mb"}, or {} where it took too long;
    closing the generator ends the trial.  Raises ConfigError with the trainer's message when the run ends.
    """
    folder = Path(tempfile.mkdtemp(prefix="try-", dir=workspace.scratch))
    config = replace(config, output_dir=str(folder / "run"), push_to_hub=False, report_to="none")
    child = start_trainer(config, workspace.root, folder / "log.txt")
    try:
        until = time.monotonic() + MAX_WAIT
        while time.monotonic() < until:
            if isinstance(found := raw_status(folder / "run").get("forecast"), dict):
                yield found
                return
            if child.poll() is not None:
                raise ConfigError(page_words(final_message(folder), workspace))
            yield None
            time.sleep(0.3)
        yield {}
    finally:
        if child.poll() is None:
            end_group(child.pid, at_once=True)
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def size_text(size: float) -> str:
    """1.2 GB, or 345 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def warm_up() -> None:
    """Import what the first forecast and the first image need; to be called in a thread at the start."""
    import gralora_diffusion.sdxl.sampling
    import gralora_diffusion.training.dry_run  # noqa: F401
