"""What other tools call the tensors of an adapter: a key into (component, module path, tensor).

Ways of naming: kohya's underscores (also LyCORIS's and OneTrainer's, which has dots among them), diffusers'
paths with and without a prefix, with PEFT's, and with the attention processors of 2023, and ComfyUI's
original paths.
"""

import re
from typing import NamedTuple

from gralora_diffusion.formats.layer_names import PREFIXES, SGM, canonical, from_kohya, from_sgm
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
    ".oft_R.weight": "rotation",
    ".oft_R.scaled_oft": "scaled_oft",
    ".boft_R": "boft_R",
    ".boft_s": "boft_s",
    ".ia3_l": "ia3_l",
    ".vera_lambda_b": "vera_lambda_b",
    ".vera_lambda_d": "vera_lambda_d",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".q_layer.weight": "q_layer",
    ".p_layer.weight": "p_layer",
    ".lambda_layer": "lambda_layer",
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
OF_PEFT = {  # {how a key of PEFT's ends: our name of the tensor, which means something else in other files}
    ".oft_R.weight": "oft_R",
    ".base_layer.weight": "set_weight",
    ".base_layer.bias": "set_bias",
    ".weight": "set_weight",
    ".bias": "set_bias",
}
KOHYA = re.compile(r"(?:lora|lycoris|oft)[_.](unet|te1|te2|text_encoder_2|text_encoder)[_.](?=.)")
COMPONENT_OF = dict(unet="unet", te1="text_encoder", te2="text_encoder_2")  # others are their own names
ONE_TEXT_ENCODER = ("lora_te_", "lycoris_te_", "oft_te_")
LYCORIS = "lycoris_"  # of LyCORIS's wrapper, for whichever model it is given
TEXT_PROCESSORS = {  # {diffusers' projections of 2023 in a text encoder: its own}
    "self_attn.to_q": "self_attn.q_proj",
    "self_attn.to_k": "self_attn.k_proj",
    "self_attn.to_v": "self_attn.v_proj",
    "self_attn.to_out": "self_attn.out_proj",
}
ORIGINAL = ("model.diffusion_model.", "diffusion_model.")
PEFT = "base_model.model."
WRAPPERS = (f"{PEFT}unet.", PEFT)
COMPILED = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)\.|^module\.")  # of torch's own wrappers
CLIP = {
    "conditioner.embedders.0.transformer.": "text_encoder",
    "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_g.": "text_encoder_2",
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
}
UNET = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|(time|add)_embedding)\b")
TEXT = re.compile(r"(text_model\.|encoder\.layers\.|final_layer_norm|text_projection)")
ONLY_SDXL = re.compile(r"transformer_blocks[._][1-9]|(add_embedding|label_emb)[._]|^(lora|lycoris|oft)_te2_")
EMBEDDINGS = re.compile(r"(bundle_emb\..*|clip_[lg]|emb_params|string_to_param.*|<.*>)")


def place_of(key: str, layers_per_block: int = 2) -> Place:
    """The tensor that a key names.  Raises ValueError for a name of no known way, or of another model."""
    key = COMPILED.sub(r"\1", NAMED.sub(r".lora_\1.\2", key))
    peft = next((ending for ending in OF_PEFT if key.endswith(ending)), None) if PEFT in key else None
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if peft is not None and (ending is None or len(ending) <= len(peft)):
        component, path = layer_of(key.removesuffix(peft), layers_per_block)
        return Place(component, path, OF_PEFT[peft])
    if ending is None:
        raise ValueError(f"unknown tensor {key!r}")
    component, path = layer_of(key.removesuffix(ending), layers_per_block)
    return Place(component, path, LEAVES[ending])


def layer_of(name: str, layers_per_block: int = 2) -> tuple[str | None, str]:
    """(component, module path in diffusers' names); raises ValueError as place_of() does."""
    if name.startswith(ONE_TEXT_ENCODER):
        origin = "made for Stable Diffusion 1 or 2, with its one text encoder 'lora_te'"
        raise ValueError(f"{name!r} was {origin}, not for SDXL")
    if found := KOHYA.match(name):
        component = COMPONENT_OF.get(found[1], found[1])
        return from_kohya(PREFIXES[component] + underscored(name[found.end() :]), layers_per_block)
    if name.startswith(LYCORIS):
        rest = underscored(name.removeprefix(LYCORIS))
        if rest.startswith(("text_model_", "encoder_layers_")):
            return None, from_kohya(PREFIXES["text_encoder"] + rest)[1]
        return from_kohya(PREFIXES["unet"] + rest, layers_per_block)
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


def underscored(path: str) -> str:
    """A name as kohya's scripts write it; OneTrainer leaves dots in some."""
    return path.replace(".", "_")


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


def of_sdxl(keys: list[str]) -> bool:
    """Whether keys name a layer that SDXL has, and Stable Diffusion 1 and 2 have not."""
    return any(ONLY_SDXL.search(key) for key in keys)


def as_first_encoder(key: str) -> str:
    """A key of `lora_te`, which in a file of SDXL is the first text encoder, as ComfyUI reads it."""
    prefix = next((prefix for prefix in ONE_TEXT_ENCODER if key.startswith(prefix)), None)
    return key if prefix is None else prefix.replace("te_", "te1_") + key.removeprefix(prefix)


def is_embedding(key: str) -> bool:
    """Whether a key is that of a textual inversion, which trainers store beside adapters."""
    return bool(EMBEDDINGS.fullmatch(key))
