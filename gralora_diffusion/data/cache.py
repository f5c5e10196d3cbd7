"""A cache on disk, by content: latents, prompt embeddings, and facts about image files.

    FOLDER/latents/ab/ab12....safetensors     the key is a hash of pixels, crops and the VAE's weights
    FOLDER/masks/..., FOLDER/prompts/..., FOLDER/images/...

Runs may share a folder at the same time: an entry is complete or absent, and equal keys mean equal content.
The first axis of an entry's tensors counts its rows; each row has its own SHA-256, so that one can be read
and checked alone. The folder may be deleted whenever no run uses it.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError, TrainingError

DAMAGE = (  # what reading a damaged entry raises
    OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError,
)  # fmt: skip


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gralora_diffusion"


def key_of(*parts) -> str:
    """The key of what follows from these parts, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def weights_hash(*modules: torch.nn.Module) -> str:
    """SHA-256 of all weights with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            total.update(raw(tensor))
    return total.hexdigest()


def raw(tensor: torch.Tensor):
    """The tensor's bytes; not copied where it is contiguous and on the CPU."""
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()


class Cache:
    """Entries of tensors and of small facts in one folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, kind: str, key: str) -> Path:
        suffix = ".json" if kind == "images" else ".safetensors"
        return self.folder / kind / key[:2] / f"{key}{suffix}"

    def rows(self, kind: str, key: str, check: bool = True) -> int:
        """How many rows this entry has; 0 if it is absent or, with `check`, damaged."""
        try:
            with safe_open(self.path(kind, key), "pt") as file:
                digests = json.loads(file.metadata()["rows"])
                if check and any(self._row(file, key, n)[1] != digest for n, digest in enumerate(digests)):
                    return 0
                return len(digests)
        except DAMAGE:
            return 0

    def row(self, kind: str, key: str, number: int) -> dict[str, torch.Tensor]:
        """One row of an entry's tensors, read and checked. Raises TrainingError if absent or damaged."""
        try:
            with safe_open(self.path(kind, key), "pt") as file:
                tensors, digest = self._row(file, key, number)
                if digest == json.loads(file.metadata()["rows"])[number]:
                    return tensors
                reason = "its content has changed"
        except DAMAGE as error:
            reason = str(error)
        problem = f"the cache entry {self.path(kind, key)} was removed or damaged during the run ({reason})"
        raise TrainingError(f"{problem}: run the same command to resume")

    @staticmethod
    def _row(file, key: str, number: int) -> tuple[dict[str, torch.Tensor], str]:
        tensors = {name: file.get_slice(name)[number : number + 1][0] for name in sorted(file.keys())}
        return tensors, row_digest(tensors, key, number)

    def put(self, kind: str, key: str, **tensors: torch.Tensor) -> None:
        """Write an entry. Raises ConfigError where the folder cannot be written."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
        digests = []
        for number in range(len(next(iter(tensors.values())))):
            row = {name: tensor[number] for name, tensor in tensors.items()}
            digests.append(row_digest(row, key, number))

        def write(part: Path) -> None:
            save_file(tensors, part, {"rows": json.dumps(digests)})

        self._write(self.path(kind, key), write)

    def facts(self, key: str) -> dict | None:
        """What put_facts() was given; None if absent or damaged."""
        try:
            entry = json.loads(self.path("images", key).read_text())
            return entry["facts"] if entry["check"] == key_of(key, entry["facts"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put_facts(self, key: str, facts: dict) -> None:
        """Keep facts about an image file."""
        text = json.dumps(dict(facts=facts, check=key_of(key, facts)))
        self._write(self.path("images", key), lambda part: part.write_text(text))

    def keep(self, digest: str, content: bytes) -> Callable[[], bytes]:
        """Keep an image file of a streamed dataset; returns a function that reads it."""
        path = self.folder / "streamed" / digest[:2] / digest
        if not path.is_file() or path.stat().st_size != len(content):
            self._write(path, lambda part: part.write_bytes(content))
        return path.read_bytes

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            with complete_or_absent(path) as part:
                write(part)
        except (OSError, SafetensorError) as error:
            problem = f"the cache in {self.folder} cannot be written ({error})"
            ways = "free some space, name another folder with --latent_cache_dir, or use --no-cache_latents"
            raise ConfigError(f"{problem}: {ways}", option="latent_cache_dir") from None


def row_digest(tensors: dict[str, torch.Tensor], key: str, number: int) -> str:
    """SHA-256 of a row, with the key and number that it belongs to."""
    total = hashlib.sha256(f"{key} {number}".encode())
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(raw(tensor))
    return total.hexdigest()
