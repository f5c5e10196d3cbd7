"""How images are sampled, and what their files say of where they are from."""

from dataclasses import dataclass

from gralora_diffusion.files import without_folders
from gralora_diffusion.sdxl.prompt_chunks import MOST_CHUNKS, PENULTIMATE, PromptRules

EMBEDDED = "embedded tiny base"  # the name of the embedded base in files


@dataclass(frozen=True)
class SamplingSettings:
    """What images of several prompts and seeds have in common.

    size: (height, width) in pixels; None for the base's own. scheduler: a name of SCHEDULERS; None for the
    base's own. clip_skip: as in PromptRules. weighted_prompts: whether brackets in prompts set weights.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    size: tuple[int, int] | None = None
    negative_prompt: str = ""
    scheduler: str | None = None
    clip_skip: int = PENULTIMATE
    weighted_prompts: bool = True

    def rules(self) -> PromptRules:
        """How its prompts are read."""
        return PromptRules(self.weighted_prompts, self.clip_skip, MOST_CHUNKS, cut=False)


@dataclass(frozen=True)
class UsedAdapter:
    """An adapter as files of images name it; file_hash: SHA-256, None for one that is in training."""

    name: str
    strength: float
    file_hash: str | None = None
    tensor_hash: str | None = None  # SHA-256 of the bytes after the header, by which A1111 knows a LoRA


@dataclass(frozen=True)
class Origin:
    """The base and the adapters that images are from, by names without the folders of this machine."""

    model: str
    vae: str | None = None
    revision: str | None = None
    variant: str | None = None
    adapters: tuple[UsedAdapter, ...] = ()
    step: int | None = None  # of the run that is training

    @classmethod
    def of(
        cls,
        base: str | None,
        vae: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        adapters: tuple[UsedAdapter, ...] = (),
        step: int | None = None,
    ) -> "Origin":
        """base and vae: as the options of the same purpose name them, with their folders."""
        model = without_folders(base or EMBEDDED)
        return cls(model, without_folders(vae) if vae else None, revision, variant, adapters, step)
