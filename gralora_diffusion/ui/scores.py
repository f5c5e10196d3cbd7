"""The only place where the page meets the evaluators: images, prompts and a set in, rows of scores out."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gralora_diffusion.options import ConfigError, one_of

HEAD = ["images", "score", "n", "mean", "sd", "95 % interval", "encoder"]


@dataclass(frozen=True)
class Group:
    """Images that are scored together, and their prompts."""

    name: str
    files: list[Path]
    prompts: list[str]


def encoder_names() -> list[str]:
    from gralora_diffusion.evaluation.encoder_names import PRESETS

    return list(PRESETS)


def scores(groups: list[Group], references: list[Path], encoders: list[str], cache: Path) -> list[list]:
    """Rows as HEAD: how like the subject's images, how true to the prompt, how varied.  Raises ConfigError when an encoder cannot be had."""
    from PIL import Image

    from gralora_diffusion.evaluation.encoders import load_encoder
    from gralora_diffusion.evaluation.features import image_features
    from gralora_diffusion.evaluation.metrics import ImageSet, References, evaluate
    from gralora_diffusion.evaluation.report import rows_of

    if not encoders:
        raise ConfigError("choose at least one encoder")
    for name in encoders:
        one_of("the encoder", name, encoder_names())  # by name alone: some kinds take paths
    with Image.open(groups[0].files[0]) as image:
        size = image.size  # as many pixels on both sides
    try:
        loaded = [load_encoder(name) for name in encoders]
    except ImportError as error:
        raise ConfigError(
            f"the scores need the extra eval, {error.name} is missing: pip install 'gralora-diffusion[eval]'"
        ) from None
    runs = [ImageSet(group.name, group.files, group.prompts) for group in groups]
    found = evaluate(
        loaded,
        runs,
        References(references=references, size=size),
        partial(image_features, cache=cache),
        paired=False,
    )
    return rows_of(found["scores"])
