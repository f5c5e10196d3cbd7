"""The folders that the page works in, and the only way from a name that a browser sent to a path.

HOME/runs, HOME/images, HOME/models and HOME/adapters.  A browser sends names; a name counts when it is one of those that are there, so that
no path is ever taken from outside.  What the page hands out lies in HOME/.page/served, in folders with random names, and nothing else is served.
"""

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.options import ConfigError

BUNDLED = "robot"  # the set of images that comes with the package
EMBEDDED = "embedded"  # the base that comes with the package
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)  # names that Windows keeps for devices
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Workspace:
    root: Path

    def __post_init__(self):
        object.__setattr__(self, "root", self.root.resolve())
        for folder in (self.runs, self.images, self.models, self.adapters):
            folder.mkdir(parents=True, exist_ok=True)

    runs = property(lambda self: self.root / "runs")
    images = property(lambda self: self.root / "images")
    models = property(lambda self: self.root / "models")
    adapters = property(lambda self: self.root / "adapters")
    served = property(lambda self: self.root / ".page" / "served")

    def run_names(self) -> list[str]:
        """Every run, the newest first; links are not followed."""
        found = [p for p in folders(self.runs) if (p / "config.json").is_file() or (p / "job.json").is_file()]
        return [p.name for p in sorted(found, key=lambda p: (when_made(p), p.name), reverse=True)]

    def run(self, name: str) -> Path:
        if name not in self.run_names():
            raise ConfigError(f"there is no run named {shown(name)}: choose one of the list")
        return self.runs / name

    def set_names(self) -> list[str]:
        return [BUNDLED, *sorted(p.name for p in folders(self.images) if p.name != BUNDLED)]

    def image_set(self, name: str) -> Path:
        if name not in self.set_names():
            raise ConfigError(f"there is no set of images named {shown(name)}: choose one of the list")
        return EXAMPLE if name == BUNDLED else self.images / name

    def base_names(self) -> list[str]:
        """The embedded base, and what lies in HOME/models: folders in diffusers layout and single checkpoints."""
        found = [
            p.name
            for p in self.models.iterdir()
            if p.suffix == ".safetensors" or (p / "model_index.json").is_file()
        ]
        return [EMBEDDED, *sorted(found)]

    def base(self, name: str) -> str | None:
        """What --pretrained_model_name_or_path takes: None for the embedded base, models/NAME, or a hub id as it is."""
        if name in (None, "", EMBEDDED):
            return None
        if name in self.base_names():
            return f"models/{name}"
        return self.hub_id(name)

    def hub_id(self, name: str) -> str:
        if (
            not HUB_ID.fullmatch(name)
            or ".." in name
            or name.split("/")[0] in ("models", "runs", "images", "adapters")
        ):
            raise ConfigError(
                f"{shown(name)} is neither in the folder models nor a hub id such as stabilityai/stable-diffusion-xl-base-1.0"
            )
        return name

    def adapter_names(self) -> list[str]:
        """Runs that have an adapter, their checkpoints as RUN/checkpoint-N, and the files that were added."""
        found = []
        for name in self.run_names():
            if real_file(self.runs / name / "adapter.safetensors"):
                found.append(name)
            steps = sorted(
                (
                    int(p.name[11:])
                    for p in folders(self.runs / name)
                    if re.fullmatch(r"checkpoint-\d+", p.name)
                ),
                reverse=True,
            )
            found += [
                f"{name}/checkpoint-{n}"
                for n in steps
                if real_file(self.runs / name / f"checkpoint-{n}" / "adapter.safetensors")
            ]
        return found + sorted(p.name for p in self.adapters.glob("*.safetensors") if real_file(p))

    def adapter(self, name: str) -> Path:
        """The adapter's own file."""
        if name not in self.adapter_names():
            raise ConfigError(f"there is no adapter named {shown(name)}: choose one of the list")
        return (
            self.adapters / name
            if name.endswith(".safetensors")
            else self.runs / name / "adapter.safetensors"
        )

    def to_serve(self, name: str) -> Path:
        """A place for a file that the page hands out."""
        folder = self.served / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder / name

    def forget_served(self) -> None:
        shutil.rmtree(self.served, ignore_errors=True)
        self.served.mkdir(parents=True)


def new_name(name: str, what: str, taken: list[str] = ()) -> str:
    """A name that may become a folder's; raises ConfigError."""
    name = (name or "").strip(" ")
    if not NAME.fullmatch(name) or ".." in name or name.endswith(".") or RESERVED.fullmatch(name):
        raise ConfigError(
            f"{what} cannot be named {shown(name)}: take up to 64 letters, digits, dots, - and _, and begin with a letter or digit"
        )
    if name.lower() in (other.lower() for other in taken):
        raise ConfigError(f"{what} named {name} is there already: choose another name")
    return name


def free_name(stem: str, taken: list[str]) -> str:
    """STEM-1, STEM-2, ...: the first that nobody has."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:50] or "run"
    return next(name for n in range(1, 10**6) if (name := f"{stem}-{n}") not in taken)


def shown(text, most: int = 80) -> str:
    """What somebody sent, fit for a sentence: quoted, short, no control characters."""
    text = str(text)
    return repr(text if len(text) <= most else text[:most] + "...")


def folders(where: Path) -> list[Path]:
    try:
        return [
            p for p in where.iterdir() if not p.name.startswith(".") and not p.is_symlink() and p.is_dir()
        ]
    except OSError:
        return []


def real_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


def when_made(run: Path) -> float:
    for name in ("job.json", "config.json"):
        try:
            return (run / name).stat().st_mtime
        except OSError:
            continue
    return 0.0
