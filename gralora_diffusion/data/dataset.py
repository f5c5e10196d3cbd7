"""Which images a run trains on."""

import dataclasses
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted
from gralora_diffusion.data.cache import Cache, default_folder
from gralora_diffusion.data.caption_notes import check_captions
from gralora_diffusion.data.captions import Variation
from gralora_diffusion.data.concept_checks import (
    check_columns,
    check_holds_images,
    check_no_masks,
    note_same,
    note_subfolders,
)
from gralora_diffusion.data.concepts import (
    EXAMPLE,
    EXAMPLE_PROMPT,
    Concept,
    concepts_of,
    folder_concepts,
    in_entry,
)
from gralora_diffusion.data.hub_dataset import find_rows
from gralora_diffusion.data.image_folder import TrainingImage, find_images
from gralora_diffusion.data.listing import has_images, numbered, printable
from gralora_diffusion.data.masked_images import check_masks, with_masks
from gralora_diffusion.options import ConfigError


def instance(config: TrainConfig) -> tuple[Path, str | None]:
    """(folder, file of concepts or dataset, prompt) of the instance images."""
    if config.dataset_name is not None:
        return Path(config.dataset_name), config.instance_prompt
    if config.concepts is not None:
        return Path(config.concepts), config.instance_prompt
    if config.instance_data_dir is None:
        return EXAMPLE, config.instance_prompt or EXAMPLE_PROMPT
    return Path(config.instance_data_dir), config.instance_prompt


def instance_images(config: TrainConfig, cache: Cache | None = None) -> list[TrainingImage]:
    """The instance images. Raises ConfigError that names all files that cannot be used."""
    common = dict(skip=config.on_bad_image == "skip", cache=cache, workers=config.dataloader_num_workers)
    if config.dataset_name is not None:
        images = find_rows(config, **common)
        check_captions(captions_of(images), config)
        return images
    concepts = concepts_of(config)
    check_columns(concepts)
    check_no_masks(concepts)
    keys = list(dict.fromkeys(concept.class_key for concept in concepts if concept.class_key))
    found = []
    for number, concept in enumerate(concepts):
        own = concept.config
        with in_entry(concept.entry):
            images = images_of(concept, common)
        about = dict(repeats=concept.repeats, concept=number)
        if config.concepts is not None:
            about["variation"] = Variation.of(own)
            about["class_set"] = keys.index(concept.class_key) if concept.class_key else -1
        found += [dataclasses.replace(image, **about) for image in images]
    note_subfolders(config, concepts)
    note_same(found, concepts)
    if config.masked_loss:
        check_masks(found)
    return found


def images_of(concept: Concept, common: dict) -> list[TrainingImage]:
    """The images of one concept. common: the arguments that find_images() and with_masks() share."""
    own = concept.config
    check_holds_images(concept)
    masks = mask_folder_of(concept)
    how = dict(column=own.caption_column, lines=own.caption_lines, mask_folder=masks)
    images = find_images(concept.folder, own.instance_prompt, **how, **common)
    if own.masked_loss:
        images = with_masks(images, concept.folder, masks, **common)
    check_captions(captions_of(images), own)
    return images


def captions_of(images: list[TrainingImage]) -> list[tuple[str, str]]:
    """[(name, caption)]"""
    return [(printable(image.path.name), image.caption) for image in images]


def mask_folder_of(concept: Concept) -> Path | None:
    """The folder of masks of a concept: for a subfolder such as "10_sks dog", that of its name, if any."""
    if concept.config.mask_dir is None:
        return None
    folder = Path(concept.config.mask_dir)
    if not folder.is_dir():
        problem = f"{printable(folder)} is not a folder: --mask_dir must name a folder of masks"
        raise ConfigError(problem, option="mask_dir")
    if not concept.numbered:
        return folder
    own = folder / concept.folder.name
    if not own.is_dir() and has_images(folder):
        problem = f"--mask_dir {printable(folder)} holds masks itself"
        way = f"move those of {printable(own.name)} to its subfolder of that name"
        raise ConfigError(f"{problem}: {way}", option="mask_dir")
    return own if own.is_dir() else None


def concept_lines(config: TrainConfig, images: list[TrainingImage]) -> list[str]:
    """A line on each concept of a run with several, or with repeats of its own."""
    concepts = folder_concepts(config)
    if len(concepts) == 1 and concepts[0].repeats == 1:
        return []
    lines = []
    for number, concept in enumerate(concepts):
        count = sum(image.concept == number for image in images)
        name = printable(concept.folder.name or concept.folder)
        prompt = concept.config.instance_prompt
        caption = f", {printable(prompt)!r} where there is no caption" if prompt else ""
        lines.append(f"{name}: {counted(count, 'image')} x {concept.repeats}{caption}")
    return lines


def caption_counts(config: TrainConfig, images: list[TrainingImage]) -> str:
    """How many images have a caption of their own, and how many that of a prompt."""
    prompted = sum(image.prompted for image in images)
    source = "the dataset" if config.dataset_name is not None else "files"
    prompt = "--instance_prompt"
    if config.concepts is not None:
        prompt = "prompts"
    elif any(concept.numbered for concept in folder_concepts(config)):
        prompt = "folder names" + (" or --instance_prompt" if config.instance_prompt else "")
    counts = {source: len(images) - prompted, prompt: prompted}
    return ", ".join(f"{count} from {name}" for name, count in counts.items() if count)


def epoch_length(config: TrainConfig, images: list[TrainingImage]) -> int:
    """Images of one epoch: each `repeats` times, or the class images of one folder where those are more."""
    length = sum(image.repeats for image in images) * config.repeats
    generated = config.with_prior_preservation and config.concepts is None
    if generated and not numbered(Path(config.class_data_dir)):
        return max(length, config.num_class_images)
    return length


def image_cache(config: TrainConfig) -> Cache | None:
    """The cache that runs share, unless --no-cache_latents."""
    if not config.cache_latents:
        return None
    try:
        return Cache(config.latent_cache_dir or default_folder())
    except RuntimeError:
        ways = "name a folder with --latent_cache_dir, or use --no-cache_latents"
        problem = f"there is no home folder to keep latents in: {ways}"
        raise ConfigError(problem, option="latent_cache_dir") from None
