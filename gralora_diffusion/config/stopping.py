"""Options: held-out images, scores of the sample images, and which step is kept."""

from dataclasses import dataclass

from gralora_diffusion.config.choices import BEST_BY
from gralora_diffusion.config.groups import EVALUATED, stopping


@dataclass(frozen=True)
class StoppingOptions:
    """Held-out images, scores of the sample images, and which step is kept."""

    validation_split: float = stopping(
        0.0,
        "share of the images held out, to measure the loss on images not trained on",
        label="Validation split (share)",
        hint="Share of the images held out to measure the loss on, e.g. 0.1",
        at_least=0,
        at_most=0.9,
    )
    validation_dir: str | None = stopping(
        None,
        "folder of held-out images with captions, instead of a share",
        label="Validation dataset",
        hint="A dataset of held-out images, instead of a share",
        kind="images",
        resumable=True,
    )
    score_encoders: str | None = stopping(
        None,
        "score the sample images with these encoders, separated by commas; auto: those of gralora evaluate",
        label="Score sample images with",
        hint="Names of encoders, separated by commas; auto for the usual ones",
        kind="encoders",
    )
    keep_best: str | None = stopping(
        None,
        "export the step of the lowest validation loss, or of the highest score",
        label="Keep best",
        blank="last step",
        hint="Step to export: the last, that of the lowest loss on held-out images, or of the best score",
        choices=BEST_BY,
        needs=EVALUATED,
    )
    patience: int | None = stopping(
        None,
        "stop after this many evaluations in a row without improvement",
        label="Patience (evaluations)",
        hint="Stop after this many evaluations in a row without improvement",
        at_least=1,
        needs={"keep_best": True},
        resumable=True,
    )
