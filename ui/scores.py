"""The only place where the page meets the evaluators: pictures and a set in, rows of scores out."""

from pathlib import Path

from gralora_diffusion.config import ConfigError

HEAD = ["pictures", "score", "n", "mean", "sd", "encoder"]


def scores(groups: dict[str, list[Path]], references: list[Path]) -> list[list]:
    """A row for each group of pictures: how like the subject's pictures they are.  Raises ConfigError when the evaluators are not installed."""
    from PIL import ImageOps

    from gralora_diffusion.data import open_picture
    from gralora_diffusion.evaluation import imagenet_encoder, similarities

    try:
        encode = imagenet_encoder()
    except ImportError as error:
        raise ConfigError(f"the scores need the extra eval, {error.name} is missing: pip install 'gralora-diffusion[eval]'") from None
    rows, subject = [], [open_picture(path) for path in references]
    for name, files in groups.items():
        images = [open_picture(path) for path in files]
        found = similarities(encode(images), encode([ImageOps.fit(picture, images[0].size) for picture in subject]))  # as many pixels on both sides
        rows.append(
            [name, "like the subject", len(found), round(found.mean().item(), 4), round(found.std(correction=0).item(), 4), "EfficientNet-Lite2"]
        )
    return rows
