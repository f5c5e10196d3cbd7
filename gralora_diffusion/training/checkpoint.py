"""Checkpoints: a folder checkpoint-N is complete or not there, and holds all that a run needs to go on bit by bit.

adapter.safetensors, the adapter as it is trained; state.safetensors and state.json, everything else (optimizer, schedule, step); manifest.json,
the others' sizes and SHA-256, written last.  The folder is made under another name, synced, then renamed (the order that loses nothing to a
kill or a power cut).  Nothing in it is a pickle.
"""

import errno
import json
import os
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

STAGED, DISCARDED = (
    ".part",
    ".del",
)  # endings of folders that are being written and being deleted; neither counts
NAME = re.compile(r"checkpoint-(\d+)")


def save(run: Path, step: int, adapter: Adapter, state: dict, limit: int | None = None) -> Path:
    """Write run/checkpoint-`step`, then delete all but the newest `limit` checkpoints.

    state: dicts, lists, tensors, strings and numbers, nested as they come.  Raises TrainingError when the disk is full or fails; what was
    there before is untouched then.
    """
    target, staged = run / f"checkpoint-{step}", run / f".checkpoint-{step}{STAGED}"
    tensors, rest = pack(state)
    try:
        discard(staged)
        staged.mkdir()
        write_native(staged / NATIVE, adapter)
        write_safetensors(staged / "state.safetensors", tensors, {"format": "pt"})
        write_text(staged / "state.json", json.dumps(rest, allow_nan=False))
        files = sorted(p.name for p in staged.iterdir())
        manifest = {
            name: dict(size=os.path.getsize(staged / name), sha256=sha256(staged / name)) for name in files
        }
        write_text(staged / "manifest.json", json.dumps(dict(step=step, files=manifest), indent=2) + "\n")
        sync(staged)
        discard(target)  # the same step, saved before a resume; bit by bit the same
        staged.rename(target)
        sync(run)
    except (OSError, SafetensorError) as error:
        needed = sum(t.nbytes for t in tensors.values()) + sum(
            t.nbytes for _, _, factors in adapter.items() for t in factors.values()
        )
        shutil.rmtree(staged, ignore_errors=True)
        raise TrainingError(not_saved(run, step, error, needed)) from error
    except ValueError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise TrainingError(
            f"checkpoint-{step} was not written, since a number is not finite ({error}): lower --learning_rate"
        ) from error
    for later in [
        other for other in candidates(run) if other > step
    ]:  # passed over as damaged, or this run would have begun there
        discard(run / f"checkpoint-{later}")
    if limit is not None:
        for old in sorted(candidates(run))[:-limit]:
            discard(run / f"checkpoint-{old}")
    return target


def not_saved(run: Path, step: int, error: Exception, needed: int) -> str:
    last, free = max(candidates(run), default=None), shutil.disk_usage(run).free
    kept = (
        f"checkpoint-{last} is untouched, and the same command goes on from it"
        if last
        else "there is no earlier one"
    )
    full = free < needed or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    why = (
        f"the disk is full, {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB free"
        if full
        else str(error)
    )
    return f"checkpoint-{step} could not be written to {run}: {why}; {kept}"


def newest(run: Path) -> Path | None:
    """The checkpoint of the highest step whose files are all as they were written; a damaged one is passed over with a warning."""
    for step in sorted(candidates(run), reverse=True):
        path = run / f"checkpoint-{step}"
        if damage := damage_of(path):
            warnings.warn(f"{path} is passed over: {damage}", stacklevel=2)
        else:
            return path
    return None


def candidates(run: Path) -> list[int]:
    """The steps of all folders that are named as checkpoints and have a manifest."""
    found = (NAME.fullmatch(p.name) for p in run.glob("checkpoint-*") if (p / "manifest.json").is_file())
    return [int(match[1]) for match in found if match]


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if f"checkpoint-{manifest['step']}" != path.name:
            return f"its manifest is that of step {manifest['step']}"
        for name, wanted in manifest["files"].items():
            if (
                os.path.getsize(path / Path(name).name) != wanted["size"]
                or sha256(path / Path(name).name) != wanted["sha256"]
            ):
                return f"{name} is not as it was written"
        missing = {NATIVE, "state.safetensors", "state.json"} - set(manifest["files"])
        return f"{min(missing)} is missing" if missing else None
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is damaged"


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(the adapter's tensors by their names in the native file, the state as it was given to save()).  Raises ConfigError when it is damaged."""
    if damage := damage_of(path):
        raise ConfigError(f"{path} cannot be resumed from: {damage}")
    try:
        tensors = load_file(path / NATIVE), load_file(path / "state.safetensors")
        return tensors[0], unpack(json.loads((path / "state.json").read_text()), tensors[1])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be resumed from: {error}") from None


def sweep(run: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for left in [*run.glob(f".*{STAGED}"), *run.glob(f".*{DISCARDED}"), *run.glob(f"samples/*/.*{STAGED}")]:
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def discard(folder: Path) -> None:
    """Delete a folder such that it is never there in part under its own name."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name.lstrip('.')}{DISCARDED}")
        if gone.exists():
            shutil.rmtree(gone)
        folder.rename(gone)
        shutil.rmtree(gone)


def pack(value, name: str = "") -> tuple[dict[str, torch.Tensor], object]:
    """Split nested dicts, lists and values into ({name: tensor}, the rest for JSON, with {"tensor": name} where one was)."""
    if isinstance(value, torch.Tensor):
        return {name: value.detach().cpu().contiguous()}, {"tensor": name}
    if isinstance(value, dict):
        parts = [(key, pack(v, f"{name}.{key}")) for key, v in value.items()]
        return {n: t for _, (tensors, _) in parts for n, t in tensors.items()}, {
            "dict": [[key, rest] for key, (_, rest) in parts]
        }
    if isinstance(value, list | tuple):
        parts = [pack(v, f"{name}.{i}") for i, v in enumerate(value)]
        return {n: t for tensors, _ in parts for n, t in tensors.items()}, {
            type(value).__name__: [rest for _, rest in parts]
        }
    if value is None or isinstance(value, bool | int | float | str):
        return {}, {"value": value}
    raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint can hold")


def unpack(rest, tensors: dict[str, torch.Tensor]):
    """What pack() was given."""
    ((kind, value),) = rest.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack(part, tensors) for key, part in value}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(unpack(part, tensors) for part in value)
    return value
