"""Which images a run learns."""

from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.cache import Cache, default_folder
from gralora_diffusion.data.captions import METADATA
from gralora_diffusion.data.hub_dataset import find_rows
from gralora_diffusion.data.image_folder import TrainingImage, find_images
from gralora_diffusion.options import ConfigError

EXAMPLE = Path(__file__).parent.parent / "example"  # six images of a robot, drawn for this project
EXAMPLE_PROMPT = "a photo of sks robot"


def instance(config: TrainConfig) -> tuple[Path, str | None]:
    """(folder or data set, prompt) of the images to learn."""
    if config.dataset_name is not None:
        return Path(config.dataset_name), config.instance_prompt
    if config.instance_data_dir is None:
        return EXAMPLE, config.instance_prompt or EXAMPLE_PROMPT
    return Path(config.instance_data_dir), config.instance_prompt


def instance_images(config: TrainConfig, cache: Cache | None = None) -> list[TrainingImage]:
    """The images to learn.  Raises ConfigError with one sentence that names all files that cannot be used."""
    common = dict(skip=config.on_bad_image == "skip", cache=cache, workers=config.dataloader_num_workers)
    if config.dataset_name is not None:
        return find_rows(config, **common)
    folder, prompt = instance(config)
    if config.caption_column is not None and not (folder / METADATA).is_file():
        raise ConfigError(
            f"--caption_column names a column of --dataset_name or of {METADATA}, and there is neither"
        )
    return find_images(folder, prompt, column=config.caption_column, **common)


def pass_length(config: TrainConfig, images: list[TrainingImage]) -> int:
    """Images of one pass (epoch): each `repeats` times, or the class images where those are more."""
    return max(len(images) * config.repeats, config.num_class_images if config.with_prior_preservation else 0)


def image_cache(config: TrainConfig) -> Cache | None:
    """The cache that runs share, unless --no-cache_latents."""
    if not config.cache_latents:
        return None
    try:
        return Cache(config.latent_cache_dir or default_folder())
    except RuntimeError:
        raise ConfigError(
            "there is no home folder to keep latents in: name a folder with --latent_cache_dir, or use --no-cache_latents"
        ) from None
