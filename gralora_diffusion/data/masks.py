"""Which file is the mask of which image, by name.

Beside the image, as OneTrainer and others name them: a-masklabel.png, a_mask.png or a-mask.png of a.png.
In a folder of masks: a.png too, which comes first.
"""

from collections.abc import Iterable
from pathlib import Path

LABELS = (
    "-masklabel",
    "_masklabel",
    "-condlabel",
    "_condlabel",
)  # OneTrainer's: never images to train on, with or without a partner
MASKS = ("-masklabel", "_masklabel", "_mask", "-mask", ".mask")  # by precedence
ENDINGS = (*MASKS, "-condlabel", "_condlabel")
NAMES = "NAME-masklabel.png, NAME_mask.png or NAME-mask.png"


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
    by_stem = {}
    for path in paths:
        by_stem.setdefault(stem_of(path), []).append(path)
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
    found = []
    for path in paths:
        stem = stem_of(path)
        ending = next((ending for ending in ENDINGS if stem.endswith(ending)), None)
        if ending and (ending in LABELS or stem.removesuffix(ending) in stems):
            found.append(path)
    return found


def without_masks(paths: Iterable[Path]) -> list[Path]:
    """The images of a folder, without their companions()."""
    paths = list(paths)
    masks = set(companions(paths))
    return [path for path in paths if path not in masks]


def stem_of(path: Path) -> str:
    return str(path.with_suffix("")).lower()
