"""The networks of the embedded base before training, and how its text encoders are read."""

import torch
from composer import SIZE
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

POSITIONS = 32  # tokens of a prompt
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=SIZE,
        force_upcast=False,
    )


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=16,
        out_channels=16,
        layers_per_block=1,
        block_out_channels=(64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 4, 5),
        cross_attention_dim=192,
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 6 * 32,
    )


def make_encoders(tokenizer):
    """SDXL's two text encoders in small, and the image encoder that they are trained with."""
    common = dict(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    one = CLIPTextConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, **common
    )
    two = CLIPTextConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=128,
        hidden_act="gelu",
        **common,
    )
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=128,
    )
    return CLIPTextModel(one), CLIPTextModelWithProjection(two), CLIPVisionModelWithProjection(vision)


def token_ids(tokenizer, texts: list[str], padding: str = "max_length") -> torch.Tensor:
    encoded = tokenizer(texts, padding=padding, truncation=True, max_length=POSITIONS, return_tensors="pt")
    return encoded.input_ids


def embed(texts: list[str], tokenizers, encoders) -> tuple[torch.Tensor, torch.Tensor]:
    """SDXL's conditioning: both penultimate states [n, POSITIONS, 192], the pooled embedding [n, 128]."""
    one = encoders[0](token_ids(tokenizers[0], texts), output_hidden_states=True)
    two = encoders[1](token_ids(tokenizers[1], texts), output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds
