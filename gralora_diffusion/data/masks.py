"""Which file is the mask of which image, by name.

Beside the image, as OneTrainer and others name them: a-masklabel.png, a_mask.png, "a (mask).png", mask_a.png
or a.png-mask.png of a.png, also with a number at the end, as in a_mask_00001_.png. In a folder of masks:
a.png too, which comes first.
"""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from gralora_diffusion.data.file_names import composed
from gralora_diffusion.data.images import EXTENSIONS

SEPARATORS = "-_. "
LABELS = tuple(map("".join, itertools.product(SEPARATORS, ("masklabel", "condlabel"))))
# OneTrainer's: never images to train on, with or without a partner
WORDS = ("masklabel", "mask", "masks", "matte", "alpha", "seg", "segmentation")  # by precedence
MASKS = tuple(separator + word for word, separator in itertools.product(WORDS, SEPARATORS))
ENDINGS = "|".join(map(re.escape, dict.fromkeys((*MASKS, *LABELS))))
IMAGE_SUFFIXES = "|".join(map(re.escape, sorted(EXTENSIONS)))
COUNTER = r"(?:[-_ ]?\d{1,6}_?| ?\(\d{1,6}\))?"  # of a second mask, a copy, or ComfyUI's SaveImage
AT_THE_END = re.compile(f"(.+?)(?:{IMAGE_SUFFIXES})?({ENDINGS}){COUNTER}", re.I | re.S)
IN_BRACKETS = re.compile(rf"(.+?)[-_. ]?[(\[]({'|'.join(WORDS)})[)\]]{COUNTER}", re.I | re.S)
IN_FRONT = re.compile("mask([-_ ])(.+)", re.I | re.S)
NAMES = "NAME-masklabel.png, NAME_mask.png or NAME-mask.png"


def split_name(path: Path) -> tuple[str, str] | None:
    """(stem of the image, one of MASKS or LABELS) of a file that is named as a mask; None for others."""
    if match := AT_THE_END.fullmatch(path.stem):
        return match[1], match[2].lower()
    if match := IN_BRACKETS.fullmatch(path.stem):
        return match[1], f" {match[2].lower()}"
    if match := IN_FRONT.fullmatch(path.stem):
        return match[2], f"{match[1]}mask"
    return None


def masks_of(paths: Iterable[Path]) -> dict[Path, Path]:
    """{image: its mask} of the images of a folder that have one beside them.

    Raises ValueError that names two files of which each could be the mask.
    """
    paths = list(paths)
    by_stem = stems_of(paths)
    found = {path: mask for path in paths if (mask := first_of(by_stem, stem_of(path), MASKS))}
    masks = set(found.values())
    return {image: mask for image, mask in found.items() if image not in masks}


def masks_in(masks: Iterable[Path], stems: dict[Path, str]) -> dict[Path, Path]:
    """{image: its mask} from a folder of masks. stems: of each image, what its mask's name begins with.

    Raises ValueError that names two files of which each could be the mask.
    """
    by_stem = stems_of(masks)
    found = {image: first_of(by_stem, stem, ("", *MASKS)) for image, stem in stems.items()}
    return {image: mask for image, mask in found.items() if mask}


def stems_of(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """{stem_of() a file, or of the mask that it is with the word at the end: such files}."""
    by_stem = {}
    for path in paths:
        stems = [stem_of(path)]
        if of_mask := split_name(path):
            stems.append(stem_in(path.parent, "".join(of_mask)))
        for stem in dict.fromkeys(stems):
            by_stem.setdefault(stem, []).append(path)
    return by_stem


def first_of(by_stem: dict[str, list[Path]], stem: str, endings: tuple[str, ...]) -> Path | None:
    """The file of the first of these endings. Raises ValueError if there are two."""
    for ending in endings:
        files = by_stem.get(stem + ending, [])
        if len(files) > 1:
            both = f"{files[0].name} and {files[1].name}"
            raise ValueError(f"{both} are masks of one image: remove one of them")
        if files:
            return files[0]
    return None


def companions(paths: Iterable[Path]) -> list[Path]:
    """The masks and condition images among the images of a folder, which are not trained on."""
    paths = list(paths)
    stems = {stem_of(path) for path in paths}
    return [path for path in paths if is_companion(path, stems)]


def is_companion(path: Path, stems: set[str]) -> bool:
    """Whether it is named as a mask of one of these images, or as one of LABELS."""
    of_mask = split_name(path)
    return of_mask is not None and (of_mask[1] in LABELS or stem_in(path.parent, of_mask[0]) in stems)


def without_masks(paths: Iterable[Path]) -> list[Path]:
    """The images of a folder, without their companions()."""
    paths = list(paths)
    masks = set(companions(paths))
    return [path for path in paths if path not in masks]


def stem_of(path: Path) -> str:
    return stem_in(path.parent, path.stem)


def stem_in(folder: Path, stem: str) -> str:
    """A path without its suffix, for comparisons: in lower case, accents in one form."""
    return composed(str(folder / stem)).lower()
