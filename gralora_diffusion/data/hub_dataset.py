"""Images of a Hugging Face dataset, on the hub or in a local folder that the package datasets reads."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.captions import NoCaption
from gralora_diffusion.data.image_folder import (
    TrainingImage,
    facts_of_file,
    inspect_all,
    note_peculiarities,
    reason_of,
    refuse_files,
    refuse_without_caption,
)
from gralora_diffusion.data.images import MAX_BYTES
from gralora_diffusion.options import ConfigError


def find_rows(config: TrainConfig, skip: bool, cache: Cache | None, workers: int) -> list[TrainingImage]:
    """The images of the dataset's split "train". Raises ConfigError that names all rows that cannot be used.

    A streamed dataset is read once, and its images stay in the cache; others are read from where `datasets`
    keeps them.
    """
    name = config.dataset_name
    if config.streaming and cache is None:
        problem = "--streaming keeps the images in the cache: drop --no-cache_latents"
        raise ConfigError(problem, option="streaming")
    dataset, column = load(config), config.caption_column
    if column is None:
        note(f"all images of {name} have the caption of --instance_prompt: no --caption_column is given")

    def inspect(row: tuple) -> TrainingImage | str:
        number, caption, read = row
        try:
            content = read()
            digest, size, left_out = facts_of_file(content, cache)
            own = " ".join((caption or "").split())
            caption = own or " ".join((config.instance_prompt or "").split())
            if not caption:
                raise NoCaption("no caption, and no --instance_prompt")
            if config.streaming:
                read = cache.keep(digest, content)
            path = Path(name) / f"row-{number}"
            return TrainingImage(path, caption, digest, size, left_out, read, prompted=not own)
        except ConfigError:
            raise
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            if isinstance(error, NoCaption):
                bare.add(f"row {number}")
            return reason_of(error)

    found, bad, bare = [], {}, set()  # bare: rows that lack a caption and nothing else
    for number, result in enumerate(inspect_all(inspect, rows(dataset, config), workers)):
        if isinstance(result, TrainingImage):
            found.append(result)
        else:
            bad[f"row {number}"] = result
    if bare and bare == bad.keys() and not skip:
        way = "give --instance_prompt" if column else "give --instance_prompt or --caption_column"
        refuse_without_caption(name, list(bad), len(bad) + len(found), way, "instance_prompt")
    refuse_files(name, bad, skip, "dataset_name")
    if not found:
        raise ConfigError(f"{name} holds no images that can be used", option="dataset_name")
    note_peculiarities(name, found)
    return found


def load(config: TrainConfig):
    """The split "train", its images as files that are not decoded."""
    try:
        import datasets
    except ImportError:
        problem = "--dataset_name needs the package datasets: pip install 'gralora-diffusion[datasets]'"
        raise ConfigError(problem, option="dataset_name") from None
    name = config.dataset_name
    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(
            name,
            config.dataset_config_name,
            split="train",
            streaming=config.streaming,
            cache_dir=config.cache_dir,
        )
        columns = dataset.column_names or list(next(iter(dataset)))
        for option in ("image_column", "caption_column"):
            column = getattr(config, option)
            if column is not None and column not in columns:
                there = ", ".join(columns)
                problem = f"--{option} is {column!r}, which is not a column of {name}: it has {there}"
                raise ConfigError(problem, option=option)
        return dataset.cast_column(config.image_column, datasets.Image(decode=False))
    except ConfigError:
        raise
    except Exception as error:  # its loaders may raise anything
        problem = f"no dataset can be read from {name}: {reason_of(error)}"
        raise ConfigError(problem, option="dataset_name") from None


def rows(dataset, config: TrainConfig) -> Iterator[tuple[int, str | None, Callable[[], bytes]]]:
    """(number, caption or None, a function that reads the image's file) of each row."""
    image, column, limit = config.image_column, config.caption_column, config.max_train_samples

    def read_row(number: int) -> bytes:
        return content_of(dataset[number][image])

    if config.streaming:
        for number, row in enumerate(itertools.islice(dataset, limit)):
            yield number, row[column] if column else None, functools.partial(content_of, row[image])
        return
    captions = dataset[column] if column else None
    for number in range(min(len(dataset), limit or len(dataset))):
        yield number, captions[number] if column else None, functools.partial(read_row, number)


def content_of(entry: dict) -> bytes:
    """The bytes of an image file that a row holds or names. Raises ValueError, for a message, without one."""
    if not entry:
        raise ValueError("no image")
    if entry.get("bytes") is not None:
        return entry["bytes"]
    path = entry["path"]
    if os.path.isfile(path) and os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"more than the limit of {MAX_BYTES:,} bytes")
    import fsspec  # a dependency of datasets; it reads hf:// and zip:// too

    with fsspec.open(path, "rb") as file:
        return file.read()
