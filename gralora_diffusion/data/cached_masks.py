"""The masks of cached images, on the grid of their latents: in the cache, crop by crop."""

import dataclasses

import PIL

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.cache import Cache, key_of
from gralora_diffusion.data.encode import CachedImage, Shape, check_shared
from gralora_diffusion.data.image_folder import TrainingImage, in_threads
from gralora_diffusion.data.images import CROPS
from gralora_diffusion.data.listing import printable
from gralora_diffusion.data.mask_images import mask_crops_of
from gralora_diffusion.options import ConfigError

VISIBLE = 1 / 16  # of a cell: a crop in which no cell of the mask reaches it shows nothing to train on


def mask_key(image: TrainingImage, shape: Shape, mirrored: bool, center_crop: bool, scale: int) -> str:
    """The cache key of a mask's crops: its content, and everything that its image's crops depend on."""
    versions = 1, PIL.__version__, CROPS
    of_image = image.crop_key, image.size, shape, mirrored, center_crop
    return key_of("mask", *versions, image.mask.identity, *of_image, scale)


def with_cached_masks(
    images: list[tuple[CachedImage, Shape]], config: TrainConfig, scale: int, cache: Cache, accelerator
) -> list[CachedImage]:
    """The cached images with their masks; masks that the cache lacks are added to it.

    scale: pixels on a side of a cell of the latents. Raises ConfigError for a mask that no crop shows.
    """
    flips = (False, True) if config.random_flip else (False,)

    def keys_of(image: TrainingImage, shape: Shape) -> tuple[str, ...]:
        return tuple(mask_key(image, shape, flip, config.center_crop, scale) for flip in flips)

    def write(job: tuple[CachedImage, Shape]) -> None:
        image, shape = job[0].image, job[1]
        if image.mask is None:
            return
        for key, flip in zip(keys_of(image, shape), flips, strict=True):
            if not cache.rows("masks", key):
                how = config.center_crop, flip, image.crop_key, scale
                cache.put("masks", key, mask=mask_crops_of(image.mask.open(), image.size, shape, *how))

    mine = images[accelerator.process_index :: accelerator.num_processes]
    for _ in in_threads(write, mine, config.dataloader_num_workers):
        pass
    accelerator.wait_for_everyone()
    found = []
    for cached, shape in images:
        if cached.image.mask is not None:
            cached = with_mask(cached, keys_of(cached.image, shape), cache)
        found.append(cached)
    return found


def with_mask(cached: CachedImage, keys: tuple[str, ...], cache: Cache) -> CachedImage:
    """The cached image with these entries of its mask; only crops that show some of it are used."""
    check_shared(cache, all(cache.rows("masks", key, check=False) == cached.rows for key in keys))
    shown = [cache.row("masks", keys[0], n)["mask"].max().item() >= VISIBLE for n in range(cached.rows)]
    if not any(shown):
        name, mask = printable(cached.image.path.name), printable(cached.image.mask.path.name)
        problem = f"no crop of {name} shows what its mask {mask} selects"
        ways = "use --use_aspect_ratio_buckets, or crop the image around it"
        raise ConfigError(f"{problem}: {ways}", option="masked_loss")
    crops = tuple(n for n in range(len(keys) * cached.rows) if shown[n // len(keys)])
    return dataclasses.replace(cached, mask_keys=keys, crops=crops)
