"""What other tools call the tensors of an adapter: a key into (component, module path, tensor).

Ways of naming: kohya's underscores (also LyCORIS's and OneTrainer's), diffusers' paths with and without a
prefix, with PEFT's, and with the attention processors of 2023, and ComfyUI's original paths.
"""

import re
from typing import NamedTuple

from gralora_diffusion.formats.layer_names import SGM, canonical, from_kohya, from_sgm
from gralora_diffusion.sdxl.load import COMPONENTS


class Place(NamedTuple):
    """Which tensor of which layer a key names; component None: by the path alone it could be any model's."""

    component: str | None
    path: str
    leaf: str


LEAVES = {  # {how a key ends: our name of the tensor}
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".lora_mid.weight": "lora_mid",
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    ".lora_B.bias": "lora_bias",
    ".lora_up.bias": "lora_bias",
    ".alpha": "alpha",
    ".scalar": "scalar",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    ".set_weight": "set_weight",
    ".weight": "weight",
    ".on_input": "on_input",
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
    ".oft_R.weight": "oft_R",
    ".boft_R": "boft_R",
    ".boft_s": "boft_s",
    ".ia3_l": "ia3_l",
    ".vera_lambda_b": "vera_lambda_b",
    ".vera_lambda_d": "vera_lambda_d",
    ".gralora_A": "gralora_A",
    ".gralora_B": "gralora_B",
    ".gralora_A_general.weight": "lora_A",
    ".gralora_B_general.weight": "lora_B",
}
for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"):
    LEAVES[f".hada_{name}"] = f"hada_{name}"
for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"):
    LEAVES[f".lokr_{name}"] = f"lokr_{name}"
for name in ("a1", "a2", "b1", "b2", "bm"):
    LEAVES[f".{name}.weight"] = name
ENDINGS = sorted(LEAVES, key=len, reverse=True)
NAMED = re.compile(r"\.lora_([AB])\.[^.]{1,60}\.(weight|bias)$")  # with the name of the adapter in PEFT
UNDERSCORES = {  # {prefix of names with underscores: kohya's}
    "lora_unet_": "lora_unet_",
    "lora_te1_": "lora_te1_",
    "lora_te2_": "lora_te2_",
    "lycoris_": "lora_unet_",
    "oft_unet_": "lora_unet_",
    "oft_te1_": "lora_te1_",
    "oft_te2_": "lora_te2_",
}
TEXT_PROCESSORS = {  # {diffusers' projections of 2023 in a text encoder: its own}
    "self_attn.to_q": "self_attn.q_proj",
    "self_attn.to_k": "self_attn.k_proj",
    "self_attn.to_v": "self_attn.v_proj",
    "self_attn.to_out": "self_attn.out_proj",
}
ORIGINAL = ("model.diffusion_model.", "diffusion_model.")
WRAPPERS = ("base_model.model.unet.", "base_model.model.")
CLIP = {
    "conditioner.embedders.0.transformer.": "text_encoder",
    "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_g.": "text_encoder_2",
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
}
UNET = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|(time|add)_embedding)\b")
TEXT = re.compile(r"(text_model\.|encoder\.layers\.|final_layer_norm|text_projection)")
EMBEDDINGS = re.compile(r"(bundle_emb\..*|clip_[lg]|emb_params|string_to_param.*|<.*>)")


def place_of(key: str, layers_per_block: int = 2) -> Place:
    """The tensor that a key names.  Raises ValueError for a name of no known way, or of another model."""
    key = NAMED.sub(r".lora_\1.\2", key)
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if ending is None:
        raise ValueError(f"unknown tensor {key!r}")
    name = key.removesuffix(ending)
    component, path = layer_of(name, layers_per_block)
    return Place(component, path, LEAVES[ending])


def layer_of(name: str, layers_per_block: int = 2) -> tuple[str | None, str]:
    """(component, module path in diffusers' names); raises ValueError as place_of() does."""
    if name.startswith("lora_te_"):
        origin = "made for Stable Diffusion 1 or 2, with its one text encoder 'lora_te'"
        raise ValueError(f"{name!r} was {origin}, not for SDXL")
    for prefix, own in UNDERSCORES.items():
        if name.startswith(prefix):
            return from_kohya(own + name.removeprefix(prefix), layers_per_block)
    for prefix in ORIGINAL:
        if name.startswith(prefix):
            return "unet", unet_path(name.removeprefix(prefix), layers_per_block)
    for prefix, component in CLIP.items():
        if name.startswith(prefix):
            path = name.removeprefix(prefix).removeprefix("transformer.")
            return component, canonical(component, path)
    component = next((c for c in COMPONENTS if name.startswith(f"{c}.")), None)
    path = name.removeprefix(f"{component}.")
    for wrapper in WRAPPERS:
        path = path.removeprefix(wrapper)
    path = without_processor(path)
    if component == "unet" or re.match(SGM, path):
        return "unet", unet_path(path, layers_per_block)
    if component is None and UNET.match(path):
        component = "unet"
    if component is None and not TEXT.match(path):
        raise ValueError(f"{name!r} is not the name of a layer of SDXL")
    return component, path if component in (None, "unet") else canonical(component, path)


def unet_path(path: str, layers_per_block: int) -> str:
    """diffusers' path of a layer of the UNet, of an original one or of its own."""
    return from_sgm(path, layers_per_block) if re.match(SGM, path) else path


def without_processor(path: str) -> str:
    """The path of a projection; diffusers' files of 2023 name it by the attention processor."""
    path = path.replace(".processor.", ".")
    for name, own in TEXT_PROCESSORS.items():
        if path.endswith(f".{name}"):
            return path.removesuffix(name) + own
    return f"{path}.0" if path.endswith(".to_out") else path


def is_embedding(key: str) -> bool:
    """Whether a key is that of a textual inversion, which trainers store beside adapters."""
    return bool(EMBEDDINGS.fullmatch(key))
