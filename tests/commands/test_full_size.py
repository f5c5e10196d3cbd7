"""SDXL at its true size with random weights.

    FULL_SIZE=1 pytest tests/commands/test_full_size.py -s

Needs 16 GB of memory, 8 GB of disk and some minutes.
"""

import functools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import time
import zlib
from pathlib import Path

import pytest
import torch
from adapter_files import merged_sdxl, sdxl_sized
from helpers import GRALORA, TRAIN

from gralora_diffusion.command_line import parse
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.formats.lazy_tensors import LazyTensor, write_streamed
from gralora_diffusion.formats.write import write_comfyui
from gralora_diffusion.options import from_dict
from gralora_diffusion.presets import PRESETS
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.sdxl.single_file import SDXL_TEXT_ENCODER, SDXL_TEXT_ENCODER_2, SDXL_UNET

full_size = pytest.mark.skipif(
    not os.environ.get("FULL_SIZE"), reason="set FULL_SIZE=1: takes minutes and 16 GB of memory"
)


def with_random_weights(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A model of the meta device with weights that keep numbers finite.

    Matrices are normal, weights of norms 1, biases 0.
    """
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
    """SDXL's public config in diffusers layout, bf16, with the embedded base's tokenizers for 77 tokens."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = []
    for name in ("tokenizer", "tokenizer_2"):
        tokenizers.append(CLIPTokenizer.from_pretrained(EMBEDDED / name, model_max_length=77))
    special = dict(bos_token_id=tokenizers[0].bos_token_id, eos_token_id=tokenizers[0].eos_token_id)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL_UNET)
        one = CLIPTextModel(CLIPTextConfig(**SDXL_TEXT_ENCODER | special))
        two = CLIPTextModelWithProjection(CLIPTextConfig(**SDXL_TEXT_ENCODER_2 | special))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=1024,
            scaling_factor=0.13025,
        )
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline = StableDiffusionXLPipeline(
        vae=with_random_weights(vae, torch.float32),
        unet=with_random_weights(unet, torch.bfloat16),
        text_encoder=with_random_weights(one, torch.bfloat16),
        text_encoder_2=with_random_weights(two, torch.bfloat16),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)


@full_size
def test_three_steps_at_full_size_save_and_reload(tmp_path):
    """At 256 px with gradient checkpointing: 560 layers, memory near the forecast, a file that loads."""
    from gralora_diffusion import load_adapter, load_sdxl

    base = Path(os.environ.get("FULL_SIZE_BASE", tmp_path / "base"))
    if not base.exists():
        # in a process of its own, which returns its memory
        writer = multiprocessing.get_context("spawn").Process(target=write_random_sdxl, args=(base,))
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
    command = [*TRAIN, *(f"--{name}={value}" for name, value in options.items()), "--gradient_checkpointing"]
    began = time.monotonic()
    training = [*command, "--skip_final_inference", "--output_dir", tmp_path / "run"]
    done = subprocess.run(training, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "560 layers, 92,897,280 parameters" in done.stdout
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    plan = subprocess.run([*command, "--dry_run"], capture_output=True, text=True, check=True)
    planned = float(re.search(r"about ([\d.]+) GiB", plan.stdout)[1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [round(line["loss"], 3) for line in lines]
    print(f"\n3 steps in {time.monotonic() - began:.0f} s, losses {losses}")
    peak = max(line["memory"] for line in lines) / 2**30
    print(f"memory of a step by --dry_run {planned:.2f} GiB, of the process after a step {peak:.2f} GiB")
    print("forecast before the first step:", json.dumps(status["forecast"]))
    print("actual:", json.dumps(status["actual"]))
    assert status["actual"]["memory_mb"] == pytest.approx(status["forecast"]["memory_mb"], rel=0.2)
    pipeline = load_sdxl(str(base), dtype=torch.bfloat16)
    assert load_adapter(pipeline, tmp_path / "run")["config"]["rank"] == 64
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_options_and_leave_room_on_the_card(name):
    options = PRESETS[name]["options"]
    names = AdapterConfig.__dataclass_fields__
    adapter = from_dict(AdapterConfig, {n: v for n, v in options.items() if n in names})
    rest = {n: v for n, v in options.items() if n not in names}
    from_dict(TrainConfig, rest | {"adapter": adapter})
    assert PRESETS[name]["forecast_gib"] + 1.5 < float(re.search(r"-(\d+)gb", name)[1])


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_forecast_is_that_of_the_planner(name, tmp_path):
    from gralora_diffusion.sdxl.load import COMPONENTS, shapes, vae_shapes
    from gralora_diffusion.training.phase_memory import numbers, phase_memory
    from gralora_diffusion.training.step_cost import step_memory

    base = tmp_path / "base.safetensors"
    base.touch()  # a single file is of SDXL's own shape
    config = parse("", ["--preset", name, "--pretrained_model_name_or_path", str(base)]).resolved()
    step = step_memory(SDXL_UNET, config, config.resolution, torch.bfloat16)
    models = shapes(str(base))
    text_encoders = sum(numbers(models[name]) for name in COMPONENTS[1:])
    sizes = text_encoders, numbers(vae_shapes(str(base)))
    card = int(PRESETS[name]["usable_gib"] * 2**30)
    phases = phase_memory(step, *sizes, config, config.resolution, torch.bfloat16, card)
    assert max(phases.values()) / 2**30 == pytest.approx(PRESETS[name]["forecast_gib"], abs=0.05)


# ----- adapters: convert, merge of three, extract, inspect


def random_tensor(name: str, shape: list[int], tuned: bool) -> torch.Tensor:
    """Normal numbers that depend on the name; tuned: plus a change of rank 32 of each matrix."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensor = torch.randn(shape, generator=generator) * 0.02
    if tuned and len(shape) > 1:
        rows, columns = shape[0], tensor[0].numel()
        up, down = torch.randn(rows, 32, generator=generator), torch.randn(32, columns, generator=generator)
        tensor += (up @ down).reshape(shape) * 1e-4
    return tensor


def write_random_checkpoint(file: Path, tuned: bool) -> None:
    """A whole SDXL checkpoint in the original layout, fp16, one tensor at a time."""
    file.with_suffix("").mkdir(exist_ok=True)
    _, meta = merged_sdxl(file.with_suffix("") / "shapes.safetensors")
    tensors = {}
    for name, tensor in meta.items():
        shape = list(tensor.shape)
        tensors[name] = LazyTensor(shape, tensor.dtype, functools.partial(random_tensor, name, shape, tuned))
    write_streamed(file, tensors, torch.float16, {})


def measured(*arguments, cwd: Path) -> tuple[float, float, str]:
    """(seconds, GiB at the peak, output) of a gralora command in a process of its own."""
    started = time.monotonic()
    command = [str(argument) for argument in (*GRALORA, *arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output
    seconds, peak = time.monotonic() - started, used.ru_maxrss / 2**20
    print(f"{arguments[0]:<8} {seconds:6.1f} s, {peak:.2f} GiB: {output.strip().splitlines()[-1][:100]}")
    return seconds, peak, output


@full_size
def test_adapters_of_full_size(tmp_path):
    """Each command within 4 GiB; times are printed, since they depend on the machine."""
    for number in (1, 2, 3):
        adapter = sdxl_sized(
            AdapterConfig(method="lora", rank=64, targets="attention+ff"), tmp_path / "shapes.safetensors"
        )
        write_comfyui(tmp_path / f"{number}.safetensors", adapter)
        del adapter
    for name in ("base", "tuned"):
        write_random_checkpoint(tmp_path / f"{name}.safetensors", name == "tuned")
    files = [f"{number}.safetensors" for number in (1, 2, 3)]
    base = ["--pretrained_model_name_or_path", "base.safetensors"]
    gralora = ["--method", "gralora", "--k", 4]
    peaks = []
    for arguments in (
        ["inspect", files[0]],
        ["convert", files[0], "a.safetensors", "--to", "comfyui", "--rank", 32],
        ["convert", files[0], "b.safetensors", "--to", "native", "--rank", 64, *gralora],
        ["convert", *files, "c.safetensors", "--to", "comfyui", "--strength", "1,0.5,0.2"],
        ["convert", *files, "d.safetensors", "--to", "merged", "--strength", "1,0.5,0.2", *base],
        ["extract", "tuned.safetensors", "base.safetensors", "e.safetensors", "--rank", 64],
        ["extract", "tuned.safetensors", "base.safetensors", "f.safetensors", "--rank", 64, *gralora],
    ):
        _, peak, output = measured(*arguments, cwd=tmp_path)
        peaks.append(peak)
        if arguments[0] == "extract" and "--k" not in arguments:
            error = next(line for line in output.splitlines() if line.startswith("overall relative error"))
            assert float(error.split()[-1]) < 0.1  # fp16's rounding of the two checkpoints
        for file in tmp_path.glob("[a-f].safetensors"):
            file.unlink()
    assert max(peaks) < 4
