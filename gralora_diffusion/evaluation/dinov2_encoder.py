"""DINOv2 (arXiv 2304.07193) of transformers."""

from pathlib import Path

from torch import nn

from gralora_diffusion.evaluation.encoder_weights import (
    ask_hub,
    files_in,
    first_line,
    load_exactly,
    unavailable,
)
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.libraries import import_libraries

CONFIGS = ("config.json", "preprocessor_config.json")
FILES = f"{', '.join(CONFIGS)} and model.safetensors"


def dinov2_model(where: str) -> tuple[nn.Module, dict]:
    """A hub id or a folder: (model, fields of Encoder).

    Features are the CLS token after the last layer norm.
    """
    check_folder(where)
    try:
        model, processor = load_dinov2(where)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if Path(where).is_dir() or "onnect" not in str(error):
            raise ConfigError(
                f"--encoder dinov2:{where} cannot be loaded: {first_line(error)}; it must be a hub id, or a "
                f"folder with {FILES}"
            ) from None
        raise ConfigError(unavailable(f"DINOv2 {where}", where, FILES, "dinov2", error)) from None
    if not type(processor).__name__.endswith("Pil"):
        raise ConfigError(
            f"{where}: its preprocessing is {type(processor).__name__}, which does not use Pillow as "
            "its authors did"
        )

    def preprocess(image):
        return processor(images=[image], return_tensors="pt").pixel_values[0]

    def images(pixels):
        return model(pixels).last_hidden_state[:, 0]

    plain = (str, int, float, list, dict)
    settings = {name: value for name, value in processor.to_dict().items() if isinstance(value, plain)}
    fields = dict(name=f"DINOv2 {where}", packages=("transformers",), preprocess=preprocess, images=images)
    return model, fields | dict(facts=dict(preprocessing=settings))


def check_folder(where: str) -> None:
    folder = Path(where)
    if folder.is_dir() and not all((folder / name).is_file() for name in CONFIGS):
        raise ConfigError(f"{where} must hold {FILES}; it holds {files_in(folder)}")
    if where.startswith(("/", ".", "~")) and not folder.is_dir():
        raise ConfigError(f"--encoder dinov2:{where} cannot be loaded: there is no such folder")


def load_dinov2(where: str):
    """(model, processor); raises what transformers raises, and ValueError for a different kind of model."""
    import_libraries()
    from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model

    if not Path(where).is_dir():
        ask_hub(where, "model.safetensors", f"DINOv2 {where}")
    kind = Dinov2Config.get_config_dict(where)[0].get("model_type")
    if kind != "dinov2":
        raise ValueError(f"its config.json says that it is {kind}, not dinov2")
    config = Dinov2Config.from_pretrained(where)
    processor = AutoImageProcessor.from_pretrained(where, backend="pil")  # torchvision's resize differs
    return load_exactly(Dinov2Model, where, config=config), processor
