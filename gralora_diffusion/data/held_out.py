"""Images that a run holds out: it measures the loss on them and does not train on them."""

import dataclasses
from pathlib import Path

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.caption_notes import check_captions
from gralora_diffusion.data.concept_checks import check_holds_images, check_no_masks
from gralora_diffusion.data.concepts import in_folder
from gralora_diffusion.data.dataset import captions_of, instance
from gralora_diffusion.data.image_folder import TrainingImage, find_images
from gralora_diffusion.data.listing import printable
from gralora_diffusion.data.masked_images import count_of_masks, with_masks
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

SPLIT = 25  # in a generator's key: it chooses the held-out images


def hold_out(
    config: TrainConfig, images: list[TrainingImage], cache: Cache | None = None
) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """(images to train on, held-out images) of a run's instance images, or of --validation_dir.

    Raises ConfigError where nothing is left to train on, or an image would be on both sides.
    """
    if config.validation_dir:
        return images, held_out_folder(config, images, cache)
    if not config.validation_split:
        return images, []
    chosen = chosen_digests({image.digest for image in images}, config.validation_split, config.seed)
    kept = [image for image in images if image.digest not in chosen]
    held_out = [image for image in images if image.digest in chosen]
    if {image.concept for image in kept} != {image.concept for image in images}:
        problem = f"--validation_split {config.validation_split:g} leaves a concept without training images"
        ways = "lower it, or hold out other images with --validation_dir"
        raise ConfigError(f"{problem}: {ways}", option="validation_split")
    return kept, held_out


def chosen_digests(digests: set[str], share: float, seed: int) -> set[str]:
    """A share of these contents, at least one: those of the lowest random numbers.

    Each content's number follows from the seed and itself, so that names and order mean nothing, and a
    further image moves few others between the sides.
    """

    def number(digest: str) -> float:
        return torch.rand(
            1, dtype=torch.double, generator=generator(seed, SPLIT, int(digest[:15], 16))
        ).item()

    return set(sorted(digests, key=number)[: max(1, round(share * len(digests)))])


def held_out_folder(
    config: TrainConfig, images: list[TrainingImage], cache: Cache | None
) -> list[TrainingImage]:
    """The images of --validation_dir, a folder like that of the training images.

    With --masked_loss their masks are beside them, or in the alpha channel.
    """
    prompt = instance(config)[1]
    found = []
    folder = Path(config.validation_dir)
    concepts = in_folder(folder, dataclasses.replace(config, instance_prompt=prompt))
    check_no_masks(concepts, "validation_dir")
    for concept in concepts:
        own = concept.config
        common = dict(skip=own.on_bad_image == "skip", cache=cache, workers=own.dataloader_num_workers)
        how = dict(column=own.caption_column, lines=own.caption_lines)
        check_holds_images(concept, "validation_dir")
        members = find_images(concept.folder, own.instance_prompt, "validation_dir", **how, **common)
        if config.masked_loss:
            members = with_masks(members, concept.folder, None, **common)
        check_captions(captions_of(members), own)
        found += members
    if config.masked_loss:
        note(f"masks for {count_of_masks(found)} of {config.validation_dir}, found beside them")
    trained = {image.digest: image for image in images}
    for image in found:
        if image.digest in trained:
            names = printable(image.path.name), printable(trained[image.digest].path.name)
            problem = f"--validation_dir: {names[0]} is the same image as {names[1]}, which is trained on"
            raise ConfigError(f"{problem}: remove one of them", option="validation_dir")
    return found
