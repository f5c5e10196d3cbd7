"""The series of images that a run learns: a function of (seed, position) alone, so that any run can resume at any step.

Position p belongs to image p % group of batch p // group, where `group` counts the images of a batch over all processes.
A batch holds one bucket only.  In a cycle of as many batches as there are images, each bucket comes as often as it has images,
in an order drawn for the cycle; each bucket's images are an endless series of passes, shuffled for each pass, that goes on where
the bucket's last batch ended.  So every image comes equally often, and two processes see what one sees with twice the batch.
Without buckets all images are in one.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
from tqdm import tqdm

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.data.cache import Cache, key_of, weights_hash
from gralora_diffusion.data.captions import cut_tokens, orders
from gralora_diffusion.data.image_folder import TrainingImage, ahead, shown
from gralora_diffusion.data.images import CROPS, bucket_of, cuts
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import encode_images, encode_prompts
from gralora_diffusion.seeding import generator

CLASS = 2**41  # added to a position, it draws for the class image beside the instance image there
DROPPED, ORDER, BUCKETS = (
    20,
    21,
    22,
)  # what a generator's key says it draws; 2 is a pass, 3 a cut, 4 noise and timestep


@dataclass(frozen=True)
class Example:
    """One cut of one image with all that belongs to it."""

    path: Path
    caption: str  # empty where it is dropped
    moments: torch.Tensor  # [2, channels, h/8, w/8]: mean and std of the scaled latents
    time_ids: torch.Tensor  # [6]
    weight: float  # of its loss
    position: int  # what its noise and timestep are drawn by


@dataclass(frozen=True)
class CachedImage:
    """An image whose cuts are in the cache."""

    image: TrainingImage
    keys: tuple[str, ...]  # the entries of its cuts: as they are, and mirrored
    rows: int  # cuts in each

    def cut(self, cache: Cache, seed: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(moments, time ids) of the cut for this position"""
        n = torch.randint(len(self.keys) * self.rows, (1,), generator=generator(seed, 3, position)).item()
        entry = cache.row("latents", self.keys[n % len(self.keys)], n // len(self.keys))
        return entry["moments"], entry["time_ids"]


@dataclass(frozen=True)
class BatchPlan:
    config: TrainConfig
    cache: Cache
    group: int  # images of a batch over all processes
    instance: tuple[list[CachedImage], ...]  # by bucket
    classes: tuple[list[CachedImage], ...]  # by the same buckets; empty without prior preservation

    def captions(self) -> list[str]:
        """Every caption that examples_at() can give."""
        config, found = self.config, {e.image.caption for bucket in self.classes for e in bucket}
        for e in (e for bucket in self.instance for e in bucket):
            found.update(orders(e.image.caption, config.shuffle_captions, config.keep_tokens))
        return sorted(found | {""} if config.caption_dropout else found)


def examples_at(series: BatchPlan, positions: Sequence[int]) -> list[Example]:
    """The records at these positions, and after them, with prior preservation, a class record for each."""
    config, places = series.config, [place(series, position) for position in positions]
    seed, records = config.seed, []
    for position, (bucket, number) in zip(positions, places, strict=True):
        encoded = shuffled(series.instance[bucket], number, seed, bucket, config.repeats)
        moments, ids = encoded.cut(series.cache, seed, position)
        caption = caption_at(encoded.image.caption, position, config)
        records.append(Example(encoded.image.path, caption, moments, ids, 1.0, position))
    for position, (bucket, number) in zip(positions, places, strict=True):
        if series.classes:
            encoded = shuffled(series.classes[bucket], number, seed, bucket + CLASS)
            moments, ids = encoded.cut(series.cache, seed, position + CLASS)
            records.append(
                Example(
                    encoded.image.path,
                    encoded.image.caption,
                    moments,
                    ids,
                    config.prior_loss_weight,
                    position + CLASS,
                )
            )
    return records


def place(series: BatchPlan, position: int) -> tuple[int, int]:
    """(bucket, position in the bucket's own series)"""
    batch, offset = divmod(position, series.group)
    sizes = tuple(len(bucket) for bucket in series.instance)
    if len(sizes) == 1:
        return 0, position
    cycle, slot = divmod(batch, sum(sizes))
    bucket, earlier = cycle_of_buckets(sizes, series.config.seed, cycle)[slot]
    return bucket, (cycle * sizes[bucket] + earlier) * series.group + offset


@functools.lru_cache(maxsize=4)
def cycle_of_buckets(sizes: tuple[int, ...], seed: int, cycle: int) -> list[tuple[int, int]]:
    """(bucket, how often it came before in this cycle) of each batch of a cycle"""
    owners = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    seen, out = [0] * len(sizes), []
    for slot in permutation(len(owners), seed, BUCKETS, cycle):
        out.append((owners[slot], seen[owners[slot]]))
        seen[owners[slot]] += 1
    return out


def shuffled(images: list[CachedImage], number: int, seed: int, key: int, repeats: int = 1) -> CachedImage:
    """The image at this number of an endless series, in which each comes `repeats` times a pass."""
    turn, slot = divmod(number, len(images) * repeats)
    return images[permutation(len(images) * repeats, seed, 2, turn + key * 2**20)[slot] % len(images)]


@functools.lru_cache(maxsize=64)
def permutation(n: int, *key: int) -> list[int]:
    return torch.randperm(n, generator=generator(*key)).tolist()


def caption_at(caption: str, position: int, config: TrainConfig) -> str:
    if (
        config.caption_dropout
        and torch.rand(1, generator=generator(config.seed, DROPPED, position)).item() < config.caption_dropout
    ):
        return ""
    forms = orders(caption, config.shuffle_captions, config.keep_tokens)
    return forms[torch.randint(len(forms), (1,), generator=generator(config.seed, ORDER, position)).item()]


def plan_batches(
    images: list[TrainingImage],
    class_images: list[TrainingImage],
    vae,
    config: TrainConfig,
    cache: Cache,
    accelerator,
) -> BatchPlan:
    """Cut and encode what the cache lacks, each process its share."""
    shapes = {}
    for image in images:
        shapes.setdefault(
            bucket_of(image.size, config.resolution, config.use_aspect_ratio_buckets), []
        ).append(image)
    shapes, classes = dict(sorted(shapes.items())), {}
    if class_images:
        for shape in shapes:  # a bucket without class images of its shape takes cuts of all of them
            same = [
                p
                for p in class_images
                if bucket_of(p.size, config.resolution, config.use_aspect_ratio_buckets) == shape
            ]
            classes[shape] = same or class_images
    jobs = [
        (image, shape) for kind in (shapes, classes) for shape, members in kind.items() for image in members
    ]
    encoded = iter(cached_images(jobs, vae, config, cache, accelerator))
    instance, of_class = (
        tuple([next(encoded) for _ in members] for members in kind.values()) for kind in (shapes, classes)
    )
    return BatchPlan(config, cache, config.train_batch_size * accelerator.num_processes, instance, of_class)


@torch.no_grad()
def cached_images(
    jobs: list[tuple], vae, config: TrainConfig, cache: Cache, accelerator
) -> list[CachedImage]:
    """jobs: (image, the shape it is cut to).  Memory holds one image at a time, and two more for each of --dataloader_num_workers.

    Raises ConfigError, which names the image, if the VAE gives numbers that are not finite or the image can no longer be read.
    """
    model = weights_hash(vae), vae.config.scaling_factor
    flips = (False, True) if config.random_flip else (False,)
    how = config.center_crop, config.image_interpolation_mode.removesuffix("_exact")

    def key(image: TrainingImage, shape: tuple, mirrored: bool) -> str:
        return key_of("latents", 1, PIL.__version__, CROPS, image.digest, shape, mirrored, *how, *model)

    def missing(job: tuple) -> tuple:
        return *job, [mirrored for mirrored in flips if not cache.rows("latents", key(*job, mirrored))]

    def cut(job: tuple) -> tuple:
        image, shape, wanted = job
        whole, places = image.open(), int(image.digest[:12], 16)
        return image, {
            key(image, shape, m): cuts(
                whole, shape, config.center_crop, m, config.image_interpolation_mode, places
            )
            for m in wanted
        }

    mine, workers = (
        jobs[accelerator.process_index :: accelerator.num_processes],
        config.dataloader_num_workers,
    )
    mine = list({(job[0].digest, job[1]): job for job in mine}.values())
    absent = [job for job in ahead(missing, mine, workers) if job[2]]
    bar = tqdm(
        ahead(cut, absent, workers),
        "latents",
        len(absent),
        unit="image",
        disable=not (absent and accelerator.is_local_main_process),
    )
    for image, wanted in bar:
        for address, made in wanted.items():
            moments = torch.stack([encode_images(vae, pixels[None])[0].cpu() for pixels, _ in made])
            if not moments.isfinite().all():
                name = shown(image.path.name)
                raise ConfigError(
                    f"the VAE gives numbers that are not finite for {name}: use another, e.g. madebyollin/sdxl-vae-fp16-fix"
                )
            cache.put("latents", address, moments=moments, time_ids=torch.stack([ids for _, ids in made]))
    accelerator.wait_for_everyone()
    out = []
    for image, shape in jobs:
        keys = tuple(key(image, shape, mirrored) for mirrored in flips)
        out.append(CachedImage(image, keys, min(cache.rows("latents", k, check=False) for k in keys)))
    check_shared(cache, all(e.rows for e in out))
    return out


@torch.no_grad()
def encode_captions(
    captions: list[str], pipeline, cache: Cache, accelerator, workers: int = 0
) -> Callable[[list[str]], list[torch.Tensor]]:
    """Encode what the cache lacks, each process its share; returns a function from captions to [prompt_embeds, pooled_prompt_embeds].

    That function reads from the cache, and keeps 64 captions in memory.
    """
    model = (
        weights_hash(pipeline.text_encoder, pipeline.text_encoder_2),
        bool(pipeline.config.force_zeros_for_empty_prompt),
    )
    tokenizers = pipeline.tokenizer, pipeline.tokenizer_2

    def key(caption: str) -> str:
        tokens = [t(caption, truncation=True, max_length=t.model_max_length).input_ids for t in tokenizers]
        return key_of("prompt", 1, caption == "", tokens, *model)

    mine = [
        (caption, key(caption))
        for caption in captions[accelerator.process_index :: accelerator.num_processes]
    ]
    there = ahead(lambda item: cache.rows("prompts", item[1]), mine, workers)
    absent = [item for item, rows in zip(mine, there, strict=True) if not rows]
    for caption, address in tqdm(
        absent, "captions", unit="caption", disable=len(absent) < 20 or not accelerator.is_local_main_process
    ):
        embeds, pooled = encode_prompts(pipeline, [caption])
        cache.put("prompts", address, embeds=embeds, pooled=pooled)
    accelerator.wait_for_everyone()
    check_shared(
        cache,
        accelerator.num_processes == 1 or all(cache.rows("prompts", key(c), check=False) for c in captions),
    )

    @functools.lru_cache(maxsize=64)
    def known(caption: str) -> dict[str, torch.Tensor]:
        return cache.row("prompts", key(caption), 0)

    return lambda wanted: [
        torch.stack([known(caption)[name] for caption in wanted]) for name in ("embeds", "pooled")
    ]


def check_shared(cache: Cache, complete: bool) -> None:
    """Raises ConfigError where this process does not find what the others wrote."""
    if not complete:
        raise ConfigError(
            f"entries that were just written are not in {cache.folder}: --latent_cache_dir must name a folder that all processes share"
        )


def tell_long_captions(images: list[TrainingImage], pipeline) -> None:
    """Say which captions are longer than the text encoders read, and what is lost."""
    cut = {caption: cut_tokens(pipeline, caption) for caption in {p.caption for p in images}}
    long = [f"{shown(p.path.name)} loses {cut[p.caption]}" for p in images if cut[p.caption]]
    if long:
        more = f" and {len(long) - 10} more" if len(long) > 10 else ""
        note(
            f"{len(long)} caption(s) are cut to the {pipeline.tokenizer.model_max_length} tokens that are read: {', '.join(long[:10])}{more}"
        )
