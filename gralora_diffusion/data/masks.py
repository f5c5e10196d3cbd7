"""Masks beside images, as OneTrainer and others name them: a-masklabel.png or a_mask.png of a.png."""

from collections.abc import Iterable
from pathlib import Path

LABELS = ("-masklabel", "-condlabel")  # OneTrainer's: never images to train on, with or without a partner
MASKS = ("-masklabel", "_mask", "-mask")  # by precedence
ENDINGS = (*MASKS, "-condlabel")


def masks_of(paths: Iterable[Path]) -> dict[Path, Path]:
    """{image: its mask} of the images of a folder that have one beside them."""
    paths = list(paths)
    by_stem = {stem_of(path): path for path in paths}
    found = {}
    for path in paths:
        masks = (by_stem.get(stem_of(path) + ending) for ending in MASKS)
        if mask := next((mask for mask in masks if mask is not None), None):
            found[path] = mask
    return {image: mask for image, mask in found.items() if image not in found.values()}


def companions(paths: Iterable[Path]) -> list[Path]:
    """The masks and condition images among the images of a folder: what is beside an image and is none."""
    paths = list(paths)
    stems = {stem_of(path) for path in paths}
    found = []
    for path in paths:
        stem = stem_of(path)
        ending = next((ending for ending in ENDINGS if stem.endswith(ending)), None)
        if ending and (ending in LABELS or stem.removesuffix(ending) in stems):
            found.append(path)
    return found


def stem_of(path: Path) -> str:
    return str(path.with_suffix("")).lower()
