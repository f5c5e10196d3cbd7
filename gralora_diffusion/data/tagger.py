"""Tags of images by a model.onnx with selected_tags.csv, as SmilingWolf's WD14 taggers of anime images have.

The input is [n, side, side, 3], BGR from 0 to 255, of the image on a white square; the output [n, tags] holds
probabilities in the order of the file's lines.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gralora_diffusion.console import counted
from gralora_diffusion.data.captioner import Captioner
from gralora_diffusion.data.listing import printable
from gralora_diffusion.data.onnx_models import onnx_session
from gralora_diffusion.data.text_files import read_text
from gralora_diffusion.options import ConfigError

MODEL, TAGS = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER = "0", "4"  # categories; others are ratings
THRESHOLD, CHARACTER_THRESHOLD = 0.35, 0.85  # of a probability, by default
SIDE = 448  # where the model does not fix it
MAX_BYTES = 2**24  # of the file of tags
WORD = re.compile("[a-z]{2}", re.I)  # tags without one are faces such as ^_^, whose underscores stay


@dataclass(frozen=True)
class Tag:
    name: str
    category: str


def is_tagger(folder: Path) -> bool:
    return (folder / MODEL).is_file() and (folder / TAGS).is_file()


def load_tagger(folder: Path, threshold: float | None, character_threshold: float | None) -> Captioner:
    """Raises ConfigError where its files cannot be used."""
    tags = read_tags(folder / TAGS)
    least = {
        GENERAL: THRESHOLD if threshold is None else threshold,
        CHARACTER: CHARACTER_THRESHOLD if character_threshold is None else character_threshold,
    }
    session = onnx_session(folder / MODEL, "captions")
    (about,) = session.get_inputs()
    if len(about.shape) != 4 or about.shape[3] != 3:
        problem = f"{printable(folder / MODEL)} has an input of the shape {about.shape}"
        raise ConfigError(f"{problem}, and taggers have [n, side, side, 3]", option="model")
    side = about.shape[1] if isinstance(about.shape[1], int) else SIDE

    def of(image: Image.Image) -> str:
        (values,) = session.run(None, {about.name: pixels_of(image, side)})[:1]
        if values.shape != (1, len(tags)):
            given = counted(values.shape[-1], "value")
            problem = f"{printable(folder / MODEL)} gives {given} for {counted(len(tags), 'tag')}"
            raise ConfigError(f"{problem} of {TAGS}: both must be from the same tagger", option="model")
        return ", ".join(chosen(tags, values[0].tolist(), least))

    return Captioner(f"tagger {folder}", of)


def read_tags(path: Path) -> list[Tag]:
    """Raises ConfigError where the file has no columns name and category."""
    try:
        lines = list(csv.DictReader(io.StringIO(read_text(path, MAX_BYTES).text, newline="")))
        return [Tag(line["name"], line["category"]) for line in lines]
    except (ValueError, KeyError, csv.Error) as error:
        problem = f"{printable(path)} is not a list of tags with the columns name and category"
        raise ConfigError(f"{problem} ({printable(error)})", option="model") from None


def pixels_of(image: Image.Image, side: int) -> np.ndarray:
    """[1, side, side, 3] of an RGB image: BGR, 0 to 255, on a white square."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    return np.ascontiguousarray(pixels[None, :, :, ::-1])


def chosen(tags: list[Tag], values: list[float], least: dict[str, float]) -> list[str]:
    """Names of the tags at or above the threshold of their category: characters first, likely ones first."""
    found = []
    for category in (CHARACTER, GENERAL):
        own = [(value, tag.name) for tag, value in zip(tags, values, strict=True) if tag.category == category]
        own = sorted(((value, name) for value, name in own if value >= least[category]), reverse=True)
        found += [name.replace("_", " ") if WORD.search(name) else name for _, name in own]
    return found
