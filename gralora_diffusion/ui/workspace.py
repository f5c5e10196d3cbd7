"""The folders that the page works in, and the only way from a name that a browser sent to a path.

HOME/runs, HOME/images, HOME/models and HOME/adapters.  A browser sends names, and only names of what is in
these folders are accepted; no path is taken from outside.  The files that the page serves are in
HOME/.page/served, in folders with random names; nothing else is served.
"""

import os
import re
import secrets
import shutil
from pathlib import Path

from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError

BUNDLED = "robot"  # the set of images that comes with the package
EMBEDDED = "Demo model (64 px emoji)"  # the base that comes with the package
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)  # names that Windows keeps for devices
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
BEST = "checkpoint-best"  # in a run's folder: the adapter of its best step, as the trainer names it
BIN = ".removed"  # in runs, in images and in the history: what can be put back
HISTORY = "history"  # in .page: the images that were generated under Sample
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Workspace:
    """HOME and its folders, which are made where they are missing.

    other_tools: {name: folder of LoRAs of another tool}, as the owner of the server gave them.
    """

    def __init__(self, root: Path, other_tools: dict[str, Path] | None = None):
        self.root = resolved(root)
        self.other_tools = other_tools or {}
        self.runs = self.root / "runs"
        self.images = self.root / "images"
        self.models = self.root / "models"
        self.adapters = self.root / "adapters"
        self.scratch = self.root / ".page"
        self.served = self.scratch / "served"
        self.removed_runs = self.runs / BIN  # see removed.py
        self.removed_images = self.images / BIN
        self.history = self.scratch / HISTORY  # see sample_history.py
        self.removed_history = self.history / BIN
        self._renamed: dict[str, tuple] = {}  # {name of a run: (next name, identity)}, since the start
        for folder in (self.runs, self.images, self.models, self.adapters, self.scratch):
            make_folder(folder)

    def run_names(self) -> list[str]:
        """Every run, the newest first; links are not followed."""
        found = [p for p in folders(self.runs) if (p / "config.json").is_file() or (p / "job.json").is_file()]
        return [p.name for p in sorted(found, key=lambda p: (created(p), p.name), reverse=True)]

    def run(self, name: str) -> Path:
        if name not in self.run_names():
            raise ConfigError(f"there is no run named {quoted(name)}: choose one from the list")
        return self.runs / name

    def note_renaming(self, run: Path, new: str) -> None:
        """Before a run is renamed: browsers go on asking by its earlier name until they know."""
        self._renamed[run.name] = (new, identity(run))

    def forget_name(self, run: str) -> None:
        """Before a run is deleted: its name leads to no other run that had it before."""
        self._renamed.pop(run, None)

    def name_now(self, name: str | None, names: list[str]) -> str | None:
        """The present name of the run, adapter or checkpoint that a browser knows as `name`.

        One of `names`, those of now; None if there is none.
        """
        if name in names:
            return name
        run, slash, checkpoint = name.partition("/") if isinstance(name, str) else ("", "", "")
        seen = set()
        while run not in seen and (known := self._renamed.get(run)):
            seen.add(run)
            run, folder = known
            present = f"{run}{slash}{checkpoint}"
            if present in names and identity(self.runs / run) == folder:
                return present
        return None

    def runs_with_ranks(self) -> list[str]:
        """The runs whose ranks came from gradients, which another run can use."""
        return [name for name in self.run_names() if real_file(self.runs / name / "allocation.json")]

    def set_names(self) -> list[str]:
        return [BUNDLED, *sorted(p.name for p in folders(self.images) if p.name != BUNDLED)]

    def image_set(self, name: str) -> Path:
        if name not in self.set_names():
            raise ConfigError(f"there is no dataset named {quoted(name)}: choose one from the list")
        return EXAMPLE if name == BUNDLED else self.images / name

    def base_names(self) -> list[str]:
        """The embedded base and those in HOME/models: folders in diffusers layout, and single checkpoints."""
        found = []
        for path in self.models.iterdir():
            if path.suffix == ".safetensors" or (path / "model_index.json").is_file():
                found.append(path.name)
        return [EMBEDDED, *sorted(found)]

    def base_choices(self) -> list[tuple[str, str]]:
        """(what the list displays, its value) of the bases that Train offers; an id is typed."""
        own = [(name, name) for name in self.base_names()]
        return [own[0], (f"SDXL 1.0 ({SDXL})", SDXL), *own[1:]]

    def adapter_choices(self) -> list[tuple[str, str]]:
        """(what the list displays, its value) of adapter_names(), a run's own before its checkpoints.

        A run that has ended exports its best step, so that one is offered once.
        """
        names = self.adapter_names()
        found = []
        for name in names:
            run, _, checkpoint = name.partition("/")
            if not checkpoint:
                found.append((f"{name} (best step)" if f"{run}/{BEST}" in names else name, name))
            elif checkpoint != BEST:
                found.append((f"{run}, checkpoint of step {checkpoint.removeprefix('checkpoint-')}", name))
            elif run not in names:
                found.append((f"{run}, best step", name))
        return found

    def base(self, name: str) -> str | None:
        """What --pretrained_model_name_or_path takes: None for the embedded base, models/NAME or a hub id."""
        if name in (None, "", EMBEDDED):
            return None
        if name in self.base_names():
            return f"models/{name}"
        if not is_hub_id(name):
            problem = f"{quoted(name)} is neither in the folder models nor a Hugging Face ID such as {SDXL}"
            raise ConfigError(problem)
        return name

    def base_path(self, base: str | None) -> str | None:
        """A base of base() for this process, whose working directory is not HOME."""
        return str(self.root / base) if base and base.startswith("models/") else base

    def hub_id(self, name: str) -> str:
        if not is_hub_id(name):
            raise ConfigError(f"{quoted(name)} is not a Hugging Face ID, which is OWNER/NAME")
        return name

    def adapter_names(self) -> list[str]:
        """Runs that have an adapter, their checkpoints as RUN/checkpoint-N, and the files that were added.

        RUN/checkpoint-best is the adapter of the run's best step.
        """
        found = []
        for name in self.run_names():
            run = self.runs / name
            if real_file(run / "adapter.safetensors"):
                found.append(name)
            for checkpoint in (BEST, *(f"checkpoint-{step}" for step in checkpoint_steps(run))):
                if real_file(run / checkpoint / "adapter.safetensors"):
                    found.append(f"{name}/{checkpoint}")
        return found + sorted(p.name for p in self.adapters.glob("*.safetensors") if real_file(p))

    def suggested_adapter(self) -> str | None:
        """The one that tabs choose by themselves: of the newest run that has ended, never a checkpoint's."""
        return next((name for name in self.adapter_names() if "/" not in name), None)

    def kept_or_suggested(self, chosen: str | None, suggested: str | None) -> str | None:
        """The chosen adapter where it is still there, and not just what a tab had chosen by itself before."""
        names = self.adapter_names()
        name = self.name_now(chosen, names)
        if name and name != self.name_now(suggested, names):
            return name
        return self.suggested_adapter()

    def adapter(self, name: str) -> Path:
        """The adapter's own file."""
        if name not in self.adapter_names():
            raise ConfigError(f"there is no adapter named {quoted(name)}: choose one from the list")
        if name.endswith(".safetensors"):
            return self.adapters / name
        return self.runs / name / "adapter.safetensors"

    def new_served_path(self, name: str) -> Path:
        """A path for a file that the page serves."""
        folder = self.served / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder / name

    def delete_served(self) -> None:
        """Delete the files that the last page served."""
        shutil.rmtree(self.served, ignore_errors=True)
        self.served.mkdir(parents=True)


def make_folder(path: Path) -> None:
    """Make a folder of HOME where it is missing; it may be a link to one on another disk.

    Raises ConfigError where that is not possible, as when the other disk is not there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        if path.is_symlink():
            reason = f"it is a link to {os.readlink(path)}, which is not there"
        raise ConfigError(f"the folder {path} cannot be used: {reason}") from None


def new_name(name: str, what: str, taken: list[str] = ()) -> str:
    """A name that may become a folder's, with hyphens for spaces; raises ConfigError."""
    name = re.sub(" +", "-", (name or "").strip(" "))
    if not NAME.fullmatch(name) or ".." in name or name.endswith(".") or RESERVED.fullmatch(name):
        rule = "use up to 64 letters, digits, dots, - and _, and begin with a letter or digit"
        raise ConfigError(f"{what} cannot be named {quoted(name)}: {rule}")
    if name.lower() in (other.lower() for other in taken):
        raise ConfigError(f"{what} named {name} already exists: choose another name")
    return name


def free_name(stem: str, taken: list[str]) -> str:
    """STEM-1, STEM-2, ...: the first that is not taken."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:50] or "run"
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def is_hub_id(name: str) -> bool:
    own = name.split("/")[0] in ("models", "runs", "images", "adapters")
    return not own and ".." not in name and HUB_ID.fullmatch(name) is not None


def quoted(text, most: int = 80) -> str:
    """A text from a browser as a message repeats it: quoted, short, without control characters."""
    text = str(text)
    return repr(text if len(text) <= most else text[:most] + "...")


def folders(parent: Path) -> list[Path]:
    """The folders in a folder, without links and hidden ones."""
    try:
        visible = [p for p in parent.iterdir() if not p.name.startswith(".")]
    except OSError:
        return []
    return [p for p in visible if p.is_dir() and not p.is_symlink()]


def identity(folder: Path) -> tuple[int, int] | None:
    """(device, inode) of a folder, which it keeps when it is renamed; None if there is none."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, the last first."""
    matches = [CHECKPOINT.fullmatch(p.name) for p in folders(run)]
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def real_file(path: Path) -> bool:
    """Whether this is a file, neither it nor its folder being a link."""
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


def created(run: Path) -> float:
    """When a run was asked for, or its config written."""
    for name in ("job.json", "config.json"):
        try:
            return (run / name).stat().st_mtime
        except OSError:
            continue
    return 0.0
