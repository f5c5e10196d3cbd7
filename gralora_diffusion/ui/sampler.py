"""Images from a base with adapters, one at a time; the base is kept in memory between requests."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from gralora_diffusion.checks import parse_size
from gralora_diffusion.config import EMBEDDED_DEFAULTS, SDXL_DEFAULTS
from gralora_diffusion.config.choices import SAMPLERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.sampling_settings import Origin, SamplingSettings
from gralora_diffusion.ui.workspace import Workspace, quoted

# torch's default dtype and seed belong to the process: forecasts of runs and image generation take turns
ONE_AT_A_TIME = threading.Lock()
MAX_STEPS = 100
MAX_STRENGTH = 1.5
MAX_SEED = 2**40
MAX_PROMPT = 1000  # characters
MAX_PIXELS = 2**22  # of an image


@dataclass(frozen=True)
class ImageRequest:
    """What determines one image; `adapters` are (name, strength).

    guidance: None for the base's default. size: "WIDTHxHEIGHT", "" for the base's own. scheduler: "" for the
    base's own.
    """

    prompt: str
    seed: int
    adapters: tuple[tuple[str, float], ...]
    steps: int
    guidance: float | None
    negative_prompt: str = ""
    size: str = ""
    scheduler: str = ""

    @property
    def adapters_text(self) -> str:
        """The adapters as captions name them."""
        return ", ".join(f"{name} at {strength:g}" for name, strength in self.adapters) or "base"

    def checked(self, workspace: Workspace) -> "ImageRequest":
        """Itself; raises ConfigError for values that are out of bounds, whatever a browser sent."""
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty: describe the image")
        for what, text in (("prompt", self.prompt), ("negative prompt", self.negative_prompt)):
            if len(text) > MAX_PROMPT:
                raise ConfigError(f"the {what} has {len(text)} characters; the limit is {MAX_PROMPT}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"the seed is {quoted(self.seed)}; it must be from 0 to {MAX_SEED}")
        if not 1 <= self.steps <= MAX_STEPS:
            rule = f"they must be from 1 to {MAX_STEPS}"
            raise ConfigError(f"the denoising steps are {quoted(self.steps)}; {rule}")
        if self.guidance is not None and not 0 <= self.guidance <= 30:
            raise ConfigError(f"the guidance scale is {quoted(self.guidance)}; it must be from 0 to 30")
        if self.size:
            height, width = parse_size(self.size, "the size")
            if height * width > MAX_PIXELS:
                raise ConfigError(f"the size is {quoted(self.size)}; the limit is {MAX_PIXELS:,} pixels")
        if self.scheduler and self.scheduler not in SAMPLERS:
            rule = f"it must be one of {', '.join(SAMPLERS)}"
            raise ConfigError(f"the scheduler is {quoted(self.scheduler)}; {rule}")
        for name, strength in self.adapters:
            workspace.adapter(name)
            if not 0 <= strength <= MAX_STRENGTH:
                raise ConfigError(f"the strength is {quoted(strength)}; it must be from 0 to {MAX_STRENGTH}")
        if len(dict(self.adapters)) < len(self.adapters):
            raise ConfigError("an adapter is chosen twice: choose another, or none")
        return self


@dataclass(frozen=True)
class Step:
    """A denoising step that was done, counted from 1; preview: of the image, where one was due."""

    number: int
    steps: int
    preview: Image.Image | None


class Sampler:
    """One base in memory with the adapters of the last image; one image is generated at a time."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.lock = ONE_AT_A_TIME
        self.pipeline = None
        self.base = None
        self.loaded = {}  # {adapter: (path, mtime)}
        self.objectives = {}  # {adapter: what it was trained to predict}
        self.used = {}  # {(path, mtime): UsedAdapter}, whose hashes take time

    def generate(
        self,
        request: ImageRequest,
        base: str | None,
        report: Callable[[Step], object] | None = None,
        every: int = 0,
    ) -> Image.Image:
        """An image; `base` as --pretrained_model_name_or_path takes it.

        report: called after each step, with a preview after every so many; none where that is 0. What it
        raises ends the image.
        """
        from gralora_diffusion.devices import best_device
        from gralora_diffusion.sdxl.objective import common_objective
        from gralora_diffusion.sdxl.sampling import as_trained, generate

        request = request.checked(self.workspace)
        guidance = request.guidance
        if guidance is None:
            guidance = (SDXL_DEFAULTS if base else EMBEDDED_DEFAULTS)["guidance_scale"]
        size = parse_size(request.size) if request.size else None
        clip_skip = self.clip_skip(request)
        of_prompts = request.negative_prompt, request.scheduler or None, clip_skip
        settings = SamplingSettings(request.steps, guidance, size, *of_prompts)
        with self.lock:
            self.load_base(base)
            self.set_adapters(dict(request.adapters))
            wanted = [(request.prompt, request.seed)]
            objective = common_objective([self.objectives[name] for name, _ in request.adapters])
            scheduler = as_trained(self.pipeline.scheduler, **objective)
            how = dict(scheduler=scheduler, device=best_device(), origin=self.origin(request))
            if report is not None:
                how["watch"] = reporting(self.pipeline, size, report, every)
            return generate(self.pipeline, wanted, settings, **how)[0]

    def clip_skip(self, request: ImageRequest) -> int:
        """That of the adapters' training.  Raises ConfigError that names two where they differ."""
        from gralora_diffusion.formats.used_adapter import clip_skip_of, common_clip_skip

        paths = {name: self.workspace.adapter(name) for name, _ in request.adapters}
        known = {name: skip for name, path in paths.items() if (skip := clip_skip_of(path)) is not None}
        refuse_different({name: f"clip skip {skip}" for name, skip in known.items()})
        return common_clip_skip(list(paths.values()))

    def origin(self, request: ImageRequest) -> Origin:
        """What an image is from, for the texts in its file; call it once the adapters are loaded."""
        from gralora_diffusion.formats.used_adapter import used_adapter

        used = []
        for name, strength in request.adapters:
            version = self.loaded[name]
            if version not in self.used:
                self.used[version] = used_adapter(self.workspace.adapter(name), strength)
            used.append(replace(self.used[version], strength=strength))
        return Origin.of(self.base, adapters=tuple(used))

    def load_base(self, base: str | None) -> None:
        from gralora_diffusion import load_sdxl
        from gralora_diffusion.devices import best_device, drawing_dtype
        from gralora_diffusion.sdxl.placement import bring

        if self.pipeline is not None and self.base == base:
            return
        self.unload()
        self.pipeline = load_sdxl(self.workspace.base_path(base), dtype=drawing_dtype(best_device()))
        bring(self.pipeline, ("unet",), best_device(), 0)
        self.base = base

    def set_adapters(self, adapters: dict[str, float]) -> None:
        """Use these adapters at these strengths, and no others; {} switches off those that are loaded.

        A merge is kept while they are off: layers compute with the base's weights then.
        """
        from gralora_diffusion import load_adapter
        from gralora_diffusion.adapters.control import layers_of, remove, unmerge

        if adapters:
            files = {name: self.workspace.adapter(name) for name in adapters}
            versions = {name: (str(path), path.stat().st_mtime_ns) for name, path in files.items()}
            if versions != self.loaded:
                unmerge(self.pipeline.unet)
            for name in list(self.loaded):
                if versions.get(name) != self.loaded[name]:
                    del self.loaded[name]
                    remove(self.pipeline, name)
            for name in adapters:
                if name not in self.loaded:
                    with warnings.catch_warnings(action="ignore"):  # the base was chosen on the page
                        facts = load_adapter(self.pipeline, files[name], name=name)
                    self.objectives[name] = facts.get("objective")
                    self.loaded[name] = versions[name]
            self.check_objectives(adapters)
        for layer in layers_of(self.pipeline):
            for name in layer.names:
                adapter = layer.get(name)
                adapter.enabled = name in adapters
                adapter.strength = adapters.get(name, adapter.strength)
        if adapters:
            self.merge_where_it_fits()

    def check_objectives(self, adapters: dict[str, float]) -> None:
        """Raises ConfigError that names two which were trained to predict different things."""
        from gralora_diffusion.sdxl.objective import objective_text

        known = {name: self.objectives[name] for name in adapters if self.objectives[name]}
        refuse_different({name: objective_text(objective) for name, objective in known.items()})

    def merge_where_it_fits(self) -> None:
        """Merge the adapters, which makes the steps faster, where there is room for both weights of a layer.

        T-LoRA's active ranks depend on the timestep, so that it is not merged.
        """
        from gralora_diffusion.adapters.control import merge
        from gralora_diffusion.adapters.registry import adapted_layers, handles
        from gralora_diffusion.devices import available_ram, best_device
        from gralora_diffusion.sdxl.placement import bring, has_room

        device = best_device()
        bring(self.pipeline, ("unet",), device, 0)
        unet = self.pipeline.unet
        layers = adapted_layers(unet).values()
        if all(layer.merged for layer in layers):
            merge(unet)  # nothing to do, unless a strength has changed
            return
        if any(handle.config.tlora for handle in handles(unet).values()):
            return
        weights = sum(layer.weight.nbytes for layer in layers)
        if device.type == "cpu" and 2 * weights > available_ram():
            return
        if has_room(device, 2 * weights):  # and for the VAE, whose decoding takes as much
            merge(unet)

    def unload(self) -> None:
        """Free the memory."""
        from gralora_diffusion.devices import best_device, release_unused

        self.pipeline = None
        self.base = None
        self.loaded = {}
        self.objectives = {}
        self.used = {}
        release_unused(best_device())

    def unload_if_idle(self) -> None:
        """Free the memory unless an image is being generated."""
        if self.pipeline is not None and self.lock.acquire(blocking=False):
            try:
                self.unload()
            finally:
                self.lock.release()


def refuse_different(trained_for: dict[str, str]) -> None:
    """trained_for: {adapter: what it was trained for}.  Raises ConfigError that names two that differ."""
    names = list(trained_for)
    for name in names[1:]:
        if trained_for[name] != trained_for[names[0]]:
            problem = f"{names[0]} was trained for {trained_for[names[0]]}, {name} for {trained_for[name]}"
            raise ConfigError(f"{names[0]} and {name} cannot be used together: {problem}. Use one of them.")


def reporting(pipeline, size: tuple[int, int] | None, report: Callable[[Step], object], every: int):
    """The `watch` of generate() for images of this (height, width), the base's own for None."""
    from gralora_diffusion.sdxl.base import resolution_of
    from gralora_diffusion.sdxl.latent_preview import LatentPreviews, small_image
    from gralora_diffusion.sdxl.sampling import sides

    height, width = size or sides(resolution_of(pipeline))
    previews = LatentPreviews()

    def watch(denoiser, step: int, latents) -> None:
        number, steps = step + 1, denoiser.num_timesteps
        clean = previews.clean(denoiser, step, latents)
        due = every and number % every == 0 and number < steps
        report(Step(number, steps, small_image(pipeline.vae, clean[0], (width, height)) if due else None))

    return watch
