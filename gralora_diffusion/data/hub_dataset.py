"""Images from a Hugging Face data set, on the hub or in a local folder that the package datasets reads."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.image_folder import TrainingImage, check, known, plain, refuse, tell
from gralora_diffusion.data.images import MAX_BYTES
from gralora_diffusion.options import ConfigError


def find_rows(config: TrainConfig, skip: bool, cache: Cache | None, workers: int) -> list[TrainingImage]:
    """The images of the data set's split "train".  Raises ConfigError with one sentence that names all rows that cannot be used.

    A streamed data set goes by once, and its images stay in the cache; others are read from where `datasets` keeps them.
    """
    name = config.dataset_name
    if config.streaming and cache is None:
        raise ConfigError("--streaming keeps the images in the cache: drop --no-cache_latents")
    dataset, column = load(config), config.caption_column
    if column is None:
        note(
            f"the images of {name} have the caption of --instance_prompt, as --caption_column names no column"
        )

    def examine(row: tuple) -> TrainingImage | str:
        number, caption, read = row
        try:
            content = read()
            digest, size, note = known(content, cache)
            caption = " ".join((caption or config.instance_prompt or "").split())
            if not caption:
                raise ValueError("no caption, and no --instance_prompt to stand in")
            if config.streaming:
                read = cache.keep(digest, content)
            return TrainingImage(Path(name) / f"row-{number}", caption, digest, size, note, read)
        except ConfigError:
            raise
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            return plain(error)

    results = check(examine, rows(dataset, config), workers)
    refuse(name, {f"row {n}": result for n, result in enumerate(results) if isinstance(result, str)}, skip)
    found = [result for result in results if isinstance(result, TrainingImage)]
    if not found:
        raise ConfigError(f"{name} holds no images that can be used")
    tell(name, found)
    return found


def load(config: TrainConfig):
    """The split "train", its images as files, not decoded.  Raises ConfigError in one sentence."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "--dataset_name needs the package datasets: pip install 'gralora-diffusion[datasets]'"
        ) from None
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
        for flag, column in (
            ("image_column", config.image_column),
            ("caption_column", config.caption_column),
        ):
            if column is not None and column not in columns:
                raise ConfigError(
                    f"--{flag} is {column!r}, which is no column of {name}: it has {', '.join(columns)}"
                )
        return dataset.cast_column(config.image_column, datasets.Image(decode=False))
    except ConfigError:
        raise
    except Exception as error:  # its loaders raise all sorts of things
        raise ConfigError(f"no data set can be read from {name}: {plain(error)}") from None


def rows(dataset, config: TrainConfig) -> Iterator[tuple[int, str | None, Callable[[], bytes]]]:
    """(number, caption or None, a function that reads the image's file) of each row"""
    image, column, limit = config.image_column, config.caption_column, config.max_train_samples
    if config.streaming:
        for number, row in enumerate(itertools.islice(dataset, limit)):
            yield number, row[column] if column else None, lambda entry=row[image]: content_of(entry)
    else:
        captions = dataset[column] if column else None
        for number in range(min(len(dataset), limit or len(dataset))):
            yield (
                number,
                captions[number] if column else None,
                lambda number=number: content_of(dataset[number][image]),
            )


def content_of(entry: dict) -> bytes:
    """The bytes of an image file that a row holds or names.  Raises ValueError in plain words."""
    if not entry:
        raise ValueError("no image")
    if entry.get("bytes") is not None:
        return entry["bytes"]
    path = entry["path"]
    if os.path.isfile(path) and os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"more than the limit of {MAX_BYTES:,} bytes")
    import fsspec  # which datasets brings along; it reads hf:// and zip:// too

    with fsspec.open(path, "rb") as file:
        return file.read()
