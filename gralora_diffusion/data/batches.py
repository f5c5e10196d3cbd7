"""The series of images that a run trains on, a function of (seed, position): it resumes at any step.

Position p belongs to image p % group of batch p // group, where `group` counts the images of a batch over all
processes. A batch holds images of one bucket only. In a cycle of as many batches as there are images, each
bucket comes as often as it has images, in a random order of the cycle. Each bucket's images are an endless
series of epochs, shuffled for each epoch, which continues where the bucket's last batch ended. So every image
comes equally often, and two processes see what one sees with twice the batch size. Without buckets all images
are in one. An image with repeats of its own counts as so many images.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.cached_masks import with_cached_masks
from gralora_diffusion.data.captions import Variation, forms_of
from gralora_diffusion.data.encode import CachedImage, LatentKeys, Shape, cached_images
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.data.images import bucket_of
from gralora_diffusion.seeding import generator

# What a generator's key says it is for; encode.py has 3, and loss.py has 4.
EPOCH, DROPPED, ORDER, BUCKETS = 2, 20, 21, 22
CLASS_SET = 2**21  # times the number of a set of class images, added to the key of their order
CLASS = 2**41  # added to a position, it is that of the class image beside the instance image


@dataclass(frozen=True)
class Example:
    """One crop of one image with everything that belongs to it."""

    path: Path
    caption: str  # empty where it is dropped
    moments: torch.Tensor  # [2, channels, h/8, w/8]: mean and std of the scaled latents
    time_ids: torch.Tensor  # [6]
    weight: float  # of its loss
    position: int  # the key of its noise and timestep
    mask: torch.Tensor | None = None  # [h/8, w/8] in [0, 1]; None: the whole image counts


@dataclass(frozen=True)
class BatchPlan:
    """All images of a run in the cache, by bucket, and how they become batches."""

    config: TrainConfig
    cache: Cache
    group: int  # images of a batch over all processes
    instance: tuple[list[CachedImage], ...]  # by bucket; an image stands there as often as it repeats
    classes: dict[int, tuple[list[CachedImage], ...]]  # {class_set: by the same buckets}

    def shapes(self) -> int:
        """How many image shapes the batches have."""
        return len(self.instance)

    def captions(self) -> list[str]:
        """Every caption that examples_at() can give."""
        found = set()
        for buckets in self.classes.values():
            for bucket in buckets:
                found.update(cached.image.caption for cached in bucket)
        for image in {id(c.image): c.image for bucket in self.instance for c in bucket}.values():
            variation = variation_of(image, self.config)
            found.update(forms_of(image.caption, variation, self.config.weighted_captions))
            if variation.caption_dropout:
                found.add("")
        return sorted(found)


def examples_at(plan: BatchPlan, positions: Sequence[int]) -> list[Example]:
    """The examples at these positions, and after them a class example for each that has class images."""
    config, seed = plan.config, plan.config.seed
    places = [place(plan, position) for position in positions]
    examples, class_sets = [], []
    for position, (bucket, number) in zip(positions, places, strict=True):
        cached = shuffled(plan.instance[bucket], number, seed, bucket, config.repeats)
        variation = variation_of(cached.image, config)
        caption = caption_at(cached.image.caption, position, seed, variation, config.weighted_captions)
        moments, time_ids = cached.crop_at(plan.cache, seed, position)
        mask = cached.mask_at(plan.cache, seed, position)
        examples.append(Example(cached.image.path, caption, moments, time_ids, 1.0, position, mask))
        class_sets.append(cached.image.class_set)
    for position, (bucket, number), class_set in zip(positions, places, class_sets, strict=True):
        if class_set not in plan.classes:
            continue
        key = bucket + CLASS + class_set * CLASS_SET
        cached = shuffled(plan.classes[class_set][bucket], number, seed, key)
        image, weight = cached.image, config.prior_loss_weight
        moments, time_ids = cached.crop_at(plan.cache, seed, position + CLASS)
        examples.append(Example(image.path, image.caption, moments, time_ids, weight, position + CLASS))
    return examples


def place(plan: BatchPlan, position: int) -> tuple[int, int]:
    """(bucket, position in the bucket's own series)."""
    batch, offset = divmod(position, plan.group)
    sizes = tuple(len(bucket) for bucket in plan.instance)
    if len(sizes) == 1:
        return 0, position
    cycle, slot = divmod(batch, sum(sizes))
    bucket, earlier = cycle_of_buckets(sizes, plan.config.seed, cycle)[slot]
    return bucket, (cycle * sizes[bucket] + earlier) * plan.group + offset


@functools.lru_cache(maxsize=4)
def cycle_of_buckets(sizes: tuple[int, ...], seed: int, cycle: int) -> list[tuple[int, int]]:
    """(bucket, how often it came before in this cycle) of each batch of a cycle."""
    owners = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    seen, order = [0] * len(sizes), []
    for slot in permutation(len(owners), seed, BUCKETS, cycle):
        bucket = owners[slot]
        order.append((bucket, seen[bucket]))
        seen[bucket] += 1
    return order


def shuffled(images: list[CachedImage], number: int, seed: int, key: int, repeats: int = 1) -> CachedImage:
    """The image at this number of an endless series, in which each comes `repeats` times per epoch."""
    epoch, slot = divmod(number, len(images) * repeats)
    return images[permutation(len(images) * repeats, seed, EPOCH, epoch + key * 2**20)[slot] % len(images)]


@functools.lru_cache(maxsize=64)
def permutation(n: int, *key: int) -> list[int]:
    return torch.randperm(n, generator=generator(*key)).tolist()


def variation_of(image: TrainingImage, config: TrainConfig) -> Variation:
    """How the caption of an instance image varies."""
    return image.variation or Variation.of(config)


def caption_at(caption: str, position: int, seed: int, variation: Variation, weighted: bool = False) -> str:
    """The form of an image's caption at this position."""
    if variation.caption_dropout:
        random = torch.rand(1, generator=generator(seed, DROPPED, position)).item()
        if random < variation.caption_dropout:
            return ""
    forms = forms_of(caption, variation, weighted)
    return forms[torch.randint(len(forms), (1,), generator=generator(seed, ORDER, position)).item()]


def plan_batches(
    images: list[TrainingImage],
    class_images: list[TrainingImage],
    vae,
    config: TrainConfig,
    cache: Cache,
    accelerator,
    keys: LatentKeys | None = None,
) -> BatchPlan:
    """Sort the images into buckets, and encode what the cache lacks of them.

    keys: made before the VAE was moved to a GPU.
    """
    instance = in_buckets(images, config)
    classes = {}
    for number in sorted({image.class_set for image in class_images}):
        members = [image for image in class_images if image.class_set == number]
        same_shape = in_buckets(members, config)
        # A bucket without class images of its shape takes crops of all of them.
        classes[number] = {shape: same_shape.get(shape, members) for shape in instance}
    jobs = []
    for buckets in (instance, *classes.values()):
        for shape, members in buckets.items():
            jobs += [(image, shape) for image in members]
    found = cached_images(jobs, vae, config, cache, accelerator, keys)
    if config.masked_loss:
        shapes = [shape for _, shape in jobs]
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        found = with_cached_masks(list(zip(found, shapes, strict=True)), config, scale, cache, accelerator)
    cached = iter(found)

    def take(buckets: dict[Shape, list]) -> tuple[list[CachedImage], ...]:
        return tuple(repeated(list(itertools.islice(cached, len(members)))) for members in buckets.values())

    group = config.train_batch_size * accelerator.num_processes
    by_bucket = take(instance)
    return BatchPlan(config, cache, group, by_bucket, {n: take(buckets) for n, buckets in classes.items()})


def repeated(images: list[CachedImage]) -> list[CachedImage]:
    """The images, each as often as it repeats: all of them, then those with two repeats or more, ..."""
    found = []
    for number in range(max(cached.image.repeats for cached in images)):
        found += [cached for cached in images if cached.image.repeats > number]
    return found


def in_buckets(images: list[TrainingImage], config: TrainConfig) -> dict[Shape, list[TrainingImage]]:
    """{shape that they are cropped to: images}, in order of shape."""
    found = {}
    for image in images:
        shape = bucket_of(image.size, config.resolution, config.use_aspect_ratio_buckets)
        found.setdefault(shape, []).append(image)
    return dict(sorted(found.items()))
