"""The folders of class images: what they hold, and what of it cannot be used."""

import dataclasses
import re
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, note
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.caption_notes import check_captions
from gralora_diffusion.data.concepts import concepts_of, folder_concepts, left_out
from gralora_diffusion.data.image_folder import TrainingImage, find_images
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.listing import has_images, listing, numbered, printable, some
from gralora_diffusion.data.metadata import COLUMNS, metadata_in, read_metadata
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError

GENERATED = re.compile(r"class-([0-9a-f]{12})-(\d{5})\.png")


def class_configs(config: TrainConfig) -> list[TrainConfig]:
    """A config for each set of class images, in the order of TrainingImage.class_set."""
    if not config.with_prior_preservation:
        return []
    if config.concepts is None:
        return [config]
    found = {}
    for concept in concepts_of(config):
        if concept.class_key:
            found.setdefault(concept.class_key, concept.config)
    return list(found.values())


def check_class_folders(config: TrainConfig) -> None:
    """Raises ConfigError, before anything is loaded, for class folders whose images would not be used."""
    unused = (config.class_data_dir or config.class_prompt) and not config.with_prior_preservation
    if unused and not config.prior_by_prediction:
        note("--class_data_dir and --class_prompt have no effect without --with_prior_preservation")
    trained_on = {resolved(concept.folder) for concept in folder_concepts(config)}
    for own in class_configs(config):
        folder = Path(own.class_data_dir)
        own_folders = [folder, *(path for path, *_ in numbered(folder))]
        if trained_on & set(map(resolved, own_folders)):
            problem = f"{printable(folder)} holds the training images: class images need another folder"
            raise ConfigError(f"--class_data_dir {problem}", option="class_data_dir")
        name, read, direct = printable(folder), numbered(folder), given_in(folder, own)
        others = [path.name for path in subfolders_of(folder) if has_images(path) or numbered(path)]
        if metadata_in(folder):  # which names the images
            others = []
        if read and direct:
            problem = f"{name} holds both an image ({direct[0]}) and a subfolder with repeats"
            way = "move all images into such a subfolder"
            named = f"--class_data_dir {problem} ({read[0][0].name})"
            raise ConfigError(f"{named}: {way}", option="class_data_dir")
        if read and not any(given_in(path, own) for path, *_ in read):
            raise no_class_images(folder)
        if others and not read and not direct:
            where = f"{counted(len(others), 'subfolder')} ({some(others)})"
            problem = f"{name} holds class images only in {where}"
            ways = f"name a subfolder, or put repeats before each name, such as '1_{printable(others[0])}'"
            raise ConfigError(f"--class_data_dir {problem}: {ways}", option="class_data_dir")
        if not own.class_prompt and not read:
            problem = "--with_prior_preservation needs --class_data_dir and --class_prompt"
            raise ConfigError(f"{problem}, the prompt of the class images in {name}", option="class_prompt")


def check_class_images(config: TrainConfig, images: list[TrainingImage], cache: Cache | None) -> None:
    """Raises ConfigError for class images that cannot be used; opens those that are there already."""
    for own in class_configs(config):
        folder = Path(own.class_data_dir)
        if numbered(folder):
            check_apart(in_subfolders(own, cache), images)
        elif folder.is_dir():
            check_apart(find_class_images(folder, own.class_prompt, own, cache), images)


def check_apart(of_class: list[TrainingImage], images: list[TrainingImage]) -> None:
    """Raises ConfigError for a class image that is one of the instance images too."""
    trained = {image.digest: image for image in images}
    for image in of_class:
        if image.digest in trained:
            names = printable(image.path.name), printable(trained[image.digest].path.name)
            problem = f"--class_data_dir: {names[0]} is the same image as {names[1]} of the training images"
            raise ConfigError(f"{problem}: remove one of them", option="class_data_dir")


def class_image_facts(config: TrainConfig) -> dict[str, str]:
    """{"class images": how many there are of each set, and how many the base may have to generate}."""
    found = []
    for own in class_configs(config):
        folder = Path(own.class_data_dir)
        if read := numbered(folder):
            count = sum(len(given_in(path, own)) for path, *_ in read)
            files = f"{counted(count, 'file')} in subfolders of {printable(folder.name)}"
            found.append(f"{files}, {left_out_text(folder, 'none')}")
            continue
        given = len(given_in(folder, own)) if folder.is_dir() else 0
        missing = max(0, own.num_class_images - given)
        found.append(f"{given} of your own in {printable(folder.name)}, at most {missing} to generate")
    return {"class images": "; ".join(found)} if found else {}


def given_in(folder: Path, config: TrainConfig) -> list[str]:
    """Names of the images in a folder of class images that were not generated."""
    try:
        names = sorted(path.name for path in folder.iterdir())
        listed = read_metadata(folder, columns_of(config))
    except (OSError, ValueError):
        return []  # find_class_images() says why
    names += sorted(str(path.relative_to(folder)) for path in listed if path.parent != folder)
    images = [name for name in names if Path(name).suffix.lower() in EXTENSIONS and name[0] != "."]
    return [name for name in images if not GENERATED.fullmatch(name)]


def subfolders_of(folder: Path) -> list[Path]:
    return [folder / name for name in listing(folder, "class_data_dir")[1]] if folder.is_dir() else []


def in_subfolders(config: TrainConfig, cache: Cache | None) -> list[TrainingImage]:
    """The images of a class folder with subfolders such as "1_dog": all of them, each with its repeats."""
    folder, found = Path(config.class_data_dir), []
    read = numbered(folder)
    for path, repeats, words in read:
        images = find_class_images(path, words or config.class_prompt, config, cache)
        found += [dataclasses.replace(image, repeats=repeats) for image in images]
    if not found:
        raise no_class_images(folder)
    what = f"{counted(len(found), 'class image')} in subfolders with repeats"
    note(f"{folder} holds {what}: {left_out_text(folder, 'nothing is')}, and nothing is generated")
    return found


def no_class_images(folder: Path) -> ConfigError:
    problem = f"no subfolder with repeats of {printable(folder)} holds an image that can be used"
    return ConfigError(f"--class_data_dir: {problem}", option="class_data_dir")


def left_out_text(folder: Path, nothing: str) -> str:
    """Which subfolders are not read, since their names have no repeats; `nothing`: none."""
    others = left_out(folder, "class_data_dir")
    if not others:
        return f"{nothing} left out"
    return f"{counted(len(others), 'subfolder')} without repeats in the name left out ({some(others)})"


def columns_of(config: TrainConfig) -> tuple[str, ...] | None:
    """The columns of metadata in a folder of class images: the training images' first, if that is set."""
    return (config.caption_column, *COLUMNS) if config.caption_column else None


def find_class_images(
    folder: Path, prompt: str | None, config: TrainConfig, cache: Cache | None
) -> list[TrainingImage]:
    """The images of such a folder, generated ones included. Raises ConfigError as find_images() does."""
    how = dict(column=columns_of(config), lines=config.caption_lines, at_least=0)
    common = dict(skip=config.on_bad_image == "skip", cache=cache, workers=config.dataloader_num_workers)
    found = find_images(folder, prompt, "class_data_dir", **how, **common)
    check_captions([(printable(image.path.name), image.caption) for image in found], config)
    return found
