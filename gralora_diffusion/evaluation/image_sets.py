"""Sets of images to score, with their prompts and the images that they are compared with."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gralora_diffusion.console import counted
from gralora_diffusion.data.captions import from_text
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.mask_images import Mask
from gralora_diffusion.data.text_files import prompts_in
from gralora_diffusion.options import ConfigError


@dataclass(frozen=True)
class ImageSet:
    """Generated images, in order, with the prompt of each where it is known."""

    name: str
    paths: list[Path]
    prompts: list[str] | None = None


@dataclass(frozen=True)
class References:
    """What image sets are compared with, as far as it is given.

    references: the subject's images.  lookalikes: of other subjects like it.
    originals, base: true images and the base's images, one by one.
    size: (width, height) that the first two are cut to before the encoder's preprocessing.
    drop: words left out of the prompts.  masks: of references that have one.
    """

    references: list[Path] = dataclasses.field(default_factory=list)
    lookalikes: list[Path] = dataclasses.field(default_factory=list)
    originals: list[Path] = dataclasses.field(default_factory=list)
    base: list[Path] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None
    drop: tuple[str, ...] = ()
    masks: dict[Path, Mask] = dataclasses.field(default_factory=dict)


def match_partners(run: ImageSet, others: list[Path]) -> tuple[list[Path], str]:
    """The partner of each image among others, and how it was found: "by name", or "by order".

    Names are compared whole, then without suffix, then without leading zeros; by order only where no name is
    shared.  Raises ConfigError when the numbers of images differ, or only some names are shared.
    """
    folder = others[0].parent
    if len(others) != len(run.paths):
        raise ConfigError(
            f"{run.name} has {counted(len(run.paths), 'image')} and {folder} has {len(others)}: "
            "they cannot be compared in pairs"
        )
    for key_of in (whole_name, name_without_suffix, name_without_zeros):
        partners = {key_of(path): path for path in others}
        keys = [key_of(path) for path in run.paths]
        each_once = len(partners) == len(others) == len(set(keys))
        if each_once and partners.keys() == set(keys):
            return [partners[key] for key in keys], "by name"
    if shared := partners.keys() & set(keys):
        raise ConfigError(
            f"{run.name} and {folder} share some names, such as {min(shared)}, but not each exactly once: "
            "give all images the names of their partners, or names of their own to compare them in order"
        )
    return others, "by order"


def whole_name(path: Path) -> str:
    return path.name


def name_without_suffix(path: Path) -> str:
    return path.stem


def name_without_zeros(path: Path) -> str:
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), path.stem)


def with_partners(run: ImageSet, against: References) -> tuple[References, dict[str, str | None]]:
    """The references with partners in the run's order, and {metric: how they were matched}."""
    originals, paired = match_partners(run, against.originals) if against.originals else ([], None)
    base, drift = match_partners(run, against.base) if against.base else ([], None)
    ordered = dataclasses.replace(against, originals=originals, base=base)
    return ordered, dict(paired=paired, drift=drift)


def images_in(where: str | Path) -> list[Path]:
    """The images of a folder, or of a pattern such as out/base-*.png, by name, with numbers in order.

    Raises ConfigError when there are none.
    """
    where = Path(where)
    try:
        paths = list(where.iterdir() if where.is_dir() else where.parent.glob(where.name))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    images = [p for p in paths if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    if not images:
        raise ConfigError(
            f"{where} holds no images, or is neither a folder nor a pattern such as out/base-*.png"
        )
    return sorted(images, key=natural_order)


def images_of_lookalikes(folder: Path, references: list[Path]) -> list[Path]:
    """The images of a folder and of the folders in it, but for copies of the references.

    Raises ConfigError when there are none.
    """
    if not folder.is_dir():
        raise ConfigError(f"--lookalikes {folder} is not a folder", option="lookalikes")
    known = {path.read_bytes() for path in references}
    folders = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    found = []
    for place in folders:
        if place.is_dir() and any(path.suffix.lower() in EXTENSIONS for path in place.iterdir()):
            found += images_in(place)
    others = [path for path in found if path.read_bytes() not in known]
    if not others:
        what = "only images of the subject itself" if found else "no images"
        problem = f"--lookalikes {folder} holds {what}"
        raise ConfigError(f"{problem}: give those of similar subjects", option="lookalikes")
    return others


def natural_order(path: Path) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def common_size(runs: list[ImageSet]) -> tuple[int, int] | None:
    """(width, height) of all generated images; None where they differ.

    None too where one cannot be read: scoring it raises the error.
    """
    sizes = set()
    for run in runs:
        for path in run.paths:
            try:
                with Image.open(path) as image:
                    sizes.add(image.size)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return None
    return sizes.pop() if len(sizes) == 1 else None


def prompts_for(paths: list[Path], file: Path | None = None) -> list[str] | None:
    """The prompt of each image: a line of `file` for as many images in a row, or NAME.txt beside NAME.png.

    None where not all images have a text.  Raises ConfigError when a file cannot be read, or the images are
    no multiple of its lines.
    """
    try:
        if file is None:
            return prompts_beside(paths)
        lines = prompts_in(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts cannot be read: {error}") from None
    return repeated(lines, paths, file)


def prompts_beside(paths: list[Path]) -> list[str] | None:
    texts = [path.with_suffix(".txt") for path in paths]
    if not all(text.is_file() for text in texts):
        return None
    return [from_text(text, "first").text for text in texts]


def repeated(prompts: list[str], paths: list[Path], where) -> list[str]:
    """Each prompt for as many images in a row."""
    each, rest = divmod(len(paths), len(prompts)) if prompts else (0, 1)
    if rest or not each:
        images = counted(len(paths), "image")
        raise ConfigError(
            f"{where} has {counted(len(prompts), 'prompt')} for {images} of {paths[0].parent}: "
            "each prompt must have the same number of images"
        )
    return [prompt for prompt in prompts for _ in range(each)]
