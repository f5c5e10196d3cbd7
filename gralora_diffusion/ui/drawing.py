"""Images from a base with adapters, one at a time, with the base kept in memory between requests."""

import gc
import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from gralora_diffusion import config as defaults
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.validation_images import save_image
from gralora_diffusion.ui.workspace import EMBEDDED, Workspace, free_name, new_name, shown

ONE_AT_A_TIME = (
    threading.Lock()
)  # torch's default dtype and seed are the process's: planning a run and drawing take turns
AS_TRAINED = "as in training"
MOST_IMAGES, MOST_STEPS, MOST_STRENGTH, LONGEST = 8, 100, 1.5, 1000


@dataclass(frozen=True)
class Drawing:
    """What one image is made of; `adapters` are (name, strength)."""

    prompt: str
    seed: int
    adapters: tuple[tuple[str, float], ...]
    steps: int
    guidance: float | None

    def checked(self, home: Workspace) -> "Drawing":
        """Raises ConfigError for what cannot be drawn, whoever sent it."""
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty: write what is to be drawn")
        if len(self.prompt) > LONGEST:
            raise ConfigError(f"the prompt has {len(self.prompt)} characters; it may have {LONGEST}")
        if not 0 <= self.seed <= 2**40:
            raise ConfigError(f"the seed is {shown(self.seed)}; it must be from 0 to {2**40}")
        if not 1 <= self.steps <= MOST_STEPS:
            raise ConfigError(
                f"the denoising steps are {shown(self.steps)}; they must be from 1 to {MOST_STEPS}"
            )
        if self.guidance is not None and not 0 <= self.guidance <= 30:
            raise ConfigError(f"the guidance is {shown(self.guidance)}; it must be from 0 to 30")
        for name, strength in self.adapters:
            home.adapter(name)
            if not 0 <= strength <= MOST_STRENGTH:
                raise ConfigError(f"the strength is {shown(strength)}; it must be from 0 to {MOST_STRENGTH}")
        if len({name for name, _ in self.adapters}) < len(self.adapters):
            raise ConfigError("the second adapter is the same as the first: choose another, or none")
        return self


class Sampler:
    """One base in memory with the adapters that the last image needed.  One image is drawn at a time."""

    def __init__(self, home: Workspace):
        self.home, self.lock, self.pipeline, self.base, self.loaded = home, ONE_AT_A_TIME, None, None, {}

    def draw(self, wanted: Drawing, base: str | None) -> Image.Image:
        """`base` as --pretrained_model_name_or_path takes it."""
        from gralora_diffusion.sdxl.sampling import draw

        wanted = wanted.checked(self.home)
        with self.lock:
            self.put_in(dict(wanted.adapters), base)
            suits = defaults.SDXL_DEFAULTS if base else defaults.EMBEDDED_DEFAULTS
            guidance = suits["guidance_scale"] if wanted.guidance is None else wanted.guidance
            return draw(self.pipeline, [(wanted.prompt, wanted.seed)], wanted.steps, guidance)[0]

    def put_in(self, adapters: dict[str, float], base: str | None) -> None:
        """The base with these adapters at these strengths, and no others; for the base alone those that are there are switched off."""
        import torch

        from gralora_diffusion import load_adapter, load_sdxl
        from gralora_diffusion.adapters.control import enable, remove, set_strength

        if self.pipeline is None or self.base != base:
            self.let_go()
            device = "cuda" if torch.cuda.is_available() else "cpu"
            where = self.home.root / base if base and base.startswith("models/") else base
            self.pipeline = load_sdxl(
                where and str(where), dtype=torch.float16 if device == "cuda" else torch.float32
            ).to(device)
            self.base = base
        if self.loaded:
            enable(self.pipeline, bool(adapters))
        if not adapters:
            return
        files = {name: self.home.adapter(name) for name in adapters}
        versions = {name: (str(path), path.stat().st_mtime_ns) for name, path in files.items()}
        for name in [n for n, version in self.loaded.items() if versions.get(n) != version]:
            del self.loaded[name]
            remove(self.pipeline, name)
        for name, strength in adapters.items():
            if name in self.loaded:
                set_strength(self.pipeline, strength, name)
                continue
            with warnings.catch_warnings(
                action="ignore"
            ):  # a base other than the adapter's own is said by other_base()
                load_adapter(self.pipeline, files[name], strength, name=name)
            self.loaded[name] = versions[name]

    def let_go(self) -> None:
        """Give the memory back."""
        import torch

        self.pipeline, self.base, self.loaded = None, None, {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def rest(self) -> None:
        """Give the memory back unless an image is being drawn."""
        if self.pipeline is not None and self.lock.acquire(blocking=False):
            try:
                self.let_go()
            finally:
                self.lock.release()


def base_of(home: Workspace, adapter: str) -> str | None:
    """The base that an adapter was trained on, as --pretrained_model_name_or_path takes it."""
    name, _, rest = adapter.partition("/")
    if not rest and name.endswith(".safetensors"):
        from gralora_diffusion.formats.read import HEADER
        from gralora_diffusion.formats.safetensors_files import read_safetensors

        header = read_safetensors(home.adapter(adapter))[0].get(HEADER, "{}")
        try:
            facts = json.loads(header)
        except (ValueError, RecursionError):
            facts = None
        base = facts.get("base") if isinstance(facts, dict) else None
        named = base.get("name") if isinstance(base, dict) else None
        return (
            None if named in (None, "embedded tiny base") else home.base(str(named).removeprefix("models/"))
        )
    try:
        base = json.loads((home.run(name) / "config.json").read_text()).get("pretrained_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"the config of {shown(name)} cannot be read: {error}") from None
    return base if base is None else home.base(str(base).removeprefix("models/"))


def prompt_of(home: Workspace, adapter: str) -> str:
    """The prompt that an adapter was trained with, to begin from."""
    try:
        text = json.loads((home.run(adapter.partition("/")[0]) / "config.json").read_text())[
            "instance_prompt"
        ]
        return text if isinstance(text, str) else ""
    except (ConfigError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def chosen_base(home: Workspace, choice: str | None, adapter: str | None) -> str | None:
    """The base that somebody chose, or with no choice the adapter's own."""
    if choice not in (None, "", AS_TRAINED):
        return home.base(choice)
    return base_of(home, adapter) if adapter else home.base(EMBEDDED)


def add_adapter(home: Workspace, upload: str | Path) -> str:
    """Copy somebody's adapter file to HOME/adapters; raises ConfigError unless it is one."""
    from gralora_diffusion.formats.read import read_adapter

    upload = Path(upload)
    if upload.suffix.lower() != ".safetensors":
        raise ConfigError(
            f"{shown(upload.name)} is not an adapter file: they end in .safetensors; others can run code when they are read"
        )
    try:
        read_adapter(upload)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(upload), upload.name)) from None
    taken = [p.stem for p in home.adapters.iterdir()]
    try:
        name = new_name(upload.stem, "an adapter", taken)
    except ConfigError:
        name = free_name(upload.stem, taken)
    shutil.copyfile(upload, home.adapters / f"{name}.safetensors")
    return f"{name}.safetensors"


def serve(home: Workspace, image: Image.Image, name: str = "image.png") -> str:
    """A PNG that the page may show."""
    path = home.to_serve(name)
    save_image(image, path)
    return str(path)


def series(
    studio: Sampler, first: Drawing, count: int, base: str | None, beside: bool
) -> Iterator[tuple[int, Image.Image, Image.Image | None]]:
    """(seed, image, the base's image of the same seed) for `count` seeds, each as soon as it is there."""
    if not 1 <= count <= MOST_IMAGES:
        raise ConfigError(f"the number of images is {shown(count)}; it must be from 1 to {MOST_IMAGES}")
    for n in range(count):
        wanted = replace(first, seed=first.seed + n)
        plain = studio.draw(replace(wanted, adapters=()), base) if beside else None
        yield wanted.seed, studio.draw(wanted, base), plain
