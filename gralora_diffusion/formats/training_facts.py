"""What an adapter's files record of its training, as plain values: the check of them, and their fields.

facts["training"] of an Adapter is a dict with these entries, all of which may be absent:
values: {name: text, number, bool or None}, of which kohya's header has ss_NAME as text
tag_frequency: {name of an image folder: {tag: how many captions have it}}
dataset_dirs, reg_dataset_dirs: {name of an image folder: {"n_repeats": int, "img_count": int}}
resolution: pixels of a side; finished_at: seconds since 1970; thumbnail: a JPEG as a data: URL
"""

import math
import re

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
THUMBNAIL = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}")
MAX_TEXT = 4096  # characters of a value
MAX_THUMBNAIL = 2**18  # characters
MAX_TIME = 253_402_300_000  # seconds since 1970 until the year 10000
MAX_TIMESTEP = 1000
MAX_TAGS = 2**20  # characters of all tags that are recorded: a header has to stay small
ENTRIES = {  # {entry: whether a value is one}
    "values": lambda value: is_dict(value, is_value, NAME.fullmatch),
    "tag_frequency": lambda value: is_dict(value, lambda tags: is_dict(tags, is_count)),
    "dataset_dirs": lambda value: is_dict(value, is_folder),
    "reg_dataset_dirs": lambda value: is_dict(value, is_folder),
    "resolution": lambda value: is_count(value) and 0 < value <= 2**16,
    "timestep_range": lambda value: is_range(value),
    "finished_at": lambda value: is_number(value) and 0 <= value < MAX_TIME,
    "thumbnail": lambda value: is_thumbnail(value),
}


def training_problem(training) -> str | None:
    """The entry of facts["training"] that is not of its type, or None where all are."""
    if not isinstance(training, dict):
        return "training"
    for name, is_right in ENTRIES.items():
        if name in training and not is_right(training[name]):
            return f"training.{name}"
    return None


def is_dict(value, is_right, is_name=bool) -> bool:
    """Whether it is a dict whose values are right, and whose names are as `is_name` wants them."""
    if not isinstance(value, dict):
        return False
    return all(is_name(name) and is_right(part) for name, part in value.items())


def is_value(value) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return value is None or isinstance(value, bool) or is_number(value)


def is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e18 and math.isfinite(value)


def is_range(value) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(map(is_count, value)) and value[0] < value[1] <= MAX_TIMESTEP


def is_count(value) -> bool:
    return type(value) is int and 0 <= value < 1e18


def is_folder(value) -> bool:
    return is_dict(value, is_count) and value.keys() == {"n_repeats", "img_count"}


def is_thumbnail(value) -> bool:
    fits = isinstance(value, str) and len(value) <= MAX_THUMBNAIL
    return fits and THUMBNAIL.fullmatch(value) is not None


def tag_frequency(captions: list[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """{folder: {tag: count}} of (folder, caption) pairs: tags are separated by commas, in lowercase.

    As sd-scripts counts them. Of more than MAX_TAGS characters, the commonest tags are kept.
    """
    found: dict[str, dict[str, int]] = {}
    for folder, caption in captions:
        counts = found.setdefault(folder, {})
        for tag in caption.split(","):
            tag = tag.strip().lower().encode(errors="replace").decode()
            if tag:
                counts[tag] = counts.get(tag, 0) + 1
    return {folder: commonest(counts) for folder, counts in found.items()}


def commonest(counts: dict[str, int]) -> dict[str, int]:
    """The counts in their order, without the rarest ones where the tags are longer than MAX_TAGS."""
    if sum(map(len, counts)) <= MAX_TAGS:
        return counts
    kept = set()
    size = 0
    for tag in sorted(counts, key=counts.get, reverse=True):
        size += len(tag)
        if size > MAX_TAGS:
            break
        kept.add(tag)
    return {tag: count for tag, count in counts.items() if tag in kept}
