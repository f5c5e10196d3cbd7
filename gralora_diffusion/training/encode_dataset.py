"""The images and captions of a run encoded into the cache, before the UNet is moved to the device."""

from collections.abc import Callable

from gralora_diffusion.data.batches import BatchPlan, plan_batches
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.dataset import image_cache
from gralora_diffusion.data.encode import LatentKeys, encode_captions
from gralora_diffusion.devices import release_unused
from gralora_diffusion.sdxl.base import caption_encoder
from gralora_diffusion.sdxl.load import COMPONENTS
from gralora_diffusion.sdxl.placement import ENCODING, TOKENS, bring, set_tiles
from gralora_diffusion.sdxl.prompt_chunks import PromptRules
from gralora_diffusion.training.memory import memory_for
from gralora_diffusion.training.setup import TrainingSetup

CACHE = "cache"  # of a run with --no-cache_latents: in its folder until it ends


def encode_dataset(
    setup: TrainingSetup, keys: LatentKeys, text_encoders: str
) -> tuple[BatchPlan, BatchPlan | None, Callable]:
    """The images and captions encoded into the cache.

    Returns (the batches, those of the held-out images, captions -> their embeddings).

    keys and text_encoders, a hash, identify the models in the cache.
    Frees the VAE, which sample images keep, and the text encoders unless they train.
    """
    config, accelerator, pipeline = setup.config, setup.accelerator, setup.pipeline
    cache = image_cache(config) or Cache(setup.path / CACHE)
    with memory_for("while the images are encoded", config):
        side = config.resolution
        set_tiles(pipeline.vae, not bring(pipeline, ("vae",), accelerator.device, side * side * ENCODING))
        images = setup.images, setup.class_images
        how = pipeline.vae, config, cache, accelerator, keys
        batch_plan = plan_batches(*images, *how)
        held_out = plan_batches(setup.held_out, [], *how) if setup.held_out else None
    pipeline.vae.to("cpu")
    pipeline.vae = None
    captions = set(batch_plan.captions())
    if held_out:
        captions.update(held_out.captions())
    if config.prior_by_prediction:
        captions.add(config.class_prompt)
    rules = PromptRules.of(config)
    with memory_for("while the captions are encoded", config):
        bring(pipeline, COMPONENTS[1:], accelerator.device, TOKENS)
        if config.train_text_encoder:
            encode = caption_encoder(pipeline, sorted(captions), rules)
        else:
            how = config.dataloader_num_workers, text_encoders, rules
            encode = encode_captions(sorted(captions), pipeline, cache, accelerator, *how)
            pipeline.text_encoder = None
            pipeline.text_encoder_2 = None
    release_unused(accelerator.device)
    return batch_plan, held_out, encode
