"""Images that were generated under Sample: HOME/.page/history, which survives a reload and a restart.

ID.png is the image with its texts, ID.json the request that it was generated with. Favorites are kept, of
the others the newest MOST.
"""

import dataclasses
import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.image_text import save_image
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.run_files import read_json
from gralora_diffusion.ui.sampler import ImageRequest
from gralora_diffusion.ui.served import save_small, still_served
from gralora_diffusion.ui.workspace import Workspace, quoted, real_file

MOST = 400  # images that are no favorites
ID = re.compile(r"\d{20}-[0-9a-f]{8}")  # nanoseconds since 1970, so that names are in order of time
SIDE = 224  # pixels of a thumbnail
TYPES = {  # of an ImageRequest in JSON
    "prompt": str,
    "seed": int,
    "steps": int,
    "guidance": (int, float, type(None)),
    "negative_prompt": str,
    "size": str,
    "scheduler": str,
}
_thumbnails: dict[str, str] = {}  # {id: the served file}


@dataclass(frozen=True)
class Entry:
    """An image of the history."""

    id: str
    request: ImageRequest
    base: str  # as the field Base model of Sample has it
    favorite: bool

    @property
    def text(self) -> str:
        mark = "★ " if self.favorite else ""
        return f"{mark}seed {self.request.seed} · {self.request.adapters_text} · {self.request.prompt[:80]}"


def keep(workspace: Workspace, image: Image.Image, request: ImageRequest, base: str) -> str:
    """Add an image to the history, and delete what is too old; returns its id."""
    folder = workspace.history
    folder.mkdir(exist_ok=True)
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    entry = Entry(name, request, base, favorite=False)
    with changing(workspace.history):
        try:
            save_image(image, folder / f"{name}.png")
            write(folder, entry)
        except OSError:
            unlink(folder, name)
            raise
        for old in [entry for entry in entries(workspace) if not entry.favorite][MOST:]:
            unlink(folder, old.id)
    return name


def write(folder: Path, entry: Entry) -> None:
    facts = dict(request=dataclasses.asdict(entry.request), base=entry.base, favorite=entry.favorite)
    write_text(folder / f"{entry.id}.json", json.dumps(facts, indent=1) + "\n")


def entries(workspace: Workspace, favorites: bool = False) -> list[Entry]:
    """All that can be read, the newest first; favorites: these only."""
    return entries_in(workspace.history, favorites)


def entries_in(folder: Path, favorites: bool = False) -> list[Entry]:
    """The same for a folder of images with their requests."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    found = []
    for path in sorted(folder.glob("*.png"), reverse=True):
        entry = read(folder, path.stem)
        if entry is not None and (entry.favorite or not favorites):
            found.append(entry)
    return found


def read(folder: Path, name: str) -> Entry | None:
    """None for what is no entry."""
    if not ID.fullmatch(name) or not real_file(folder / f"{name}.png"):
        return None
    facts = read_json(folder / f"{name}.json")
    request = request_in(facts.get("request"))
    base = facts.get("base")
    if request is None or not isinstance(base, str):
        return None
    return Entry(name, request, base, facts.get("favorite") is True)


def request_in(facts) -> ImageRequest | None:
    """The request in the JSON of an entry; None where it is none."""
    if not isinstance(facts, dict) or not all(isinstance(facts.get(n), kind) for n, kind in TYPES.items()):
        return None
    adapters = facts.get("adapters")
    if not isinstance(adapters, list):
        return None
    for pair in adapters:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], str) or not isinstance(pair[1], int | float):
            return None
    values = {name: facts[name] for name in TYPES}
    return ImageRequest(adapters=tuple((name, float(value)) for name, value in adapters), **values)


def entry_of(workspace: Workspace, name) -> Entry:
    """The entry of an id that a browser sent.  Raises ConfigError."""
    entry = read(workspace.history, name) if isinstance(name, str) else None
    if entry is None:
        raise ConfigError(f"the history has no image {quoted(name)}: choose one of those displayed")
    return entry


def thumbnail(workspace: Workspace, entry: Entry) -> str:
    """The served file of a small copy."""
    known = _thumbnails.get(entry.id)
    if not still_served(known):
        with Image.open(workspace.history / f"{entry.id}.png", formats=["PNG"]) as image:
            small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        known = _thumbnails[entry.id] = save_small(workspace, small, "history.jpg")
    return known


def served_image(workspace: Workspace, entry: Entry) -> str:
    """A copy of the image's own file, with its texts, that the page may serve."""
    path = workspace.new_served_path(f"seed-{entry.request.seed}.png")
    shutil.copyfile(workspace.history / f"{entry.id}.png", path)
    return str(path)


def toggle_favorite(workspace: Workspace, name: str) -> Entry:
    """The entry as it is then."""
    with changing(workspace.history):
        entry = entry_of(workspace, name)
        entry = dataclasses.replace(entry, favorite=not entry.favorite)
        write(workspace.history, entry)
    return entry


def unlink(folder: Path, name: str) -> None:
    for suffix in (".png", ".json"):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)
