"""Checkpoints: a folder checkpoint-N is complete or absent, and a run resumes from it bit for bit.

adapter.safetensors: the adapter as it is trained
state.safetensors, state.json: everything else, such as optimizer and schedule
manifest.json: sizes and SHA-256 of the other files, written last

The folder is written under another name, synced, then renamed, so that neither a kill nor a power failure can
lose an older one. Nothing in it is a pickle.
"""

import errno
import json
import re
import shutil
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gralora_diffusion.files import sha256, sync, write_text
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.read import NATIVE
from gralora_diffusion.formats.safetensors_files import write_safetensors
from gralora_diffusion.formats.write import write_native
from gralora_diffusion.options import ConfigError, TrainingError

STAGED = ".part"  # ending of a folder that is being written
DISCARDED = ".del"  # ending of a folder that is being deleted
BEST = "checkpoint-best"  # the adapter of the best step so far, as it would be exported
NAME = re.compile(r"checkpoint-(\d+)")
CONTENT = {NATIVE, "state.safetensors", "state.json"}


def save(run: Path, step: int, adapter: Adapter, state: dict, limit: int | None = None) -> Path:
    """Write run/checkpoint-`step`, then delete all but the newest `limit` checkpoints.

    state: nested dicts, lists and tuples of tensors, strings and numbers. Raises TrainingError when the disk
    is full or fails; earlier checkpoints are untouched then.
    """
    target = run / f"checkpoint-{step}"
    staged = run / f".checkpoint-{step}{STAGED}"
    tensors, rest = pack(state)
    try:
        discard(staged)
        staged.mkdir()
        write_native(staged / NATIVE, adapter)
        write_safetensors(staged / "state.safetensors", tensors, {"format": "pt"})
        write_text(staged / "state.json", json.dumps(rest, allow_nan=False))
        manifest = {}
        for path in sorted(staged.iterdir()):
            manifest[path.name] = dict(size=path.stat().st_size, sha256=sha256(path))
        write_text(staged / "manifest.json", json.dumps(dict(step=step, files=manifest), indent=2) + "\n")
        sync(staged)
        discard(target)  # of the same step, saved before a resume: it holds the same
        staged.rename(target)
        sync(run)
    except (OSError, SafetensorError) as error:
        needed = sum(t.nbytes for t in tensors.values())
        for _, _, factors in adapter.items():
            needed += sum(t.nbytes for t in factors.values())
        shutil.rmtree(staged, ignore_errors=True)
        raise TrainingError(not_saved(run, step, error, needed)) from error
    except ValueError as error:
        shutil.rmtree(staged, ignore_errors=True)
        problem = f"checkpoint-{step} was not written, since a number is not finite ({error})"
        raise TrainingError(f"{problem}: use a lower --learning_rate and another --output_dir") from error
    for later in candidates(run):
        if later > step:  # it was skipped as damaged, or the run would have resumed from it
            discard(run / f"checkpoint-{later}")
    if limit is not None:
        for old in sorted(candidates(run))[:-limit]:
            discard(run / f"checkpoint-{old}")
    return target


def save_best(run: Path, adapter: Adapter) -> None:
    """Write run/checkpoint-best, which holds an adapter and no state, over the earlier one.

    Raises TrainingError when the disk is full or fails.
    """
    try:
        (run / BEST).mkdir(exist_ok=True)
        write_native(run / BEST / NATIVE, adapter)
    except (OSError, SafetensorError) as error:
        problem = f"{BEST} could not be written to {run}: {error}"
        raise TrainingError(
            f"{problem}; run the same command to resume from the newest checkpoint"
        ) from error
    except ValueError as error:
        problem = f"{BEST} was not written, since a number is not finite ({error})"
        raise TrainingError(f"{problem}: use a lower --learning_rate and another --output_dir") from error


def discard_best(run: Path) -> None:
    """Delete run/checkpoint-best, of a step that the run has not reached."""
    discard(run / BEST)


def not_saved(run: Path, step: int, error: Exception, needed: int) -> str:
    """Why a checkpoint of so many bytes could not be saved, and what is left."""
    last, free = max(candidates(run), default=None), shutil.disk_usage(run).free
    kept = "there is no earlier checkpoint"
    if last:
        kept = f"checkpoint-{last} is untouched: run the same command to resume from it"
    why = str(error)
    if free < needed or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        why = f"the disk is full ({needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free)"
    return f"checkpoint-{step} could not be written to {run}: {why}; {kept}"


def newest(run: Path) -> Path | None:
    """The checkpoint of the highest step whose files are intact; damaged ones are skipped with a warning."""
    for step in sorted(candidates(run), reverse=True):
        path = run / f"checkpoint-{step}"
        if damage := damage_of(path):
            warnings.warn(f"{path} is skipped: {damage}", stacklevel=2)
        else:
            return path
    return None


def candidates(run: Path) -> list[int]:
    """The steps of all folders that are named as checkpoints and have a manifest."""
    folders = [p for p in run.glob("checkpoint-*") if NAME.fullmatch(p.name)]
    return [step_of(p) for p in folders if (p / "manifest.json").is_file()]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if f"checkpoint-{manifest['step']}" != path.name:
            return f"its manifest is that of step {manifest['step']}"
        for name, wanted in manifest["files"].items():
            file = path / Path(name).name  # whatever folders a forged manifest names
            if file.stat().st_size != wanted["size"] or sha256(file) != wanted["sha256"]:
                return f"the content of {name} has changed"
        missing = CONTENT - set(manifest["files"])
        return f"{min(missing)} is missing" if missing else None
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is damaged"


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(the adapter's tensors by their names in the native file, the state as save() was given it).

    Raises ConfigError when it is damaged.
    """
    damage = damage_of(path)
    if damage is None:
        try:
            state = unpack(
                json.loads((path / "state.json").read_text()), load_file(path / "state.safetensors")
            )
            return load_file(path / NATIVE), state
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damage = str(error)
    raise ConfigError(f"cannot resume from {path}: {damage}", option="resume_from_checkpoint")


def sweep(run: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for pattern in (f".*{STAGED}", f".*{DISCARDED}", f"samples/*/.*{STAGED}", f"{BEST}/.*{STAGED}"):
        for path in run.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def discard(folder: Path) -> None:
    """Delete a folder so that it is never there in part under its own name."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name.lstrip('.')}{DISCARDED}")
        if gone.exists():
            shutil.rmtree(gone)
        folder.rename(gone)
        shutil.rmtree(gone)


def pack(value, name: str = "") -> tuple[dict[str, torch.Tensor], object]:
    """Split nested dicts, lists and tuples into ({name: tensor}, the rest for JSON)."""
    if isinstance(value, torch.Tensor):
        return {name: value.detach().cpu().contiguous()}, {"tensor": name}
    tensors, rest = {}, []
    if isinstance(value, dict):
        for key, part in value.items():
            found, packed = pack(part, f"{name}.{key}")
            tensors |= found
            rest.append([key, packed])
        return tensors, {"dict": rest}
    if isinstance(value, list | tuple):
        for index, part in enumerate(value):
            found, packed = pack(part, f"{name}.{index}")
            tensors |= found
            rest.append(packed)
        return tensors, {type(value).__name__: rest}
    if value is None or isinstance(value, bool | int | float | str):
        return {}, {"value": value}
    raise TypeError(f"{name} is of the type {type(value).__name__}, which a checkpoint cannot hold")


def unpack(rest, tensors: dict[str, torch.Tensor]):
    """pack() the other way round."""
    ((kind, value),) = rest.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack(part, tensors) for key, part in value}
    if kind == "list":
        return [unpack(part, tensors) for part in value]
    if kind == "tuple":
        return tuple(unpack(part, tensors) for part in value)
    return value
