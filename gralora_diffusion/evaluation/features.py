"""Unit vectors of images and texts, by an encoder, and their cache by content."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from gralora_diffusion.data.images import open_image
from gralora_diffusion.evaluation.encoders import Encoder
from gralora_diffusion.evaluation.subject_only import SubjectOnly
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError


@torch.no_grad()
def image_features(
    encoder: Encoder,
    paths: list[Path],
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
    cache: Path | None = None,
    subject: SubjectOnly | None = None,
) -> torch.Tensor:
    """Unit vectors of the images in these files, [n, d] fp32 on the CPU.

    size: (width, height) that each is cut to first.  cache: a folder of features by content (file bytes,
    size, encoder's facts).  subject: cuts the subjects out before; their features are not cached.  Raises
    ConfigError, which names the file, for one that is no image, is all of one color, or gives numbers that
    are not finite.
    """
    facts = dataclasses.asdict(encoder)["facts"]
    identity = json.dumps([facts, size], sort_keys=True, default=str).encode()
    keys = [hashlib.sha256(identity + content(path)).hexdigest() for path in paths]
    if subject:  # two files of the same bytes may have different masks
        keys, cache = [str(path) for path in paths], None
    found = {}
    for key in keys:
        vector = recall(cache, key)
        if vector is not None:
            found[key] = vector
    missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in found}
    todo = list(missing.items())
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        images = [open_to_score(path, size, subject) for _, path in batch]
        pixels = torch.stack([encoder.preprocess(image) for image in images])
        vectors = run(encoder, encoder.images, pixels)
        for (key, path), vector in zip(batch, vectors, strict=True):
            if not vector.isfinite().all():
                raise ConfigError(f"{path}: {encoder.name} gives numbers that are not finite for it")
            found[key] = vector
            remember(cache, key, vector)
    return torch.stack([found[key] for key in keys])


@torch.no_grad()
def text_features(encoder: Encoder, texts: list[str], batch_size: int = 64) -> torch.Tensor:
    """Unit vectors of the texts, [n, d] fp32 on the CPU.

    Texts longer than the context are cut, see too_long().
    """
    unique = list(dict.fromkeys(texts))
    parts = []
    for start in range(0, len(unique), batch_size):
        ids = encoder.tokenize(unique[start : start + batch_size], encoder.context)
        parts.append(run(encoder, encoder.texts, ids))
    place = {text: i for i, text in enumerate(unique)}
    return torch.cat(parts)[[place[text] for text in texts]]


def too_long(encoder: Encoder, texts: list[str]) -> list[str]:
    """The texts that the tokenizer cuts without a warning."""
    n = encoder.context
    unique = list(dict.fromkeys(texts))
    short = encoder.tokenize(unique, n)
    long = encoder.tokenize(unique, 8 * n)
    cut = (long[:, :n] != short).any(1) | (long[:, n:] != long[:, -1:]).any(1)
    return [text for text, is_cut in zip(unique, cut.tolist(), strict=True) if is_cut]


def run(encoder: Encoder, side: Callable, inputs: torch.Tensor) -> torch.Tensor:
    """Unit vectors [n, d] of one batch by one side of the encoder: deterministic cuDNN kernels, no TF32."""
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact, torch.autocast(encoder.device.split(":")[0], encoder.dtype, encoder.dtype != torch.float32):
        out = side(inputs.to(encoder.device))
    return F.normalize(out.float().cpu(), dim=-1)


def open_to_score(
    path: Path, size: tuple[int, int] | None, subject: SubjectOnly | None = None
) -> Image.Image:
    """The image, or its subject alone, cut to (width, height).

    Raises ConfigError for one that cannot be scored.
    """
    try:
        image = open_image(path)
    except Exception as error:  # decoders raise all kinds of errors on a damaged file
        raise ConfigError(f"{path} cannot be used: {error}") from None
    if all(low == high for low, high in image.getextrema()):
        color = image.getpixel((0, 0))
        raise ConfigError(
            f"{path} is a single color {color}, which happens when the model's numbers are not finite"
        )
    if subject:
        image = subject.cut_out(path, image)
    return image if size is None else ImageOps.fit(image, size)


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def recall(cache: Path | None, key: str) -> torch.Tensor | None:
    """A vector from the cache; None when it is not there, or the file is not what remember() wrote."""
    try:
        data = (cache / key[:2] / key).read_bytes() if cache else b""
    except OSError:
        return None
    if len(data) <= 32 or len(data) % 4 or hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    return torch.frombuffer(bytearray(data[32:]), dtype=torch.float32)


def remember(cache: Path | None, key: str, vector: torch.Tensor) -> None:
    if cache:
        data = vector.contiguous().numpy().tobytes()
        with complete_or_absent(cache / key[:2] / key) as part:
            part.write_bytes(hashlib.sha256(data).digest() + data)
