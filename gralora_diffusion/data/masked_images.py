"""The masks of a run's images: found, checked, and counted.

The first source that has one is used: the folder of masks, a file beside the image, its alpha channel.
An image without a mask is trained on in full.
"""

import dataclasses
from pathlib import Path

from gralora_diffusion.console import counted, note
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.image_folder import TrainingImage, inspect_all, refuse_files
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.listing import listing, printable, reason_of, some
from gralora_diffusion.data.mask_images import Mask, mask_in_alpha, mask_in_file
from gralora_diffusion.data.masks import NAMES, masks_in, masks_of, stem_of
from gralora_diffusion.data.metadata import LISTS
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError

OPTION = "masked_loss"


def with_masks(
    images: list[TrainingImage],
    folder: Path,
    mask_folder: Path | None,
    skip: bool,
    cache: Cache | None,
    workers: int,
) -> list[TrainingImage]:
    """The images of a folder, each with its mask if it has one; skip: leave out those whose mask is unusable.

    Raises ConfigError that names all masks that cannot be used.
    """
    files = files_of_masks([image.path for image in images], folder, mask_folder)

    def inspect(image: TrainingImage) -> Mask | str | None:
        """The mask, or why it cannot be used."""
        try:
            if file := files.get(image.path):
                return mask_in_file(file, image.path, image.size, cache)
            return mask_in_alpha(image.path, cache)
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            return reason_of(error)

    found, bad = [], {}
    for image, result in zip(images, inspect_all(inspect, images, workers), strict=True):
        if isinstance(result, str):
            bad[printable(files.get(image.path, image.path))] = result
        else:
            found.append(dataclasses.replace(image, mask=result))
    refuse_files(mask_folder or folder, bad, skip, OPTION)
    return found


def files_of_masks(paths: list[Path], folder: Path, mask_folder: Path | None) -> dict[Path, Path]:
    """{image of the folder: file of its mask}, of the folder of masks first."""
    try:
        beside = {}
        for parent in sorted({path.parent for path in paths}):
            own = {path for path in paths if path.parent == parent}
            pairs = masks_of(sorted(own.union(image_files(parent))))
            for path, mask in pairs.items():
                if path in own and mask in own:
                    problem = f"{mask.name} is named as the mask of {path.name}, and listed to be trained on"
                    raise ValueError(f"{problem}: remove its line from {LISTS}, or rename it")
            beside |= {path: mask for path, mask in pairs.items() if path in own}
        return beside | in_folder(paths, folder, mask_folder)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(printable(error), option=OPTION) from None


def in_folder(paths: list[Path], folder: Path, mask_folder: Path | None) -> dict[Path, Path]:
    """{image: file of its mask} of the folder of masks, whose subfolders are those of the images' folder.

    Raises ConfigError where none of its files is the mask of an image, ValueError where two are of one.
    """
    if mask_folder is None:
        return {}
    if resolved(mask_folder) == resolved(folder):
        problem = f"--mask_dir {printable(mask_folder)} is the folder of the images"
        raise ConfigError(f"{problem}: drop it: masks beside images are found without it", option="mask_dir")
    stems = {path: stem_of(mask_folder / path.relative_to(folder)) for path in paths}
    parents = sorted({mask_folder / path.relative_to(folder).parent for path in paths})
    files = [file for parent in parents for file in image_files(parent)]
    found = masks_in(files, stems)
    if not found:
        problem = f"{printable(mask_folder)} holds no mask for any image of {printable(folder)}"
        ways = f"masks there have the images' names, or {NAMES}"
        raise ConfigError(f"--mask_dir {problem}: {ways}", option="mask_dir")
    used = set(found.values())
    unused = [file.name for file in files if file not in used]
    if unused:
        note(f"{mask_folder} holds {counted(len(unused), 'mask')} without an image: {some(unused)}")
    return found


def image_files(folder: Path) -> list[Path]:
    """The files of a folder that are images by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return [path for path in listing(folder, "mask_dir")[0] if path.suffix.lower() in EXTENSIONS]


def check_masks(images: list[TrainingImage]) -> None:
    """Note how many of a run's images have masks. Raises ConfigError if none has."""
    number = sum(image.mask is not None for image in images)
    if not number:
        problem = "--masked_loss needs masks, and no image has one"
        ways = f"put {NAMES} beside NAME.png, as `gralora mask FOLDER` does, or name a folder with --mask_dir"
        raise ConfigError(f"{problem}: {ways}", option=OPTION)
    rest = "" if number == len(images) else "; images without one are trained on in full"
    note(f"masks for {count_of_masks(images)}{rest}")


def count_of_masks(images: list[TrainingImage]) -> str:
    number = sum(image.mask is not None for image in images)
    return f"{number} of {counted(len(images), 'image')}"
