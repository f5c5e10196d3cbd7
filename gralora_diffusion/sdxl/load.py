"""Load an SDXL base: the embedded one, a folder, a checkpoint, or one from the hub; or its shapes alone."""

from pathlib import Path

import torch

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import FLOW, is_flow
from gralora_diffusion.sdxl.hub import NOT_HERE, UNREACHABLE, hub_options
from gralora_diffusion.sdxl.libraries import import_libraries
from gralora_diffusion.sdxl.objective import objective_of_folder
from gralora_diffusion.sdxl.single_file import (
    NOT_SDXL,
    SDXL_TEXT_ENCODER,
    SDXL_TEXT_ENCODER_2,
    SDXL_UNET,
    SDXL_VAE,
    layout_of,
)

LOADING_ERRORS = (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError)  # of diffusers
EMBEDDED = Path(__file__).parent.parent / "tiny"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")  # those that adapters go into


def load_sdxl(
    path: str | None = None,
    vae=None,
    dtype=torch.float32,
    revision=None,
    variant=None,
    cache_dir=None,
    **components,
):
    """A StableDiffusionXLPipeline in eval mode on the CPU, its weights in `dtype` and the VAE in fp32.

    path: None for the embedded base, a folder in diffusers layout, a single .safetensors checkpoint, or
    a hub id. vae: another VAE, as a folder, a hub id, or a model.  components: models that are taken as they
    are, for instance unet=unet. Raises ConfigError when there is no such base, or it is not an SDXL one.
    """
    import_libraries()
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from diffusers.utils import logging as diffusers_logging
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    path = str(path or EMBEDDED)
    if Path(path).suffix in (".ckpt", ".pt", ".pth", ".bin", ".pkl"):
        raise ConfigError(
            f"{path} is a pickle, which can run code when it is read: convert it to .safetensors first"
        )
    given = set(components)
    of_hub = {} if path.endswith(".safetensors") else hub_options(path, revision, cache_dir)
    try:
        if isinstance(vae, torch.nn.Module):
            components["vae"] = vae
        elif vae:
            components["vae"] = AutoencoderKL.from_pretrained(vae, use_safetensors=True, cache_dir=cache_dir)
        if path.endswith(
            ".safetensors"
        ):  # here diffusers takes one dtype for all, and the VAE must stay fp32
            with layout_of(Path(path)) as config:
                where = dict(config=str(config), local_files_only=True)
                if not vae:
                    components["vae"] = AutoencoderKL.from_single_file(path, subfolder="vae", **where)
                pipeline = StableDiffusionXLPipeline.from_single_file(
                    path, dtype=dtype, add_watermarker=False, **where, **components
                )
        else:
            dtypes = {"default": dtype, "vae": torch.float32}
            where = dict(revision=revision, variant=variant, cache_dir=cache_dir, use_safetensors=True)
            where |= of_hub
            pipeline = StableDiffusionXLPipeline.from_pretrained(
                path, dtype=dtypes, add_watermarker=False, **where, **components
            )
    except (*LOADING_ERRORS, SafetensorError, SingleFileComponentError) as error:
        what, reason = path, reason_of(error)
        if isinstance(vae, str):
            what, reason = f"{path} with the VAE {vae}", reason_of(error, "the base or the VAE")
        raise ConfigError(f"no SDXL base can be loaded from {what}: {reason}") from error
    check_sdxl(pipeline, path)
    check_scheduler(pipeline.scheduler, path)
    pipeline.set_progress_bar_config(disable=True)
    for name in {*COMPONENTS, "vae"} - given:
        getattr(pipeline, name).eval().requires_grad_(False)
    return pipeline


def reason_of(error: Exception, model: str = "the base") -> str:
    """In one line, why a model could not be loaded; model: what a sentence calls it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause = error
    while cause is not None:
        offline = isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError)
        if offline or type(cause).__name__ in ("ConnectError", "ConnectTimeout"):  # of the hub's HTTP library
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else UNREACHABLE
            return f"{why}, and {model} {NOT_HERE}"
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def check_sdxl(pipeline, path: str) -> None:
    """Raises ConfigError for SD 1.5, the refiner, and inpainting bases, which load without an error."""
    config = pipeline.unet.config
    if (
        pipeline.text_encoder is None
        or pipeline.text_encoder_2 is None
        or config.addition_embed_type != "text_time"
    ):
        raise ConfigError(f"{path} {NOT_SDXL}")
    if config.in_channels != pipeline.vae.config.latent_channels:
        problem = f"its UNet takes {config.in_channels} channels (made for inpainting?)"
        raise ConfigError(f"{path} is not a text-to-image base: {problem}")


def check_scheduler(scheduler, path: str) -> None:
    """Raises ConfigError for a flow whose files ask for what is not available, or contradict each other."""
    if is_flow(scheduler.config) and scheduler.config.get("use_dynamic_shifting"):
        problem = "shifts timesteps by the size of the image (use_dynamic_shifting), which is not available"
        raise ConfigError(f"the scheduler of {path} {problem}: give it a fixed shift")
    of_folder = objective_of_folder(Path(path))
    if of_folder.get("prediction_type") == FLOW and not is_flow(scheduler.config):
        problem = "scheduler_config.json is that of a flow, and model_index.json names another scheduler"
        raise ConfigError(f"{path}: its {problem}: write FlowMatchEulerDiscreteScheduler there")


def shapes(path: str | None = None, revision=None, cache_dir=None) -> dict:
    """The base's UNet and text encoders on the meta device, {component: model}: shapes without weights.

    A single-file checkpoint is taken to be of SDXL's own shape.  Raises ConfigError when there is no such
    base.
    """
    import_libraries()
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig

    path = str(path or EMBEDDED)
    if path.endswith(".safetensors"):
        if not Path(path).is_file():
            raise ConfigError(f"no SDXL base can be read from {path}: there is no such file")
        return sdxl_shapes()
    where = dict(revision=revision, cache_dir=cache_dir) | hub_options(path, revision, cache_dir)
    try:
        unet = UNet2DConditionModel.load_config(path, subfolder="unet", **where)
        texts = [CLIPTextConfig.get_config_dict(path, subfolder=name, **where)[0] for name in COMPONENTS[1:]]
    except (OSError, ValueError) as error:
        raise ConfigError(f"no SDXL base can be read from {path}: {reason_of(error)}") from None
    if not all(texts) or unet.get("addition_embed_type") != "text_time":
        raise ConfigError(f"{path} {NOT_SDXL}")
    return shapes_of(unet, *texts)


def sdxl_shapes() -> dict:
    """shapes() of SDXL 1.0 by its public configs."""
    return shapes_of(SDXL_UNET, SDXL_TEXT_ENCODER, SDXL_TEXT_ENCODER_2)


def shapes_of(unet: dict, text_encoder: dict, text_encoder_2: dict) -> dict:
    """{component: model on the meta device} of these configs."""
    import_libraries()
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        models = (
            UNet2DConditionModel.from_config(unet),
            CLIPTextModel(CLIPTextConfig.from_dict(text_encoder)),
            CLIPTextModelWithProjection(CLIPTextConfig.from_dict(text_encoder_2)),
        )
    return dict(zip(COMPONENTS, models, strict=True))


def vae_shapes(path: str | None = None):
    """The base's VAE on the meta device, as shapes() does it for the models that adapters go into."""
    import_libraries()
    from diffusers import AutoencoderKL

    path = str(path or EMBEDDED)
    try:
        config = (
            SDXL_VAE if path.endswith(".safetensors") else AutoencoderKL.load_config(path, subfolder="vae")
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"no VAE can be read from {path}: {reason_of(error, 'the VAE')}") from None
    with torch.device("meta"):
        return AutoencoderKL.from_config(config)
