"""Names of layers there and back, and SDXL in full size through the export."""

import os
import subprocess
import time

import pytest
import torch
from adapter_files import merged_sdxl, sdxl_sized
from helpers import GRALORA
from safetensors import safe_open

from gralora_diffusion import AdapterConfig
from gralora_diffusion.formats.layer_names import canonical, from_kohya, from_sgm, kohya, sgm
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_native
from gralora_diffusion.sdxl.load import shapes


@pytest.mark.parametrize("of_sdxl", [False, True], ids=["embedded", "SDXL"])
def test_names_there_and_back(of_sdxl, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    models, number = shapes(tmp_path / "x.safetensors" if of_sdxl else None), 2 if of_sdxl else 1
    for component, model in models.items():
        modules = {
            canonical(component, p): m for p, m in model.named_modules() if list(m.parameters(recurse=False))
        }
        linears = [path for path, m in modules.items() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
        for style in (number, None):
            names = {kohya(component, path, style): path for path in linears}
            assert len(names) == len(linears)
            assert all(from_kohya(name, number) == (component, path) for name, path in names.items())
        if component == "unet":
            assert all(from_sgm(sgm(path, number), number) == path for path in modules)
    some = "down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0"
    assert kohya("unet", some, 2) == "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_out_0"
    assert sgm("up_blocks.0.upsamplers.0.conv", 2) == "output_blocks.2.2.conv"
    for name in (
        "lora_unet_Down_blocks_1",
        "lora_te3_x",
        "lora_unet_input_blocks_3_1_proj_in",
        "lora_unet_input_blocks_5_0_proj_in",
        "lora_unet_",
    ):
        with pytest.raises(ValueError, match="is not"):
            from_kohya(name)


@pytest.mark.slow
def test_full_size_export(tmp_path):
    """Rank 64, k 4: each key is a layer of the original checkpoint, once. Memory in a process of its own."""
    adapter = sdxl_sized(AdapterConfig(rank=64, k=4), tmp_path / "sdxl.safetensors")
    assert {component: len(found) for component, found in adapter.layers.items()} == dict(
        unet=560, text_encoder=48, text_encoder_2=128
    )
    write_native(tmp_path / "adapter.safetensors", adapter)
    del adapter
    command = [
        *GRALORA,
        "convert",
        tmp_path / "adapter.safetensors",
        tmp_path / "x.safetensors",
        "--to",
        "comfyui",
    ]
    started = time.monotonic()
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    seconds, processor, memory = (
        time.monotonic() - started,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
    )
    size = (tmp_path / "x.safetensors").stat().st_size
    print(
        f"{said.strip()}: rank 64, k 4, {size / 1e6:.0f} MB in {seconds:.1f} s "
        f"({processor:.1f} s of CPU), {memory / 2**30:.2f} GiB at most"
    )
    assert "736 layers of " in said
    assert memory < 4 * 2**30
    adapter = read_adapter(tmp_path / "adapter.safetensors")
    names = {kohya(component, path, 2): (component, path) for component, path, _ in adapter.items()}
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        keys = set(file.keys())
        assert keys == {
            f"{name}.{leaf}" for name in names for leaf in ("lora_down.weight", "lora_up.weight", "alpha")
        }
        for name in list(names)[::60]:
            down, up, alpha = (
                file.get_tensor(f"{name}.{leaf}") for leaf in ("lora_down.weight", "lora_up.weight", "alpha")
            )
            assert alpha.item() == down.shape[0] == 256
            mine, theirs = adapter.low_rank(*names[name]), (down.float(), up.float())
            wanted = mine[1] @ mine[0]
            assert float((theirs[1] @ theirs[0] - wanted).norm() / wanted.norm()) < 1e-3


def test_full_size_names_are_the_original_checkpoints(tmp_path):
    """Shapes alone: diffusers' own conversion reads back what merging writes for SDXL, tensor for tensor."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    models, written = merged_sdxl(tmp_path / "sdxl.safetensors")
    assert len(written) == 2513
    assert written["conditioner.embedders.1.model.transformer.resblocks.9.attn.in_proj_weight"].shape == (
        3840,
        1280,
    )
    unet = convert_ldm_unet_checkpoint(dict(written), models["unet"].config)
    vae = convert_ldm_vae_checkpoint(dict(written), models["vae"].config)
    for model, found in ((models["unet"], unet), (models["vae"], vae)):
        wanted = model.state_dict()
        assert wanted.keys() == found.keys()
        assert all(found[name].shape == tensor.shape for name, tensor in wanted.items())
