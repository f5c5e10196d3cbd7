"""The adapters that images of the history were generated with: by name, and by the content of their files.

An image's texts hold the SHA-256 of each adapter's file, so that another file of the same name is noticed.
"""

import json
from pathlib import Path

from PIL import Image

from gralora_diffusion.files import sha256
from gralora_diffusion.sdxl.image_text import OWN
from gralora_diffusion.ui.sample_history import Entry
from gralora_diffusion.ui.workspace import Workspace

_hashes: dict[tuple, str] = {}  # {(file, size, mtime): its SHA-256}, which takes a second for a large file


def hash_of(file: Path) -> str:
    stat = file.stat()
    key = (file, stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = sha256(file)
    return _hashes[key]


def recorded_hashes(folder: Path, entry: Entry) -> list[str | None]:
    """The SHA-256 of each adapter's file when the image was generated; None where the image holds none."""
    nothing = [None] * len(entry.request.adapters)
    try:
        with Image.open(folder / f"{entry.id}.png", formats=["PNG"]) as image:
            used = json.loads(image.info[OWN])["adapters"]
        found = [adapter["sha256"] for adapter in used]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, Image.DecompressionBombError):
        return nothing
    return found if len(found) == len(nothing) else nothing


def problem_of(workspace: Workspace, entry: Entry) -> str:
    """What to know before these settings are used again; "" where they give the same image."""
    known = workspace.adapter_names()
    gone, replaced = [], []
    recorded = recorded_hashes(workspace.history, entry)
    for (name, _), digest in zip(entry.request.adapters, recorded, strict=True):
        if name not in known:
            gone.append(name)
        elif digest is not None and hash_of(workspace.adapter(name)) != digest:
            replaced.append(name)
    problems = []
    if gone:
        problems.append(f"no longer available: {', '.join(gone)}; choose another adapter")
    if replaced:
        what = "is not the adapter" if len(replaced) == 1 else "are not the adapters"
        problem = f"{', '.join(replaced)} {what} that this image was generated with"
        problems.append(f"{problem}: these settings give another image")
    return ". ".join(problems)
