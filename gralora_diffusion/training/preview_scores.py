"""Scores of a run's sample images: near the subject, near the prompt, nearest training image."""

from pathlib import Path

import torch
from PIL import ImageOps

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, note
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.evaluation.encoder_names import FOR_EMBEDDED, FOR_SDXL, named_as, parse_encoder_name
from gralora_diffusion.evaluation.encoders import Encoder, load_encoder
from gralora_diffusion.evaluation.features import image_features, run, text_features
from gralora_diffusion.evaluation.similarity import nearest, rowwise, similarities
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.validation_images import prompts_of

MOST = 256  # training images to compare with
BATCH = 16


def encoder_names(config: TrainConfig) -> list[str]:
    """The encoders that score the sample images of a run; [] where nothing does.

    Raises ConfigError for a name of none.
    """
    wanted = config.score_encoders or ("auto" if config.keep_best == "score" else "")
    if wanted == "auto":
        return list(FOR_EMBEDDED if config.pretrained_model_name_or_path is None else FOR_SDXL)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if config.score_encoders is not None and not names:
        raise ConfigError("--score_encoders is empty: name encoders, or auto", option="score_encoders")
    for name in names:
        parse_encoder_name(name, "score_encoders")
    return list(dict.fromkeys(names))


def load_encoders(config: TrainConfig) -> list[Encoder]:
    """Those of encoder_names(), on the CPU, so that the memory of a GPU is left to the training.

    Raises ConfigError where one cannot be loaded, or none reads prompts and --keep_best score needs it.
    """
    try:
        encoders = [load_encoder(name) for name in encoder_names(config)]
    except ConfigError as error:
        raise ConfigError(named_as("score_encoders", str(error)), option="score_encoders") from None
    if config.keep_best == "score" and not any(encoder.texts for encoder in encoders):
        problem = "--keep_best score needs an encoder that reads prompts, and --score_encoders names none"
        raise ConfigError(
            f"{problem}: add a CLIP model, or 'embedded' on the embedded base", option="score_encoders"
        )
    return encoders


class PreviewScores:
    """Scores of sample images in a folder, by these encoders."""

    def __init__(self, encoders: list[Encoder], images: list[TrainingImage], config: TrainConfig):
        """images: the training images, read now, since they may be gone later."""
        self.encoders = encoders
        if len(images) > MOST:
            note(f"the sample images are compared with {MOST} of the {len(images)} training images")
            images = [images[number * len(images) // MOST] for number in range(MOST)]
        size = (config.resolution, config.resolution)
        prompts = [prompt for prompt in prompts_of(config) for _ in range(config.num_validation_images)]
        self.count = len(prompts)
        self.references = [subject_features(encoder, images, size) for encoder in encoders]
        self.texts = [text_features(encoder, prompts) if encoder.texts else None for encoder in encoders]

    def measure(self, folder: Path) -> dict:
        """{subject, prompt, copy, copies, by_encoder} of the images in this folder.

        subject, prompt and copy (cosine with the nearest training image) are means over images and encoders.
        copies: images nearer to a training image than any two of those are to each other, by the encoder that
        counts most. Raises ConfigError where an image is missing or cannot be scored.
        """
        paths = sorted(folder.glob("*.png"))
        if len(paths) != self.count:
            raise ConfigError(f"{folder} holds {len(paths)} of {counted(self.count, 'sample image')}")
        by_encoder = {}
        for encoder, references, texts in zip(self.encoders, self.references, self.texts, strict=True):
            generated = image_features(encoder, paths)
            closeness, _, limit = nearest(generated, references)
            scores = dict(
                subject=similarities(generated, references).mean().item(), copy=closeness.mean().item()
            )
            if limit is not None:
                scores["copies"] = int((closeness > limit).sum())
            if texts is not None:
                scores["prompt"] = rowwise(generated, texts).mean().item()
            by_encoder[encoder.name] = scores
        found = {}
        for name in ("subject", "prompt", "copy"):
            values = [scores[name] for scores in by_encoder.values() if name in scores]
            if values:
                found[name] = sum(values) / len(values)
        counts = [scores["copies"] for scores in by_encoder.values() if "copies" in scores]
        if counts:
            found["copies"] = max(counts)
        return found | dict(by_encoder=by_encoder)


@torch.no_grad()
def subject_features(encoder: Encoder, images: list[TrainingImage], size: tuple[int, int]) -> torch.Tensor:
    """Unit vectors [n, d] of the training images, each cut to (width, height)."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels = [encoder.preprocess(ImageOps.fit(image.open(), size)) for image in batch]
        parts.append(run(encoder, encoder.images, torch.stack(pixels)))
    return torch.cat(parts)
