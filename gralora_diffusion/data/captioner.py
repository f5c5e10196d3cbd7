"""Captions of images by a model of transformers: BLIP (arXiv 2201.12086) or Florence-2 (arXiv 2311.06242)."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from gralora_diffusion.console import counted, note
from gralora_diffusion.data.listing import printable, reason_of
from gralora_diffusion.devices import best_device
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.libraries import import_libraries

# {model_type: (model, processor, prompt by default)}: classes of transformers, so that no code of a file runs
KINDS = {
    "blip": ("BlipForConditionalGeneration", "BlipProcessor", None),
    "florence2": ("Florence2ForConditionalGeneration", "Florence2Processor", "<DETAILED_CAPTION>"),
}
MOST_TOKENS = 64  # of a caption, by default
FAULTS = ("missing_keys", "mismatched_keys")  # of transformers' loading; what they name would be random


@dataclass(frozen=True)
class Captioner:
    """A model: of(image), what it says of an RGB image, as it comes."""

    name: str
    of: Callable[[Image.Image], str]


def load_captioner(where: str, prompt: str | None = None, max_tokens: int | None = None) -> Captioner:
    """A hub id or a folder in transformers' layout, with safetensors.

    prompt: for BLIP the words that a caption begins with, for Florence-2 a task such as <CAPTION>. Raises
    ConfigError where it cannot be loaded.
    """
    try:
        kind, model, processor = load(where)
    except ConfigError:
        raise
    except Exception as error:  # transformers raises all kinds of errors on damaged files
        problem = f"--model {printable(where)} cannot be loaded: {reason_of(error)}"
        ways = "give the folder or hub id of a BLIP or Florence-2 model with safetensors"
        raise ConfigError(f"{problem}; {ways}", option="model") from None
    words = prompt or KINDS[kind][2]
    most = max_tokens or MOST_TOKENS
    device = model.device

    @torch.no_grad()
    def of(image: Image.Image) -> str:
        text = {} if words is None else dict(text=words)
        inputs = processor(images=image, return_tensors="pt", **text).to(device)
        with quiet():
            ids = model.generate(**inputs, max_new_tokens=most, do_sample=False, num_beams=1)
        return processor.batch_decode(ids, skip_special_tokens=True)[0]

    return Captioner(f"{kind} {where}", of)


@contextlib.contextmanager
def quiet():
    """Without transformers' progress bars and remarks about a model."""
    import_libraries()
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def load(where: str) -> tuple[str, torch.nn.Module, object]:
    """(kind, model, processor). Raises ConfigError for another kind, and what transformers raises."""
    import_libraries()
    import transformers

    local = where.startswith(("/", ".", "~")) or Path(where).exists()
    if local and not (Path(where) / "config.json").is_file():
        problem = f"--model {printable(where)} holds neither config.json nor model.onnx and selected_tags.csv"
        raise ConfigError(f"{problem}: give the folder or hub id of a model", option="model")
    kind = transformers.PretrainedConfig.get_config_dict(where)[0].get("model_type")
    if kind not in KINDS:
        problem = f"--model {printable(where)} is of the kind {printable(kind)!r}"
        raise ConfigError(f"{problem}; it must be one of {', '.join(KINDS)}", option="model")
    if not local:
        note(f"loading {where}, which the first use downloads from the Hugging Face hub")
    model_class, processor_class, _ = KINDS[kind]
    with quiet():
        processor = getattr(transformers, processor_class).from_pretrained(where)
        model, info = getattr(transformers, model_class).from_pretrained(
            where, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    if wrong := sorted(str(key) for fault in FAULTS for key in info[fault]):
        raise ValueError(f"{counted(len(wrong), 'tensor')} missing or of another shape, first {wrong[0]}")
    return kind, model.eval().to(best_device()), processor
