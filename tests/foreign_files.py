"""Small adapter files in other tools' naming and structure, of the embedded base's sizes.

MADE: {name: (tensors, header) that every command takes}; REFUSED: {name: (tensors, words of the sentence)}.
"""

import json

import torch

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
SGM_BLOCK = "middle_block.1.transformer_blocks.0"
Q, K, OUT = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn1.to_out.0"
PROJ, CONV, NORM = "mid_block.attentions.0.proj_in", "mid_block.resnets.0.conv1", f"{BLOCK}.norm1"
TEXT_1 = "text_model.encoder.layers.0.self_attn.q_proj"
TEXT_2 = "text_model.encoder.layers.1.mlp.fc1"
SIZES = {
    Q: (160, 160),
    K: (192, 160),
    OUT: (160, 160),
    PROJ: (160, 160),
    TEXT_1: (64, 64),
    TEXT_2: (128, 512),
}
KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")
RANDOM = torch.Generator().manual_seed(0)
Tensors = dict[str, torch.Tensor]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM) * 0.1


def around_one(*shape: int) -> torch.Tensor:
    return 0.5 + torch.rand(shape, generator=RANDOM)


def underscored(path: str, prefix: str = "lora_unet_") -> str:
    return prefix + path.replace(".", "_")


def lora(name: str, path: str, leaves=KOHYA, alpha=2.0, dtype=torch.float32) -> Tensors:
    """A LoRA of rank 4 for the layer `path`, under this name; an alpha of None is left out."""
    n, m = SIZES[path]
    down, up = random(4, n).to(dtype), random(m, 4).to(dtype)
    tensors = {f"{name}.{leaves[0]}": down, f"{name}.{leaves[1]}": up}
    return tensors if alpha is None else tensors | {f"{name}.alpha": torch.as_tensor(alpha)}


def locon(middle: bool = False) -> Tensors:
    name = underscored(CONV)
    down = {"lora_down.weight": random(4, 160, 1, 1), "lora_mid.weight": random(4, 4, 3, 3)}
    if not middle:
        down = {"lora_down.weight": random(4, 160, 3, 3)}
    tensors = down | {"lora_up.weight": random(160, 4, 1, 1), "alpha": torch.tensor(2.0)}
    return {f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()}


def of_layer(leaves: Tensors, path: str = Q, prefix: str = "lora_unet_") -> Tensors:
    return {f"{underscored(path, prefix)}.{leaf}": tensor for leaf, tensor in leaves.items()}


def loha() -> Tensors:
    a, b = ("hada_w1_a", "hada_w2_a"), ("hada_w1_b", "hada_w2_b")
    return {name: random(160, 4) for name in a} | {name: random(4, 160) for name in b}


def text(first: str, second: str) -> Tensors:
    return lora(underscored(TEXT_1, first), TEXT_1) | lora(underscored(TEXT_2, second), TEXT_2)


def with_header(tensors: Tensors, **header) -> tuple[Tensors, dict[str, str]]:
    return tensors, {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in header.items()
    }


KOHYA_Q = underscored(Q)
SGM_Q = f"{SGM_BLOCK}.attn1.to_q"
PLAIN = lora(KOHYA_Q, Q)
CONFIG = {"unet.r": 4, "unet.lora_alpha": 8, "unet.target_modules": ["to_q"]}
LOKR = {"lokr_w1": random(8, 8), "lokr_w2_a": random(20, 4), "lokr_w2_b": random(4, 20)}
GLORA = dict(a1=(4, 160), a2=(160, 4), b1=(4, 160), b2=(160, 4))
TABLE = "text_model.embeddings.token_embedding"
SPELLINGS = {  # {tool or habit: tensors of plain LoRAs}
    "kohya": PLAIN | text("lora_te1_", "lora_te2_"),
    "kohya, SGM": lora(underscored(SGM_Q), Q),
    "no alpha": lora(KOHYA_Q, Q, alpha=None),
    "bf16": {key: tensor.bfloat16() for key, tensor in PLAIN.items()},
    "fp8": {key: tensor.to(torch.float8_e4m3fn) for key, tensor in PLAIN.items()},
    "fp64": {key: tensor.double() for key, tensor in PLAIN.items()},
    "alpha, int64": lora(KOHYA_Q, Q, alpha=2),
    "alpha, int32 of one dimension": lora(KOHYA_Q, Q, alpha=torch.tensor([2], dtype=torch.int32)),
    "alpha, two dimensions": lora(KOHYA_Q, Q, alpha=torch.tensor([[2.0]])),
    "alpha, negative": lora(KOHYA_Q, Q, alpha=-2.0),
    "text encoders alone": text("lora_te1_", "lora_te2_"),
    "text encoder, flat": lora("lora_te1_encoder_layers_0_self_attn_q_proj", TEXT_1),
    "OneTrainer, dots": lora(f"lora_unet.{Q}", Q) | lora(f"lora_te1.{TEXT_1}", TEXT_1),
    "OneTrainer, OMI": lora(f"unet.{SGM_Q}", Q) | lora(f"clip_g.{TEXT_2}", TEXT_2),
    "OneTrainer, embedding inside": PLAIN | {"bundle_emb.<me>.clip_l": random(2, 64)},
    "LyCORIS's wrapper": lora(underscored(Q, "lycoris_"), Q),
    "LyCORIS's wrapper of a text encoder": lora(underscored(TEXT_1, "lycoris_"), TEXT_1),
    "LyCORIS, text encoders": text("lycoris_te1_", "lycoris_te2_"),
    "LyCORIS, UNet": lora(underscored(Q, "lycoris_unet_"), Q),
    "lora_te beside lora_te2": text("lora_te_", "lora_te2_"),
    "lora_text_encoder": text("lora_text_encoder_", "lora_text_encoder_2_"),
    "diffusers": lora(f"unet.{Q}", Q, PEFT, None) | lora(f"text_encoder_2.{TEXT_2}", TEXT_2, PEFT, None),
    "diffusers, down and up": lora(f"unet.{Q}", Q, ("lora.down.weight", "lora.up.weight"), None),
    "diffusers, alpha": lora(f"unet.{Q}", Q, PEFT),
    "diffusers beside kohya": lora(f"unet.{Q}", Q, PEFT, None) | text("lora_te1_", "lora_te2_"),
    "a compiled model": lora(f"unet._orig_mod.{Q}", Q, PEFT, None),
    "a distributed model": lora(f"module.{Q}", Q, PEFT, None),
    "PEFT, alone": lora(f"base_model.model.{Q}", Q, PEFT, None),
    "ComfyUI": lora(f"diffusion_model.{SGM_Q}", Q),
    "ComfyUI, whole name": lora(f"model.diffusion_model.{SGM_Q}", Q, PEFT, None),
    "a linear layer as a convolution": {
        f"{underscored(PROJ)}.lora_down.weight": random(4, 160, 1, 1),
        f"{underscored(PROJ)}.lora_up.weight": random(160, 4, 1, 1),
    },
}
SPELLINGS["text projection"] = {
    "lora_te2_text_projection.lora_down.weight": random(4, 128),
    "lora_te2_text_projection.lora_up.weight": random(128, 4),
}
SPELLINGS["diffusers, processors"] = {
    f"unet.{BLOCK}.attn1.processor.to_q_lora.down.weight": random(4, 160),
    f"unet.{BLOCK}.attn1.processor.to_q_lora.up.weight": random(160, 4),
}
KINDS = {  # {kind: tensors}
    "LoCon": PLAIN | locon(),
    "LoCon, middle": PLAIN | locon(middle=True),
    "LoHa": of_layer(loha() | {"alpha": torch.tensor(2.0)}),
    "LoHa of OneTrainer": {f"{underscored(BLOCK)}_attn1.to_q.{leaf}": t for leaf, t in loha().items()},
    "LoKr": of_layer(LOKR | {"alpha": torch.tensor(2.0)}),
    "LoKr of SimpleTuner": of_layer(LOKR, prefix="lycoris_"),
    "LoKr, whole": of_layer(
        {"lokr_w1": random(8, 8), "lokr_w2": random(20, 20), "alpha": torch.tensor(1e10)}
    ),
    "LoKr, conv": of_layer(
        {"lokr_w1_a": random(8, 2), "lokr_w1_b": random(2, 8), "lokr_w2": random(20, 20, 3, 3)}, CONV
    ),
    "IA3": of_layer({"weight": random(160), "on_input": torch.tensor(False)}),
    "DoRA": PLAIN | {f"{KOHYA_Q}.dora_scale": around_one(160, 1)},
    "DoRA, one dimension": PLAIN | {f"{KOHYA_Q}.dora_scale": around_one(160)},
    "DoRA of the inputs": lora(underscored(K), K) | {f"{underscored(K)}.dora_scale": around_one(1, 192)},
    "DoRA of a convolution's inputs": locon() | {f"{underscored(CONV)}.dora_scale": around_one(1, 160, 1, 1)},
    "DoRA of diffusers": lora(f"unet.{Q}", Q, PEFT, None)
    | {f"unet.{Q}.lora_magnitude_vector": around_one(160)},
    "full difference": of_layer({"diff": random(160, 160)}),
    "replaced weight": {f"diffusion_model.{SGM_Q}.set_weight": random(160, 160)},
    "GLoRA": of_layer({f"{name}.weight": random(*shape) for name, shape in GLORA.items()}),
    "OFT of kohya": of_layer(
        {"oft_blocks": random(4, 40, 40), "alpha": torch.tensor(1e-3)}, prefix="oft_unet_"
    ),
    "OFT of LyCORIS": of_layer({"oft_blocks": random(4, 40, 40), "alpha": torch.tensor(0.0)}),
    "OFT v2": of_layer({"oft_R.weight": random(20, 28)}) | of_layer({"oft_R.weight": random(1, 28)}, CONV),
    "OFT v2, scaled": of_layer({"oft_R.weight": random(20, 28), "oft_R.scaled_oft": torch.tensor(1)}),
    "BOFT of kohya": of_layer({"boft_R": random(1, 20, 8, 8), "boft_s": around_one(160, 1)}),
    "T-LoRA of LyCORIS": of_layer(
        {"q_layer.weight": random(4, 160), "p_layer.weight": random(160, 4), "lambda_layer": around_one(1, 4)}
    ),
    "norm": PLAIN | of_layer({"w_norm": random(160), "b_norm": random(160)}, NORM),
    "bias": PLAIN | of_layer({"diff_b": random(160)}, OUT),
    "embedding": PLAIN
    | {f"text_encoder.{TABLE}.lora_embedding_A": random(4, 1630)}
    | {f"text_encoder.{TABLE}.lora_embedding_B": random(64, 4)},
    "embedding, whole": PLAIN | {f"{underscored(TABLE, 'lora_te1_')}.diff": random(1630, 64)},
    "whole layer of PEFT": lora(f"base_model.model.{Q}", Q, PEFT, None)
    | {"base_model.model.conv_in.weight": random(64, 16, 3, 3), "base_model.model.conv_in.bias": random(64)},
    "different ranks": PLAIN
    | of_layer({"lora_down.weight": random(12, 160), "lora_up.weight": random(160, 12)}, OUT),
    "up of zeros": {key: torch.zeros_like(t) if "up" in key else t for key, t in PLAIN.items()},
}
HEADERS = {
    "LoraConfig": with_header(lora(f"unet.{Q}", Q, PEFT, None), lora_adapter_metadata=CONFIG),
    "rsLoRA": with_header(
        lora(f"unet.{Q}", Q, PEFT, None), lora_adapter_metadata=CONFIG | {"unet.use_rslora": True}
    ),
}
MADE = {name: (tensors, {}) for name, tensors in (SPELLINGS | KINDS).items()} | HEADERS
REFUSED = {
    "Stable Diffusion 1": (lora(underscored(TEXT_1, "lora_te_"), TEXT_1), "Stable Diffusion 1 or 2"),
    "Flux": (lora("transformer.single_transformer_blocks.0.attn.to_q", Q, PEFT), "made for .* Flux"),
    "textual inversion": ({"clip_l": random(2, 64)}, "textual inversion"),
    "half a pair": ({f"{KOHYA_Q}.lora_down.weight": random(4, 160)}, "save or download the file again"),
    "two styles": (PLAIN | lora(f"unet.{Q}", Q, PEFT), "second tensor for the same layer"),
    "two adapters": (
        lora(f"unet.{Q}", Q, ("lora_A.a.weight", "lora_B.a.weight"), None)
        | lora(f"unet.{Q}", Q, ("lora_A.b.weight", "lora_B.b.weight"), None),
        "or holds several adapters",
    ),
    "OFT of PEFT, alone": ({f"base_model.model.{Q}.oft_R.weight": random(20, 28)}, "adapter_config.json"),
    "VeRA, alone": (
        {
            f"base_model.model.{Q}.vera_lambda_b": random(160),
            f"base_model.model.{Q}.vera_lambda_d": random(4),
        },
        "adapter_config.json",
    ),
    "projections of VeRA, alone": ({f"base_model.vera_{x}": random(4, 4) for x in "AB"}, "holds no layers"),
    "an embedding that is none": (
        of_layer({"lora_embedding_A": random(4, 160), "lora_embedding_B": random(160, 4)}),
        "LoRA of an embedding, but is another layer",
    ),
    "a scale of fp8": (PLAIN | {f"{KOHYA_Q}.lora_up.weight_scale": torch.tensor(0.5)}, "unknown tensor"),
}
