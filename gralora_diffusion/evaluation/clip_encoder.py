"""CLIP models of open_clip by tag, weights file or folder, with their activation and preprocessing."""

from pathlib import Path

from torch import nn

from gralora_diffusion.evaluation.encoder_names import GRAMMAR
from gralora_diffusion.evaluation.encoder_weights import (
    ask_hub,
    files_in,
    first_line,
    read_clip_config,
    unavailable,
)
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError, did_you_mean

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
FILES = f"{CONFIG} and {WEIGHTS[0]}"
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")
FAILURES = (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError)  # of open_clip's loading


def clip_model(rest: str) -> tuple[nn.Module, dict]:
    """MODEL:TAG, MODEL:FILE.safetensors, or a folder with both FILES: (model, fields of Encoder)."""
    import open_clip
    from open_clip import transform

    folder = Path(rest)
    name, _, weights = rest.partition(":")
    hub, preprocessing = "", None
    if folder.is_dir():
        name = f"local-dir:{resolved(folder)}"
        file = weights_file_in(folder)
        called = f"{resolved(folder).name} ({folder})"
    else:
        file = Path(weights) if weights.endswith(".safetensors") else None
        check_clip_name(open_clip, name, weights, file)
        name = name.removesuffix("-gelu")
        called = f"{name} {file or weights}"
        if file is None:
            hub = open_clip.pretrained.get_pretrained_cfg(name, weights).get("hf_hub", "").strip("/")
            ask_hub(hub, WEIGHTS[0], f"CLIP {name} {weights}")
        else:
            preprocessing = preprocessing_of(open_clip, name, file)
    try:
        model = load_clip(open_clip, name, weights, file, preprocessing)
        tokenizer = open_clip.get_tokenizer(name)
    except FAILURES as error:
        if file is not None or "download" not in str(error):
            raise ConfigError(f"--encoder clip:{rest} cannot be loaded: {first_line(error)}") from None
        what = f"CLIP {name}, tag {weights}"
        raise ConfigError(unavailable(what, hub or "its page", FILES, "clip", error)) from None

    def tokenize(texts: list[str], length: int):
        return tokenizer(texts, context_length=length)

    used = model.visual.preprocess_cfg
    fields = dict(
        name=f"CLIP {called}",
        packages=("open_clip_torch", "torchvision"),
        facts=dict(
            preprocessing=used,
            activation=activation(model),
            pretrained=weights or str(folder),
        ),
        preprocess=transform.image_transform_v2(transform.PreprocessCfg(**used), is_train=False),
        images=model.encode_image,
        tokenize=tokenize,
        texts=model.encode_text,
        context=tokenizer.context_length,
    )
    return model, fields


def load_clip(open_clip, name: str, weights: str, file: Path | None, preprocessing: dict | None) -> nn.Module:
    if file is None:
        return open_clip.create_model(name, weights, require_pretrained=True)
    model = open_clip.create_model(
        name, load_weights=False, pretrained_text=False, force_preprocess_cfg=preprocessing
    )
    check_positions(model, file)
    open_clip.load_checkpoint(model, str(file), strict=True)
    return model


def check_clip_name(open_clip, name: str, weights: str, file: Path | None) -> None:
    """Raises ConfigError for an unknown model or weights, and where GELU and quick GELU might be mixed up."""
    known = open_clip.list_models()
    if "/" in name and not weights:
        raise ConfigError(f"{name} does not exist: --encoder clip:FOLDER must name a folder with {FILES}")
    if name.removesuffix("-gelu") not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"open_clip knows no model {name!r}{hint}; --encoder must be {GRAMMAR}")
    if file is None:
        check_tag(open_clip, name, weights)
    elif not file.is_file():
        raise ConfigError(f"{file} does not exist: --encoder clip:{name}:FILE must name a .safetensors file")
    else:
        check_activation(open_clip, name, file)


def check_tag(open_clip, name: str, tag: str) -> None:
    """Raises ConfigError for an unknown tag, and for weights of quick GELU in a model with GELU."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        need = f"it has {', '.join(tags) or 'none'}"
        if "/" in tag:
            need = "weights must be a .safetensors file or a tag"
        raise ConfigError(f"open_clip has no weights {tag!r} for {name}: {need}")
    trained_with = open_clip.pretrained.get_pretrained_cfg(name, tag)
    model = open_clip.get_model_config(name)
    if trained_with.get("quick_gelu", False) != model.get("quick_gelu", False):
        raise ConfigError(
            f"the weights {tag} of {name} were trained with quick GELU, and this model has GELU: "
            f"use clip:{name}-quickgelu:{tag}"
        )


def check_activation(open_clip, name: str, file: Path) -> None:
    """Raises ConfigError where a file's weights may have been trained with another GELU than the model's."""
    config = file.with_name(CONFIG)
    twin = f"{name}-quickgelu"
    if config.is_file():
        trained_with = read_clip_config(config).get("model_cfg", {}).get("quick_gelu", False)
        model = open_clip.get_model_config(name.removesuffix("-gelu"))
        if trained_with != model.get("quick_gelu", False):
            raise ConfigError(
                f"{config} has quick_gelu {trained_with}, but {name} does not: use clip:{file.parent}, which "
                "takes the model from there"
            )
    elif twin in open_clip.list_models():
        raise ConfigError(
            f"{file} does not record whether it was trained with quick GELU, as all of OpenAI's weights "
            f"were: name the model {twin} or, if it was not, {name}-gelu; or put its {CONFIG} beside it"
        )


def preprocessing_of(open_clip, name: str, file: Path) -> dict:
    """The preprocessing of a file's weights: from the config beside it, or of all published weights.

    Raises ConfigError where those differ; the size is the model's own.
    """
    config = file.with_name(CONFIG)
    own = read_clip_config(config).get("preprocess_cfg") if config.is_file() else None
    if own is not None:
        published = [own]
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        published = [open_clip.pretrained.get_pretrained_cfg(name, tag) for tag in tags] or [{}]
    choices = []
    for settings in published:
        choices.append({key: settings[key] for key in PREPROCESSING if key in settings})
    if any(choice != choices[0] for choice in choices):
        raise ConfigError(
            f"{file} does not record how its images were scaled and normalized, and the weights of {name} "
            f"differ in that: put the {CONFIG} that came with it, with its preprocess_cfg, beside it"
        )
    return choices[0]


def weights_file_in(folder: Path) -> Path:
    """Raises ConfigError unless the folder holds FILES."""
    files = sorted(folder.glob("*.safetensors"))
    candidates = [file for file in files if file.name in WEIGHTS] or files
    if not (folder / CONFIG).is_file() or len(candidates) != 1:
        raise ConfigError(f"{folder} must hold {FILES}; it holds {files_in(folder)}")
    return candidates[0]


def check_positions(model: nn.Module, file: Path) -> None:
    """Raises ValueError for position embeddings of another size, which open_clip would stretch silently."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            stored = set(tensors.keys())
            for name, ours in model.state_dict().items():
                if not name.endswith("positional_embedding") or name not in stored:
                    continue
                if tensors.get_slice(name).get_shape() != list(ours.shape):
                    another = "an image size or text length that differs from the model's"
                    raise ValueError(f"{file.name} was trained at {another} ({name})")
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from None


def activation(model: nn.Module) -> str:
    return "quick GELU" if any(type(m).__name__ == "QuickGELU" for m in model.modules()) else "GELU"
