"""What several test files share: where the project is, its commands, and an adapted base model."""

import sys
from pathlib import Path

import torch

from gralora_diffusion import AdapterConfig, inject, load_sdxl
from gralora_diffusion.adapters.registry import adapter_parameters

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
GRALORA = [sys.executable, "-m", "gralora_diffusion"]
TRAIN = [*GRALORA, "train"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]

IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
CLIP_CONFIG = dict(
    embed_dim=16,
    vision_cfg=dict(image_size=48, layers=2, width=32, head_width=16, patch_size=8),
    text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=2),
)
MODELS = ("unet", "text_encoder", "text_encoder_2")


def gora(rank: int, **options) -> dict:
    """TrainConfig's options for `--adapter gora`."""
    adapter = AdapterConfig(method="lora", rank=rank, rslora=True, alpha=16.0)
    return dict(adapter=adapter, allocate="gora", gora_init="random") | options


def adapted_pipeline(config: AdapterConfig, names=MODELS):
    """The embedded base with random, non-zero adapters, and {component: model}."""
    pipeline = load_sdxl()
    models = {name: getattr(pipeline, name) for name in names}
    torch.manual_seed(1)
    for model in models.values():
        inject(model, config)
        for name, p in adapter_parameters(model).items():
            p.data.normal_(std=0.1 if name.endswith("_B") or not p.any() else p.data.std().item())
    return pipeline, models
