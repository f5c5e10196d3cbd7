"""ComfyUI's own code against our files.  Runs where COMFYUI_DIR names a checkout of ComfyUI whose requirements are installed."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_names import sdxl_sized

import gralora_diffusion
from gralora_diffusion import AdapterConfig
from gralora_diffusion.formats import write_comfyui, write_diffusers, write_native
from gralora_diffusion.names import sgm

pytestmark = [pytest.mark.slow, pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set")]


@pytest.fixture(scope="module")
def comfy():
    """comfy.lora on the CPU, and ComfyUI's map from file names to the weights of its own SDXL."""
    sys.path.insert(0, os.environ["COMFYUI_DIR"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        import comfy.lora
        import comfy.lora_convert
        import comfy.sdxl_clip
        import comfy.supported_models

        with torch.device("meta"):
            config = dict(comfy.supported_models.SDXL.unet_config, in_channels=4, out_channels=4, num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4])
            config |= dict(transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, image_size=32, num_head_channels=64)
            config |= dict(use_spatial_transformer=True, legacy=False, num_classes="sequential", dtype=torch.float32)
            model = comfy.supported_models.SDXL(config).get_model({}, device="meta")
            clip = comfy.sdxl_clip.SDXLClipModel(device="meta", dtype=torch.float32)
    sys.path.remove(os.environ["COMFYUI_DIR"])
    names = comfy.lora.model_lora_keys_clip(clip, comfy.lora.model_lora_keys_unet(model, {}))
    return comfy, names


def weight_of(component: str, path: str) -> str:
    """ComfyUI's name of the weight."""
    return f"diffusion_model.{sgm(path, 2)}.weight" if component == "unet" else f"clip_{'lg'[component.endswith('2')]}.transformer.{path}.weight"


def check(comfy, names, file, adapter, tolerance, caplog):
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(file)), names)
    assert not [r for r in caplog.records if "not loaded" in r.getMessage()]
    assert len(patches) == 736
    assert set(patches) == {weight_of(component, path) for component, path, _ in adapter.items()}
    for component, path, _ in list(adapter.items())[::40]:
        key, (down, up) = weight_of(component, path), adapter.low_rank(component, path)
        delta = up @ down
        for strength in (0.0, 0.5, 1.0, 2.0):
            patched = comfy.lora.calculate_weight([(strength, patches[key], 1.0, None, None)], torch.zeros_like(delta), key)
            assert float((patched - strength * delta).norm() / delta.norm()) <= tolerance, key
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


def test_the_export_patches_every_weight(comfy, tmp_path, caplog):
    adapter = sdxl_sized(AdapterConfig(rank=64, k=4), tmp_path / "sdxl.safetensors")
    write_comfyui(tmp_path / "x.safetensors", adapter)
    check(*comfy, tmp_path / "x.safetensors", adapter, 1e-3, caplog)


MIXED = AdapterConfig(rank=16, k=2, hybrid_rank=8, alpha=24.0, rank_pattern={"attn2": 24, "q_proj": 12}, k_pattern={"attn2": 4})


@pytest.mark.parametrize("sgm_names", [True, False], ids=["SGM", "diffusers"])
def test_mixed_sizes(comfy, sgm_names, tmp_path, caplog):
    adapter = sdxl_sized(MIXED, tmp_path / "sdxl.safetensors")
    write_comfyui(tmp_path / "x.safetensors", adapter, torch.float32, sgm_names)
    check(*comfy, tmp_path / "x.safetensors", adapter, 1e-6, caplog)


def test_diffusers_files_lose_the_unet_there(comfy, tmp_path, caplog):
    """Why comfyui.safetensors exists.  When this fails, ComfyUI has learnt diffusers' names."""
    write_diffusers(tmp_path / "x.safetensors", sdxl_sized(MIXED, tmp_path / "sdxl.safetensors"))
    assert len(comfy[0].lora.load_lora(load_file(tmp_path / "x.safetensors"), comfy[1])) == 176


@pytest.mark.parametrize("config", [MIXED, AdapterConfig(method="lora", rank=4, alpha=6.0)], ids=["hybrid", "lora"])
def test_the_custom_node_reads_native_files(comfy, config, tmp_path, caplog):
    folder = Path(gralora_diffusion.__file__).parent / "integrations" / "comfyui"
    spec = importlib.util.spec_from_file_location("gralora_node", folder / "__init__.py")
    count = len(comfy[0].weight_adapter.adapters)
    for _ in range(2):  # a second import adds nothing
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert len(comfy[0].weight_adapter.adapters) - count in (0, 1)
    adapter = sdxl_sized(config, tmp_path / "sdxl.safetensors")
    write_native(tmp_path / "x.safetensors", adapter)
    check(*comfy, tmp_path / "x.safetensors", adapter, 1e-6, caplog)
