"""SDXL at its true size with random weights: needs 16 GB of memory, 8 GB of disk and some minutes.  FULL_SIZE=1 pytest tests/test_full_size.py -s"""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import TRAIN

from gralora_diffusion.command_line import PRESETS
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.options import from_dict
from gralora_diffusion.sdxl import base as sdxl

full_size = pytest.mark.skipif(
    not os.environ.get("FULL_SIZE"), reason="set FULL_SIZE=1: takes minutes and 16 GB of memory"
)


def random_(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A model on the meta device with weights that keep numbers finite: normal ones for matrices, 1 for norms, 0 for biases."""
    model = model.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            p.data.normal_(0, p[0].numel() ** -0.5, generator=generator)
        else:
            p.data.fill_(float(name.endswith("weight")))
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return model


def write_random_sdxl(folder: Path) -> None:
    """SDXL's public config in diffusers layout, bf16; the tokenizers are the embedded base's, with 77 places."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [
        CLIPTokenizer.from_pretrained(sdxl.EMBEDDED / name, model_max_length=77)
        for name in ("tokenizer", "tokenizer_2")
    ]
    special = dict(bos_token_id=tokenizers[0].bos_token_id, eos_token_id=tokenizers[0].eos_token_id)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(sdxl.SDXL_UNET)
        one = CLIPTextModel(CLIPTextConfig(**(sdxl.SDXL_TEXT_ENCODER | special)))
        two = CLIPTextModelWithProjection(CLIPTextConfig(**(sdxl.SDXL_TEXT_ENCODER_2 | special)))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
            layers_per_block=2, latent_channels=4, sample_size=1024, scaling_factor=0.13025,
        )  # fmt: skip
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    StableDiffusionXLPipeline(
        vae=random_(vae, torch.float32), unet=random_(unet, torch.bfloat16), text_encoder=random_(one, torch.bfloat16),
        text_encoder_2=random_(two, torch.bfloat16), tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1), add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip


@full_size
def test_three_steps_at_full_size_save_and_reload(tmp_path):
    """At 256 px with gradient checkpointing: 560 layers learn, the peak of memory is near the forecast, and the file loads again."""
    from gralora_diffusion import load_adapter, load_sdxl

    base = Path(os.environ.get("FULL_SIZE_BASE", tmp_path / "base"))
    if not base.exists():
        writer = multiprocessing.get_context("spawn").Process(
            target=write_random_sdxl, args=(base,)
        )  # gives its memory back
        writer.start()
        writer.join()
        assert writer.exitcode == 0
    options = dict(
        pretrained_model_name_or_path=base,
        resolution=256,
        mixed_precision="bf16",
        max_train_steps=3,
        gralora_rank=64,
    )
    flags = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    began = time.monotonic()
    done = subprocess.run(
        [*TRAIN, *flags, "--gradient_checkpointing", "--skip_final_inference", "--output_dir", str(tmp_path / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "560 layers, 92,897,280 parameters" in done.stdout
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    plan = subprocess.run(
        [*TRAIN, *flags, "--gradient_checkpointing", "--dry_run"], capture_output=True, text=True, check=True
    )
    planned = float(re.search(r"about ([\d.]+) GiB", plan.stdout)[1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    print(
        f"\n3 steps in {time.monotonic() - began:.0f} s, losses {[round(line['loss'], 3) for line in lines]}"
    )
    print(
        f"a step's memory by --dry_run {planned:.2f} GiB; the process had {max(line['memory'] for line in lines) / 2**30:.2f} GiB after a step"
    )
    print(
        "forecast before the first step and what happened:",
        json.dumps(status["forecast"]),
        json.dumps(status["actual"]),
    )
    assert status["actual"]["memory_mb"] == pytest.approx(status["forecast"]["memory_mb"], rel=0.2)
    pipeline = load_sdxl(str(base), dtype=torch.bfloat16)
    assert load_adapter(pipeline, tmp_path / "run")["config"]["rank"] == 64
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_options_and_leave_room_on_the_card(name):
    options, names = PRESETS[name]["options"], AdapterConfig.__dataclass_fields__
    adapter = from_dict(AdapterConfig, {n: v for n, v in options.items() if n in names})
    from_dict(TrainConfig, {"adapter": adapter, **{n: v for n, v in options.items() if n not in names}})
    assert PRESETS[name]["forecast_gib"] + 1.5 < float(re.search(r"-(\d+)gb", name)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["subject-8gb", "style-24gb"])
def test_a_presets_forecast_is_what_the_planner_says(name):
    from gralora_diffusion.command_line import parse
    from gralora_diffusion.training.step_cost import step_memory

    config = parse("", ["--preset", name, "--pretrained_model_name_or_path", "x"])
    bytes_of = step_memory(sdxl.SDXL_UNET, config, config.resolution, torch.bfloat16)
    assert sum(bytes_of.values()) / 2**30 == pytest.approx(PRESETS[name]["forecast_gib"], abs=0.05)
