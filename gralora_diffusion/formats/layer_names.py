"""What each tool calls a layer: diffusers' module paths, kohya's underscores, the original SGM paths."""

import re

from gralora_diffusion.console import counted

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
WITH_UNDERSCORE = (  # names in module paths that hold an underscore themselves
    "down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|transformer_blocks|"
    "to_q|to_k|to_v|to_out|proj_in|proj_out|time_emb_proj|conv_shortcut|conv_in|conv_out|"
    "time_embedding|add_embedding|linear_1|linear_2|time_embed|label_emb|in_layers|emb_layers|"
    "out_layers|skip_connection|text_model|text_projection|self_attn|q_proj|k_proj|v_proj|out_proj|"
    "conv_norm_out|layer_norm1|layer_norm2|final_layer_norm|token_embedding|position_embedding"
)
WORD = re.compile(rf"({WITH_UNDERSCORE}|[a-z]+\d*|\d+)(?:_|$)")
SGM = r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.\d+.*"
OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
INSIDE = (  # of attentions
    r"norm|proj_in|proj_out|"
    r"transformer_blocks\.\d+\.(norm[123]|attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))"
)
TEXT = (
    r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12]|layer_norm[12])|"
    r"text_model\.embeddings\.(token|position)_embedding|text_model\.final_layer_norm|text_projection"
)
CONVOLUTION = r"(.*\.)?(conv[12]|conv_in|conv_out|downsamplers\.0\.conv|upsamplers\.0\.conv)"
VAE = [
    (r"(encoder\.down)_blocks\.(\d+)\.downsamplers\.0\.", r"\1.\2.downsample."),
    (r"(decoder\.up)_blocks\.(\d+)\.upsamplers\.0\.", r"\1.\2.upsample."),
    (r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]
OPEN_CLIP = [
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_projection\.weight", "text_projection"),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.[qkv]_proj\.(weight|bias)", r".attn.in_proj_\1"),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


def kohya(component: str, path: str, layers_per_block: int | None = None) -> str:
    """kohya's name of a layer.

    With layers_per_block the UNet's is in SGM style, which ComfyUI, A1111 and Forge all read.
    """
    if component == "unet" and layers_per_block is not None:
        path = sgm(path, layers_per_block)
    return PREFIXES[component] + path.replace(".", "_")


def from_kohya(name: str, layers_per_block: int = 2) -> tuple[str, str]:
    """(component, module path) of a layer in kohya's naming, the UNet in either style.

    Raises ValueError for any other name.
    """
    for component, prefix in PREFIXES.items():
        if name.startswith(prefix):
            words = WORD.findall(rest := name.removeprefix(prefix))
            if not words or "_".join(words) != rest:
                break
            path = ".".join(words)
            if component == "unet" and re.fullmatch(SGM, path):
                path = from_sgm(path, layers_per_block)
            return component, path if component == "unet" else canonical(component, path)
    raise ValueError(f"{name!r} is not the name of a layer")


def canonical(component: str, path: str) -> str:
    """The path in files: text encoders' begin with text_model., whatever transformers is installed."""
    return (
        path
        if component == "unet" or path.startswith(("text_model.", "text_projection"))
        else f"text_model.{path}"
    )


def known(component: str, path: str) -> bool:
    """Whether SDXL's three models can have this layer.

    Their depths differ from base to base.
    """
    if any(len(number) > 2 or (number[0] == "0" and number != "0") for number in re.findall(r"\d+", path)):
        return False
    if component == "unet" and re.match(r"(down|up)_blocks\.([4-9]|\d\d)", path):
        return False
    try:
        return bool(sgm(path, 2) if component == "unet" else re.fullmatch(TEXT, path))
    except ValueError:
        return False


def kernel_by_name(component: str, path: str) -> tuple[int, int] | None:
    """The kernel of a convolution of SDXL's UNet by its name, None for any other layer."""
    if component != "unet":
        return None
    if path.endswith(".conv_shortcut"):
        return (1, 1)
    return (3, 3) if re.fullmatch(CONVOLUTION, path) else None


def sgm(path: str, layers_per_block: int) -> str:
    """The UNet's module path in the original checkpoints' numbering.

    Raises ValueError for a path that SDXL's UNet does not have.
    """
    if path in OUTER:
        return OUTER[path]
    per = layers_per_block + 1
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", path):
        side, i, kind, j, rest = found.groups()
        number = per * int(i) + int(j)
        block = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
        if kind == "resnets":
            return f"{block}.0.{renamed(RESNET, rest, path)}"
        return f"{block}.1.{inside(rest, path)}"
    if found := re.fullmatch(r"mid_block\.(\w+\.\d+)\.(.+)", path):
        kind, rest = found.groups()
        leaf = renamed(RESNET, rest, path) if kind.startswith("resnets") else inside(rest, path)
        return f"middle_block.{renamed(MIDDLE, kind, path)}.{leaf}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", path):
        return f"input_blocks.{per * int(found[1]) + per}.0.op"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", path):
        return f"output_blocks.{per * int(found[1]) + per - 1}.2.conv"
    raise ValueError(f"{path!r} is not a layer of SDXL's UNet")


def from_sgm(path: str, layers_per_block: int) -> str:
    """the inverse of sgm()."""
    if path in (outer := {new: old for old, new in OUTER.items()}):
        return outer[path]
    resnet = {new: old for old, new in RESNET.items()}
    per = layers_per_block + 1
    if found := re.fullmatch(r"middle_block\.(\d+)\.(.+)", path):
        kind = renamed({new: old for old, new in MIDDLE.items()}, found[1], path)
        leaf = renamed(resnet, found[2], path) if kind.startswith("resnets") else found[2]
        return f"mid_block.{kind}.{leaf}"
    if found := re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", path):
        side = "down" if found[1] == "input" else "up"
        number = int(found[2])
        inner, rest = found[3], found[4]
        i, j = divmod(number - (side == "down"), per)
        if (side, inner, rest) == ("down", "0", "op") and j == per - 1:
            return f"down_blocks.{i}.downsamplers.0.conv"
        if (side, inner, rest) == ("up", "2", "conv") and j == per - 1:
            return f"up_blocks.{i}.upsamplers.0.conv"
        if inner != "2" and number - (side == "down") >= 0 and (side == "up" or j < per - 1):
            leaf = f"resnets.{j}.{renamed(resnet, rest, path)}" if inner == "0" else f"attentions.{j}.{rest}"
            return f"{side}_blocks.{i}.{leaf}"
    layers = counted(layers_per_block, "layer")
    raise ValueError(f"{path!r} is not a layer of SDXL's UNet with {layers} per block")


def inside(rest: str, path: str) -> str:
    if not re.fullmatch(INSIDE, rest):
        raise ValueError(f"{path!r} is not a layer of SDXL's UNet")
    return rest


def renamed(names: dict[str, str], name: str, path: str) -> str:
    if name not in names:
        raise ValueError(f"{path!r} is not a layer of SDXL's UNet")
    return names[name]


def checkpoint_names(
    names: dict[str, list[str]], layers_per_block: int, levels: int
) -> dict[str, list[tuple[str, str]]]:
    """{name in an original checkpoint: its tensors, as (component, name)}, of UNet, text encoders and VAE.

    One tensor there is one here, but for q, k, v of the second text encoder, which are stacked.
    """
    found = {}
    for name in names["unet"]:
        path, _, leaf = name.rpartition(".")
        found[f"model.diffusion_model.{sgm(path, layers_per_block)}.{leaf}"] = [("unet", name)]
    for name in names["text_encoder"]:
        found[f"conditioner.embedders.0.transformer.{name}"] = [("text_encoder", name)]
    for name in sorted(names["text_encoder_2"], key=qkv_last):
        found.setdefault(f"conditioner.embedders.1.model.{substituted(name, OPEN_CLIP)}", []).append(
            ("text_encoder_2", name)
        )
    for name in names["vae"]:
        new = re.sub(r"(?<=decoder\.up\.)\d+", lambda i: str(levels - 1 - int(i[0])), substituted(name, VAE))
        found[f"first_stage_model.{new}"] = [("vae", name)]
    return found


def qkv_last(name: str) -> tuple[bool, int]:
    """Sorts q before k before v; all else stays in place."""
    found = re.search(r"self_attn\.([qkv])_proj", name)
    return (True, "qkv".index(found[1])) if found else (False, 0)


def substituted(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name
