"""Images and captions encoded into the cache, each process its share; and read back from it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import PIL
import torch
from tqdm import tqdm

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, note
from gralora_diffusion.data.cache import Cache, key_of, weights_hash
from gralora_diffusion.data.captions import LINES
from gralora_diffusion.data.image_folder import TrainingImage, in_threads, printable
from gralora_diffusion.data.images import CROPS, crops_of
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import CAPTIONS, encode_images, encode_prompts
from gralora_diffusion.sdxl.prompt_chunks import (
    PENULTIMATE,
    PromptRules,
    Reading,
    common_chunks,
    read_prompt,
)
from gralora_diffusion.seeding import generator

CROP = 3  # in a generator's key: it chooses a crop

Shape = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class CachedImage:
    """An image whose crops are in the cache."""

    image: TrainingImage
    keys: tuple[str, ...]  # the entries of its crops: as they are, and mirrored
    rows: int  # crops in each entry
    mask_keys: tuple[str, ...] = ()  # the entries of its mask, if it has one
    crops: tuple[int, ...] | None = None  # numbers of the crops in use; None: all

    def crop_number(self, seed: int, position: int) -> int:
        """Which crop is used at this position: row n // keys of entry n % keys."""
        crops = range(len(self.keys) * self.rows) if self.crops is None else self.crops
        return crops[torch.randint(len(crops), (1,), generator=generator(seed, CROP, position)).item()]

    def crop_at(self, cache: Cache, seed: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(moments, time ids) of the crop for this position."""
        row, number = divmod(self.crop_number(seed, position), len(self.keys))
        entry = cache.row("latents", self.keys[number], row)
        return entry["moments"], entry["time_ids"]

    def mask_at(self, cache: Cache, seed: int, position: int) -> torch.Tensor | None:
        """The mask [h/8, w/8] in [0, 1] of the crop for this position; None without one."""
        if not self.mask_keys:
            return None
        row, number = divmod(self.crop_number(seed, position), len(self.keys))
        return cache.row("masks", self.mask_keys[number], row)["mask"]


class LatentKeys:
    """The cache keys of image crops: pixels, shape, and everything that turns them into latents."""

    def __init__(self, vae, config: TrainConfig):
        """vae: on the CPU, since its weights are hashed."""
        self.vae = weights_hash(vae), vae.config.scaling_factor
        self.resizing = config.center_crop, config.image_interpolation_mode.removesuffix("_exact")

    def key(self, image: TrainingImage, shape: Shape, mirrored: bool, tiled: bool = False) -> str:
        """tiled: whether the VAE encodes overlapping parts of an image, whose latents differ a little."""
        versions = 1, PIL.__version__, CROPS
        what = image.digest, shape, mirrored, *self.resizing, *self.vae
        return key_of("latents", *versions, *what, *(("tiled",) if tiled else ()))


@torch.no_grad()
def cached_images(
    jobs: list[tuple[TrainingImage, Shape]],
    vae,
    config: TrainConfig,
    cache: Cache,
    accelerator,
    keys: LatentKeys | None = None,
) -> list[CachedImage]:
    """Encode what the cache lacks of these images, each cropped to its shape.

    keys: made before the VAE was moved to a GPU.
    Memory holds one image at a time, and two more for each of --dataloader_num_workers. Raises ConfigError,
    which names the image, where the VAE gives numbers that are not finite or the image can no longer be read.
    """
    key_of_image = functools.partial((keys or LatentKeys(vae, config)).key, tiled=vae.use_tiling)
    flips = (False, True) if config.random_flip else (False,)

    def find_missing(job: tuple) -> tuple:
        """(image, shape, flips that the cache lacks)"""
        return *job, [flip for flip in flips if not cache.rows("latents", key_of_image(*job, flip))]

    def crop(job: tuple) -> tuple:
        """(image, {key: crops})"""
        image, shape, missing = job
        pixels = image.open()
        how = config.image_interpolation_mode, image.crop_key
        found = {}
        for mirrored in missing:
            found[key_of_image(image, shape, mirrored)] = crops_of(
                pixels, shape, config.center_crop, mirrored, *how
            )
        return image, found

    workers = config.dataloader_num_workers
    mine = jobs[accelerator.process_index :: accelerator.num_processes]
    mine = list({(image.digest, shape): (image, shape) for image, shape in mine}.values())
    absent = [job for job in in_threads(find_missing, mine, workers) if job[2]]
    bar = tqdm(
        in_threads(crop, absent, workers),
        "latents",
        len(absent),
        unit="image",
        disable=not (absent and accelerator.is_local_main_process),
    )
    for image, entries in bar:
        for key, crops in entries.items():
            moments = torch.stack([encode_images(vae, pixels[None])[0].cpu() for pixels, _ in crops])
            if not moments.isfinite().all():
                problem = f"the VAE gives numbers that are not finite for {printable(image.path.name)}"
                ways = "use another, such as madebyollin/sdxl-vae-fp16-fix"
                raise ConfigError(f"{problem}: {ways}", option="pretrained_vae_model_name_or_path")
            cache.put("latents", key, moments=moments, time_ids=torch.stack([ids for _, ids in crops]))
    accelerator.wait_for_everyone()
    found = []
    for image, shape in jobs:
        entries = tuple(key_of_image(image, shape, flip) for flip in flips)
        rows = min(cache.rows("latents", entry, check=False) for entry in entries)
        found.append(CachedImage(image, entries, rows))
    check_shared(cache, all(image.rows for image in found))
    return found


@torch.no_grad()
def encode_captions(
    captions: list[str],
    pipeline,
    cache: Cache,
    accelerator,
    workers: int = 0,
    text_encoders: str | None = None,
    rules: PromptRules = CAPTIONS,
) -> Callable[[list[str]], list[torch.Tensor]]:
    """Encode what the cache lacks; returns a function from captions to [embeds, pooled], as in Prompts.

    text_encoders: their weights_hash(), taken before they were moved to a GPU. rules: how captions are read.
    That function reads from the cache, and keeps 64 captions in memory. All its embeddings have the same
    number of chunks, in which shorter captions are repeated.
    """
    text_encoders = text_encoders or weights_hash(pipeline.text_encoder, pipeline.text_encoder_2)
    model = text_encoders, bool(pipeline.config.force_zeros_for_empty_prompt)
    keys, numbers = {}, {}
    for caption in captions:
        reading = read_prompt(pipeline, caption, rules)
        keys[caption] = prompt_key(caption, reading, rules, model)
        numbers[caption] = reading.chunks
    chunks = common_chunks(numbers.values())

    def rows_of(item: tuple[str, str]) -> int:
        return cache.rows("prompts", item[1])

    processes = accelerator.num_processes
    mine = [(caption, keys[caption]) for caption in captions[accelerator.process_index :: processes]]
    rows = in_threads(rows_of, mine, workers)
    absent = [item for item, n in zip(mine, rows, strict=True) if not n]
    hidden = len(absent) < 20 or not accelerator.is_local_main_process
    for caption, entry in tqdm(absent, "captions", unit="caption", disable=hidden):
        embeds, pooled = encode_prompts(pipeline, [caption], rules)
        cache.put("prompts", entry, embeds=embeds, pooled=pooled)
    accelerator.wait_for_everyone()
    if processes > 1:
        check_shared(cache, all(cache.rows("prompts", keys[c], check=False) for c in captions))

    @functools.lru_cache(maxsize=64)
    def read(caption: str) -> dict[str, torch.Tensor]:
        entry = cache.row("prompts", keys[caption], 0)
        times = chunks // numbers[caption]
        return entry | dict(embeds=entry["embeds"].repeat(times, 1)) if times > 1 else entry

    def encoded(wanted: list[str]) -> list[torch.Tensor]:
        entries = [read(caption) for caption in wanted]
        embeds = torch.stack([entry["embeds"] for entry in entries])
        pooled = torch.stack([entry["pooled"] for entry in entries])
        return [embeds, pooled]

    return encoded


def prompt_key(caption: str, reading: Reading, rules: PromptRules, model: tuple) -> str:
    """The cache key of a caption's embeddings: its tokens and everything that turns them into embeddings."""
    if reading.plain and rules.clip_skip == PENULTIMATE:
        tokens = [chunks.without_padding() for chunks in reading.of_encoders]
        return key_of("prompt", 1, caption == "", tokens, *model)
    return key_of("prompt", 2, caption == "", reading.of_encoders, rules.clip_skip, *model)


def check_shared(cache: Cache, complete: bool) -> None:
    """Raises ConfigError where this process does not find what the others wrote."""
    if not complete:
        problem = f"entries that were just written are not in {cache.folder}"
        way = "--latent_cache_dir must name a folder that all processes share"
        raise ConfigError(f"{problem}: {way}", option="latent_cache_dir")


def check_captions(images: list[TrainingImage], pipeline, rules: PromptRules) -> None:
    """Note which captions are longer than the run reads, and how many tokens are lost.

    Raises ConfigError, which names the image, for weights out of bounds.
    """
    lost = {}
    for image in images:
        if image.caption not in lost:
            lost[image.caption] = tokens_lost(image, pipeline, rules)
    long = [image for image in images if lost[image.caption]]
    if long:
        room = rules.chunks * (pipeline.tokenizer.model_max_length - 2)
        some = [f"{printable(image.path.name)} loses {lost[image.caption]}" for image in long[:10]]
        more = f" and {len(long) - 10} more" if len(long) > 10 else ""
        limit = f"the {room} tokens that are read (--max_token_length)"
        what = f"{counted(len(long), 'caption')} truncated to {limit}"
        note(f"{what}: {', '.join(some)}{more}")


def check_class_prompt(config: TrainConfig, pipeline, rules: PromptRules) -> None:
    """Raises ConfigError for a prompt of --prior_by_prediction whose weights are out of bounds."""
    if not config.prior_by_prediction:
        return
    try:
        read_prompt(pipeline, config.class_prompt, rules)
    except ConfigError as error:
        raise ConfigError(f"--class_prompt: {error}", option="class_prompt") from None


def tokens_lost(image: TrainingImage, pipeline, rules: PromptRules) -> int:
    """How many tokens of an image's caption are cut, of its longest line."""
    try:
        return max(read_prompt(pipeline, line, rules).lost for line in image.caption.split(LINES))
    except ConfigError as error:
        where = printable(image.path.name)
        raise ConfigError(f"the caption of {where}: {error}", option="weighted_captions") from None
