"""What is refused or noted about the folders of a run's concepts before their images are opened."""

import collections
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, note
from gralora_diffusion.data.concepts import Concept, left_out
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.listing import has_images, listing, numbered, numbered_name, printable, some
from gralora_diffusion.data.masks import WORDS, split_name, stem_in, stem_of
from gralora_diffusion.data.metadata import LISTS, metadata_in
from gralora_diffusion.options import ConfigError


def check_columns(concepts: list[Concept]) -> None:
    """Raises ConfigError where --caption_column names a column of nothing."""
    for concept in concepts:
        column = concept.config.caption_column
        if column is not None and metadata_in(concept.folder) is None:
            problem = f"--caption_column names a column of --dataset_name or of {LISTS}"
            where = f"neither is in {printable(concept.folder)}" if len(concepts) > 1 else "there is neither"
            raise ConfigError(f"{problem}, and {where}", option="caption_column")


def check_holds_images(concept: Concept, option: str = "instance_data_dir") -> None:
    """Raises ConfigError for a folder that holds subfolders instead of images. option: names the folder."""
    if concept.numbered or has_images(concept.folder):
        return
    subfolders = listing(concept.folder, option)[1]
    of_kohya = [name for name in subfolders if numbered(concept.folder / name)]
    if of_kohya:
        problem = (
            f"{printable(concept.folder)} holds no images itself; its subfolder {printable(of_kohya[0])}"
        )
        way = f"name it with --{option} {printable(concept.folder / of_kohya[0])}"
        raise ConfigError(f"{problem} holds folders of images: {way}", option=option)
    with_images = [name for name in subfolders if has_images(concept.folder / name)]
    if with_images:
        what = f"only {counted(len(with_images), 'subfolder')} with images ({some(with_images)})"
        problem = f"{printable(concept.folder)} holds no images itself, {what}"
        words = with_images[0].lstrip("0123456789 -_.") or with_images[0]
        ways = f"name a subfolder, or put repeats before each name, such as '10_{printable(words)}'"
        raise ConfigError(f"{problem}: {ways}", option=option)


def check_no_masks(concepts: list[Concept], option: str = "instance_data_dir") -> None:
    """Raises ConfigError for a folder of masks that is named as a concept is: "10_sks_mask" or "10_mask".

    option: the one that names the folder of these folders.
    """
    folders = {stem_of(concept.folder): concept.folder for concept in concepts if concept.numbered}
    for folder in folders.values():
        words = numbered_name(folder.name)[1].lower()
        of_mask = split_name(folder)
        partner = folders.get(stem_in(folder.parent, of_mask[0])) if of_mask else None
        others = [partner] if partner else [other for other in folders.values() if other != folder]
        if (partner or words in WORDS) and (image := with_names_of(folder, others)):
            problem = f"{printable(folder)} holds masks by its name, and its files have the names of images"
            ways = "put masks beside their images, or rename the folder if these are images to train on"
            raise ConfigError(f"{problem} in {printable(image)}: {ways}", option=option)


def with_names_of(folder: Path, others: list[Path]) -> Path | None:
    """The first of the other folders whose images have the names of all in this folder."""
    names = stems_in(folder)
    return next((other for other in others if names and names <= stems_in(other)), None)


def stems_in(folder: Path) -> set[str]:
    """The names of a folder's images, without what is added to those of masks."""
    files = [path for path in listing(folder, "instance_data_dir")[0] if path.suffix.lower() in EXTENSIONS]
    return {stem_in(Path(), (split_name(path) or (path.stem,))[0]) for path in files}


def note_subfolders(config: TrainConfig, concepts: list[Concept]) -> None:
    """Note which subfolders and prompts are not used beside "10_sks dog", and which beside images."""
    replaced = [concept for concept in concepts if concept.unused_prompt]
    for prompt in dict.fromkeys(concept.unused_prompt for concept in replaced):
        names = [concept.folder.name for concept in replaced if concept.unused_prompt == prompt]
        note(f"the prompt {prompt!r} is not used where the folder's name is the prompt: {some(names)}")
    if config.concepts is not None or config.instance_data_dir is None:
        return
    folder = Path(config.instance_data_dir)
    masks = Path(config.mask_dir).name if config.mask_dir else None
    if names := [name for name in left_out(folder) if name != masks]:
        what = f"{counted(len(names), 'subfolder')} left out, whose names do not begin with repeats"
        note(f"{folder} has {what} such as 10_: {some(names)}")
    if config.mask_dir and (names := unmatched(Path(config.mask_dir), concepts)):
        note(f"{config.mask_dir} has {counted(len(names), 'subfolder')} of no concept: {some(names)}")
    if has_images(folder) and numbered(folder):
        names = some([path.name for path, _, _ in numbered(folder)])
        holds = f"holds {LISTS}" if metadata_in(folder) else "holds images itself"
        note(f"{folder} {holds}, so subfolders with repeats are not read as concepts: {names}")


def unmatched(masks: Path, concepts: list[Concept]) -> list[str]:
    """The subfolders of --mask_dir with images that have the name of no concept's folder."""
    names = {concept.folder.name for concept in concepts if concept.numbered}
    if not names:
        return []
    return [name for name in listing(masks, "mask_dir")[1] if name not in names and has_images(masks / name)]


def note_same(images: list[TrainingImage], concepts: list[Concept]) -> None:
    """Note which images are in several concepts."""
    places = collections.defaultdict(dict)
    for image in images:
        places[image.digest].setdefault(image.concept, image.path.name)
    for found in places.values():
        if len(found) > 1:
            names = [f"{concepts[number].folder.name}/{name}" for number, name in found.items()]
            note(f"{' and '.join(map(printable, names))} hold the same bytes, in different concepts")
