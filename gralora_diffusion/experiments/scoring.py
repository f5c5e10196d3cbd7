"""The images of a run, at each strength of its adapter, and their scores."""

import hashlib
import json
from pathlib import Path

from filelock import FileLock
from PIL import Image

from gralora_diffusion.adapters.control import set_strength
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.evaluation.image_sets import ImageSet, References
from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.evaluation.metrics import measure
from gralora_diffusion.experiments.experiment import Experiment
from gralora_diffusion.sdxl.image_text import save_image
from gralora_diffusion.sdxl.sampling import generate
from gralora_diffusion.sdxl.sampling_settings import Origin, SamplingSettings, UsedAdapter


def base_images(pipeline, experiment: Experiment, config: TrainConfig) -> list[Path]:
    """The base's own images of all that a run generates, made by the first run and kept for the others."""
    requests = experiment.prompts_and_seeds()
    identity = [requests, config.num_inference_steps, config.guidance_scale, config.resolution]
    if config.pretrained_model_name_or_path:
        identity += [config.pretrained_model_name_or_path, str(pipeline.unet.dtype)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    folder = experiment.folder / "base" / key
    paths = image_paths(folder, len(requests))
    with FileLock(experiment.folder / ".base.lock"):
        if not all(path.is_file() for path in paths):
            save_images(pipeline, requests, config, folder)
    return paths


def image_paths(folder: Path, number: int) -> list[Path]:
    return [folder / f"{i:03d}.png" for i in range(number)]


def save_images(
    pipeline,
    requests: list[tuple[str, int]],
    config: TrainConfig,
    folder: Path,
    adapters: tuple[UsedAdapter, ...] = (),
) -> list[Path]:
    """Generate an image for each (prompt, seed); adapters: those that the files name."""
    steps, guidance = config.num_inference_steps, config.guidance_scale
    # brackets are plain text, as in the prompts that the images are scored against
    settings = SamplingSettings(steps, guidance, clip_skip=config.clip_skip, weighted_prompts=False)
    base = config.pretrained_model_name_or_path, config.pretrained_vae_model_name_or_path
    origin = Origin.of(*base, config.revision, config.variant, adapters)
    images = generate(pipeline, requests, settings, origin=origin)
    paths = image_paths(folder, len(images))
    for image, path in zip(images, paths, strict=True):
        save_image(image, path)
    return paths


def scores_of(
    pipeline, experiment: Experiment, config: TrainConfig, folder: Path, base: list[Path]
) -> dict[Score, list[float]]:
    """{score: a value per image} at each strength; the base's images give the scores at strength 0."""
    scores = {}
    for strength in experiment.strengths:
        if experiment.strengths != (1.0,):  # only our own adapters have a strength
            set_strength(pipeline.unet, strength)
        of_strength = folder if strength == 1 else folder / f"strength-{strength:g}"
        used = (UsedAdapter(folder.name, strength),)
        paths = save_images(pipeline, experiment.prompts_and_seeds(), config, of_strength, used)
        scores |= score_images(paths, experiment, base, strength)
    return scores | score_images(base, experiment, [], 0.0)


def score_images(
    paths: list[Path], experiment: Experiment, base: list[Path], strength: float
) -> dict[Score, list[float]]:
    """Scores of the images of all prompts; base: the base's images of the same, for the drift."""
    with Image.open(paths[0]) as image:
        size = image.size
    prompts = experiment.scored_prompts
    n = len(prompts)
    name = paths[0].parent.name
    if experiment.held_out:
        against = References(originals=[image.path for image in experiment.held_out], size=size)
    else:
        against = References([image.path for image in experiment.images], size=size)
    scores = {}
    for encoder in experiment.encoders:
        found = measure(encoder, ImageSet(name, paths[:n], prompts), against, experiment.features)
        if base and experiment.drift_prompts:
            base_of_drift = References(base=base[n:])
            drifts = measure(encoder, ImageSet(name, paths[n:]), base_of_drift, experiment.features)
            found += [measured for measured in drifts if measured.metric == METRICS["drift"]]
        for measured in found:
            score = Score(measured.metric, encoder.name, strength)
            scores[score] = [round(value, 6) for value in measured.values.tolist()]
    return scores
