"""The page's only use of the evaluators: images, prompts and references in, rows of scores out."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

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


def load_encoders(names: list[str]) -> list:
    """Raises ConfigError for a name that is no preset, or where a package is missing."""
    from gralora_diffusion.evaluation.encoders import load_encoder

    if not names:
        raise ConfigError("choose at least one encoder")
    for name in names:
        one_of("the encoder", name, encoder_names())  # presets only: other names may be paths
    try:
        return [load_encoder(name) for name in names]
    except ImportError as error:
        advice = "pip install 'gralora-diffusion[eval]'"
        raise ConfigError(f"the scores need the package {error.name}, which is missing: {advice}") from None


def scores(groups: list[Group], references: list[Path], encoders: list[str], cache: Path) -> list[list]:
    """Rows with the columns HEAD: likeness to the references, fidelity to the prompt, diversity, copies.

    cache: a folder for the features of images.  Raises ConfigError when an encoder cannot be loaded.
    """
    from gralora_diffusion.evaluation.features import image_features
    from gralora_diffusion.evaluation.metrics import ImageSet, References, evaluate
    from gralora_diffusion.evaluation.report import rows_of

    loaded = load_encoders(encoders)
    with Image.open(groups[0].files[0]) as image:
        size = image.size  # references are resized to it
    image_sets = [ImageSet(group.name, group.files, group.prompts) for group in groups]
    against = References(references=references, size=size)
    found = evaluate(loaded, image_sets, against, partial(image_features, cache=cache), paired=False)
    return rows_of(found["scores"])
