"""Captions and masks of a set from models: which are there, and one image after the other."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from gralora_diffusion.data import make_masks, write_captions
from gralora_diffusion.data.captioner import KINDS, Captioner, load_captioner
from gralora_diffusion.data.listing import reason_of
from gralora_diffusion.data.saliency import load_saliency
from gralora_diffusion.data.tagger import is_tagger, load_tagger
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.caption_files import MAX_CAPTION, caption_of, write_caption
from gralora_diffusion.ui.image_sets import editable, images_of, masks_in
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.sampler import ONE_AT_A_TIME
from gralora_diffusion.ui.workspace import Workspace, quoted

SALIENCY = {"img-focus": "img_focus", "rembg": "rembg"}  # {model: its package}
NO_CAPTIONER = (
    "**No captioning model yet.** Put the folder of a BLIP or Florence-2 model, or of a WD14 tagger "
    "(`model.onnx` and `selected_tags.csv`), into the folder `models`, which is beside `runs` and `images` "
    "in the page's folder (the terminal named it when the page started), then reload the page. A tagger also "
    "needs `pip install 'gralora-diffusion[captions]'`."
)
NO_SALIENCY = (
    "**Masks from a model need a package:** `pip install 'gralora-diffusion[masks]'`, then restart the page."
)
KEPT = "kept its caption"
Progress = tuple[int, int, str]  # (images done, of how many, what happened to the last one)


def captioners(workspace: Workspace) -> list[str]:
    """The names of the models in HOME/models that write captions and whose packages are installed."""
    found = []
    for folder in sorted(path for path in workspace.models.iterdir() if path.is_dir()):
        if is_tagger(folder):
            usable = find_spec("onnxruntime") is not None
        else:
            usable = model_type(folder) in KINDS
        if usable:
            found.append(folder.name)
    return found


def model_type(folder: Path) -> str | None:
    """What config.json of a model in transformers' layout says it is."""
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def saliency_models() -> list[str]:
    """The models that make masks and whose packages are installed."""
    if find_spec("onnxruntime") is None:
        return []
    return [name for name, package in SALIENCY.items() if find_spec(package) is not None]


def caption_set(
    workspace: Workspace, name: str, model: str, prefix: str, overwrite: bool
) -> Iterator[Progress]:
    """Write a caption for each image of a set that has none, or with `overwrite` for all."""
    folder = editable(workspace, name)
    if model not in captioners(workspace):
        raise ConfigError(f"there is no captioning model named {quoted(model)}: choose one from the list")
    prefix = write_captions.one_line(prefix)
    if len(prefix) > MAX_CAPTION:
        raise ConfigError(f"the prefix has {len(prefix)} characters; the limit is {MAX_CAPTION}")
    images = images_of(folder)
    yield 0, checked_count(images, name), f"Loading {model}"
    captioner = loaded_captioner(workspace, model)
    for number, path in enumerate(images, 1):
        yield number, len(images), f"{path.name}: {caption_image(path, captioner, prefix, overwrite)}"


def caption_image(path: Path, captioner: Captioner, prefix: str, overwrite: bool) -> str:
    """What happened, in words. A caption that is typed while the model works is kept without `overwrite`."""
    if caption_of(path) and not overwrite:
        return KEPT
    try:
        text = write_captions.caption_by(captioner, path, prefix)
    except ConfigError:  # the model itself cannot be used
        raise
    except Exception as error:  # a decoder may raise any error on a damaged file
        return reason_of(error)
    try:
        with changing(path.parent):
            if caption_of(path) and not overwrite:
                return KEPT
            write_caption(path, text)
    except ConfigError as error:
        return str(error)
    return text


def loaded_captioner(workspace: Workspace, model: str) -> Captioner:
    """Raises ConfigError, which names the model without its folder."""
    folder = workspace.models / model
    try:
        with ONE_AT_A_TIME:  # transformers sets torch's default dtype while it loads
            return load_tagger(folder, None, None) if is_tagger(folder) else load_captioner(str(folder))
    except ConfigError as error:
        text = str(error).replace("--model ", "").replace(f"{workspace.models}/", "")
        raise ConfigError(f"the model cannot be used: {text}") from None


def mask_set(
    workspace: Workspace, name: str, model: str, threshold: float, overwrite: bool
) -> Iterator[Progress]:
    """Write NAME-masklabel.png beside each image of a set that has no mask, or with `overwrite` for all."""
    folder = editable(workspace, name)
    if model not in saliency_models():
        raise ConfigError(f"there is no mask model named {quoted(model)}: choose one from the list")
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ConfigError(f"the threshold is {quoted(threshold)}; it must be between 0 and 1")
    present = masks_in(folder)
    jobs = []
    for path in images_of(folder):
        mask = present.get(path) or path.with_name(f"{path.stem}-masklabel.png")
        jobs.append(make_masks.Job(path.name, path, mask, present.get(path)))
    yield 0, checked_count(jobs, name), f"Loading {model}"
    saliency = loaded_saliency(model)
    for number, job in enumerate(jobs, 1):
        if overwrite and job.mask.suffix != ".png":
            yield number, len(jobs), f"{job.mask.name} is not a PNG file: delete this mask first"
            continue
        made = make_masks.make_masks([job], saliency, threshold, overwrite)
        text = "mask made" if made.written else "kept its mask"
        yield number, len(jobs), f"{job.name}: {made.bad.get(job.name, text)}"


def loaded_saliency(model: str):
    """Raises ConfigError, which names the model without its option."""
    try:
        return load_saliency(model)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--model ", "")) from None


def checked_count(jobs: list, name: str) -> int:
    if not jobs:
        raise ConfigError(f"the dataset {name} holds no images: add some first")
    return len(jobs)
