"""Which images a run trains on."""

from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.cache import Cache, default_folder
from gralora_diffusion.data.captions import METADATA
from gralora_diffusion.data.hub_dataset import find_rows
from gralora_diffusion.data.image_folder import TrainingImage, find_images
from gralora_diffusion.options import ConfigError

EXAMPLE = Path(__file__).parent.parent / "example"  # six images of a robot, made for this project
EXAMPLE_PROMPT = "a photo of sks robot"


def instance(config: TrainConfig) -> tuple[Path, str | None]:
    """(folder or dataset, prompt) of the instance images."""
    if config.dataset_name is not None:
        return Path(config.dataset_name), config.instance_prompt
    if config.instance_data_dir is None:
        return EXAMPLE, config.instance_prompt or EXAMPLE_PROMPT
    return Path(config.instance_data_dir), config.instance_prompt


def instance_images(config: TrainConfig, cache: Cache | None = None) -> list[TrainingImage]:
    """The instance images. Raises ConfigError that names all files that cannot be used."""
    common = dict(skip=config.on_bad_image == "skip", cache=cache, workers=config.dataloader_num_workers)
    if config.dataset_name is not None:
        return find_rows(config, **common)
    folder, prompt = instance(config)
    if config.caption_column is not None and not (folder / METADATA).is_file():
        problem = f"--caption_column names a column of --dataset_name or of {METADATA}, and there is neither"
        raise ConfigError(problem, option="caption_column")
    return find_images(folder, prompt, column=config.caption_column, **common)


def epoch_length(config: TrainConfig, images: list[TrainingImage]) -> int:
    """Images of one epoch: each `repeats` times, or the class images where those are more."""
    length = len(images) * config.repeats
    return max(length, config.num_class_images) if config.with_prior_preservation else length


def image_cache(config: TrainConfig) -> Cache | None:
    """The cache that runs share, unless --no-cache_latents."""
    if not config.cache_latents:
        return None
    try:
        return Cache(config.latent_cache_dir or default_folder())
    except RuntimeError:
        ways = "name a folder with --latent_cache_dir, or use --no-cache_latents"
        problem = f"there is no home folder to keep latents in: {ways}"
        raise ConfigError(problem, option="latent_cache_dir") from None
