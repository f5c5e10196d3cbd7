"""Bases with random weights for gpu.sh: made on the GPU, by the models' own initialization."""

import copy
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from gralora_diffusion.devices import best_precision
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.sdxl.single_file import (
    SDXL_SCHEDULER,
    SDXL_TEXT_ENCODER,
    SDXL_TEXT_ENCODER_2,
    SDXL_UNET,
    SDXL_VAE,
    clip_tokenizer,
)
from gralora_diffusion.training import setup
from gralora_diffusion.training.accelerator import DTYPES

CUDA = torch.device("cuda")
GIB = 2**30
NAME = "random.safetensors"  # the file that a run names as its base
MODELS = ("unet", "text_encoder", "text_encoder_2", "vae")


@dataclass(frozen=True)
class Sizes:
    """How much of everything is measured."""

    small: bool  # the embedded base's shape instead of SDXL's
    resolution: int
    rank: int
    k: int
    rounds: int  # of the timed steps, a step of every kind in each
    fixed_steps: int  # on one fixed batch, a multiple of 3
    run_steps: int  # of a run that is stopped and resumed, an even number
    images: int
    at_once: int  # images of a batch
    denoising: int  # steps of an image


FULL = Sizes(False, 1024, 64, 4, rounds=20, fixed_steps=30, run_steps=6, images=20, at_once=4, denoising=8)
QUICK = Sizes(True, 64, 8, 2, rounds=2, fixed_steps=6, run_steps=2, images=2, at_once=1, denoising=2)


def half_precision() -> str:
    """bf16, or fp16 on a card that does not compute in bf16."""
    return best_precision(CUDA)


def configs_of(small: bool) -> dict[str, dict]:
    """{model: its configuration}, and that of the scheduler."""
    if not small:
        models = (SDXL_UNET, SDXL_TEXT_ENCODER, SDXL_TEXT_ENCODER_2, SDXL_VAE)
        return dict(zip(MODELS, models, strict=True)) | dict(scheduler=SDXL_SCHEDULER)
    files = {name: EMBEDDED / name / "config.json" for name in MODELS}
    files["scheduler"] = EMBEDDED / "scheduler" / "scheduler_config.json"
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def random_pipeline(small: bool, dtype: torch.dtype):
    """A StableDiffusionXLPipeline on the GPU, the same in every call: weights in `dtype`, the VAE in fp32."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    configs = configs_of(small)
    if small:
        folders = (EMBEDDED / "tokenizer", EMBEDDED / "tokenizer_2")
        tokenizers = [CLIPTokenizer.from_pretrained(folder) for folder in folders]
    else:
        tokenizers = [clip_tokenizer("<|endoftext|>"), clip_tokenizer("!")]
    torch.manual_seed(0)
    with made_in(torch.float32):
        vae = AutoencoderKL.from_config(configs["vae"])
    with made_in(dtype):
        unet = UNet2DConditionModel.from_config(configs["unet"])
        first = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
        second = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(configs["text_encoder_2"]))
    for model in (first, second):  # which transformers makes in the dtype that their configuration names
        model.to(dtype)
    models = dict(unet=unet, text_encoder=first, text_encoder_2=second, vae=vae)
    for model in models.values():
        model.eval().requires_grad_(False)
    pipeline = StableDiffusionXLPipeline(
        **models,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler.from_config(configs["scheduler"]),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """Make models on the GPU in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with CUDA:
            yield
    finally:
        torch.set_default_dtype(before)


def sharing(model: nn.Module) -> nn.Module:
    """A copy with the same weights in memory; moving or replacing those of one leaves the other alone."""
    memo = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.data
    return copy.deepcopy(model, memo)


@functools.cache
def pipeline_on_host(small: bool, dtype: torch.dtype):
    """random_pipeline(), moved to the CPU."""
    pipeline = random_pipeline(small, dtype).to("cpu")
    torch.cuda.empty_cache()
    return pipeline


@contextmanager
def random_base(small: bool, folder: Path) -> Iterator[str]:
    """Let train() load a random base in the place of the file that is given, an empty one in `folder`."""
    file = folder / NAME
    file.touch()

    def load(path=None, vae=None, dtype=torch.float32, **how):
        kept = pipeline_on_host(small, dtype)
        models = {name: sharing(getattr(kept, name)) for name in MODELS}
        others = dict(tokenizer=kept.tokenizer, tokenizer_2=kept.tokenizer_2, scheduler=kept.scheduler)
        pipeline = type(kept)(**models, **others, add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    try:
        with mock.patch.object(setup, "load_sdxl", load):
            yield str(file)
    finally:
        pipeline_on_host.cache_clear()


def dtype_of(precision: str) -> torch.dtype:
    return DTYPES[precision]


def forget_accelerator() -> None:
    """Let what follows choose its precision: accelerate keeps one for a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def gib(size: float) -> float:
    return round(size / GIB, 3)
