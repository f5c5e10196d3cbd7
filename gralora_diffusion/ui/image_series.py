"""Series of images: prompts, seeds and strengths, each image once it is there, with its steps before it."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from gralora_diffusion.data.text_files import lines_of
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.sampler import ImageRequest, Sampler, Step
from gralora_diffusion.ui.watched import Done, watched
from gralora_diffusion.ui.workspace import quoted

MAX_IMAGES = 8  # of a prompt at a strength
MAX_PROMPTS = 16
MAX_SERIES = 64  # images
MAX_PREVIEW = 20  # steps between two previews
RANDOM_SEEDS = 2**32  # as in other tools


@dataclass(frozen=True)
class Generated:
    """An image, and the base's image of the same prompt and seed where it was wanted."""

    request: ImageRequest
    image: Image.Image
    base_image: Image.Image | None


def prompts_of(text: str) -> list[str]:
    """One prompt for each line that is not empty.  Raises ConfigError where there are none, or too many."""
    found = [line.strip() for line in lines_of(text or "") if line.strip()]
    if not found:
        raise ConfigError("the prompt is empty: describe the image")
    if len(found) > MAX_PROMPTS:
        raise ConfigError(f"there are {len(found)} prompts, one per line; the limit is {MAX_PROMPTS}")
    return found


def random_seed() -> int:
    return secrets.randbelow(RANDOM_SEEDS)


def requests_of(
    first: ImageRequest, prompts: list[str], count: int, strengths: list[float]
) -> list[ImageRequest]:
    """`count` seeds for each prompt, each at every strength of the first adapter; [] for its own strength.

    Raises ConfigError for too many images, and for strengths without an adapter.
    """
    if not 1 <= count <= MAX_IMAGES:
        raise ConfigError(f"the number of images is {quoted(count)}; it must be from 1 to {MAX_IMAGES}")
    if strengths and not first.adapters:
        raise ConfigError("the strength sweep needs an adapter: choose one, or leave the sweep blank")
    total = len(prompts) * count * max(1, len(strengths))
    if total > MAX_SERIES:
        raise ConfigError(f"these are {total} images; the limit is {MAX_SERIES}")
    found = []
    for prompt in prompts:
        for seed in range(first.seed, first.seed + count):
            request = replace(first, prompt=prompt, seed=seed)
            found += at_strengths(request, strengths) if strengths else [request]
    return found


def at_strengths(request: ImageRequest, strengths: list[float]) -> list[ImageRequest]:
    (name, _), *others = request.adapters
    return [replace(request, adapters=((name, strength), *others)) for strength in strengths]


def series(
    sampler: Sampler, requests: list[ImageRequest], base: str | None, with_base: bool, every: int
) -> Iterator[Step | Generated]:
    """Each image once it is there, and its steps before it, with a preview after `every` of them; 0: none.

    The base's image of a prompt and seed is generated once.
    """
    if not 0 <= every <= MAX_PREVIEW:
        raise ConfigError(
            f"the steps between previews are {quoted(every)}; they must be from 0 to {MAX_PREVIEW}"
        )
    base_images = {}
    for request in requests:
        of_base = replace(request, adapters=())
        if with_base and request.adapters and of_base not in base_images:
            base_images[of_base] = yield from followed(sampler, of_base, base, every)
        image = yield from followed(sampler, request, base, every)
        yield Generated(request, image, base_images.get(of_base) if with_base else None)


def followed(sampler: Sampler, request: ImageRequest, base: str | None, every: int):
    """Yields the steps of an image; returns the image."""
    for event in watched(lambda report: sampler.generate(request, base, report, every)):
        if isinstance(event, Done):
            return event.result
        yield event
    raise AssertionError("watched() ends with Done")
