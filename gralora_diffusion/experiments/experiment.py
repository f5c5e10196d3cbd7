"""What all runs of a sweep with one subject have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.evaluation.encoders import Encoder


@dataclass(frozen=True)
class Experiment:
    """Images, prompts and encoders of the runs.

    prompts: for generated images, which are compared with all images; else the captions of held_out, whose
    images are compared with their own.
    features: (encoder, paths, size) -> unit vectors.  accelerator and encoders are set before the first run.
    held_out_every: steps between measurements of the held-out loss.
    strengths: of the adapter, at which images are generated.
    drift_prompts: without the subject; their images are compared with the base's.
    """

    folder: Path
    config: TrainConfig
    images: list[TrainingImage]
    held_out: list[TrainingImage]
    prompts: list[str]
    features: Callable
    accelerator: object = None
    encoders: tuple[Encoder, ...] = ()
    held_out_every: int | None = None
    strengths: tuple[float, ...] = (1.0,)
    drift_prompts: tuple[str, ...] = ()

    @property
    def scored_prompts(self) -> list[str]:
        return self.prompts or [image.caption for image in self.held_out]

    def prompts_and_seeds(self) -> list[tuple[str, int]]:
        """Of every image of a run: first those that are scored, then those for the drift."""
        scored, drift = self.scored_prompts, self.drift_prompts
        return [*zip(scored, range(len(scored)), strict=True), *zip(drift, range(len(drift)), strict=True)]
