"""ComfyUI's own code on our files, where COMFYUI_DIR names a ComfyUI with its requirements."""

import asyncio
import logging
import os
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from adapter_files import merged_sdxl, sdxl_sized
from lycoris_files import KINDS, stored_by_lycoris
from safetensors.torch import load_file, save_file

import gralora_diffusion
from gralora_diffusion import AdapterConfig
from gralora_diffusion.formats.layer_names import sgm
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui, write_diffusers, write_native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set"),
]


@pytest.fixture(scope="module")
def comfyui():
    """ComfyUI's own modules, on the CPU."""
    sys.path.insert(0, os.environ["COMFYUI_DIR"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        import folder_paths
        import nodes
    yield types.SimpleNamespace(comfy=comfy, nodes=nodes, folder_paths=folder_paths)
    sys.path.remove(os.environ["COMFYUI_DIR"])


# ComfyUI computes these in its own way; we follow the trainers.
DIFFERENT = {
    "DoRA": "divides by the norm of W, not by that of W plus its change",
    "DoRA, conv": "the same",
    "LoHa, DoRA": "the same",
    "LoKr, DoRA": "the same",
    "OFT, constrained": "takes alpha for the limit, where LyCORIS takes alpha times M",
    "OFT, rescaled": "does not apply rescale",
    "IA3": "does not read it",
    "IA3 of the inputs": "does not read it",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_changes_that_we_read_are_those_that_comfyui_makes(comfyui, sdxl, kind, tmp_path):
    stored = stored_by_lycoris(kind)
    save_file({key: t.contiguous() for key, t in stored.tensors.items()}, tmp_path / "x.safetensors")
    names = comfyui.comfy.lora.model_lora_keys_unet(sdxl[0].model, {})
    found = comfyui.comfy.lora.load_lora(load_file(tmp_path / "x.safetensors"), names)
    found = {key if isinstance(key, str) else key[0]: patch for key, patch in found.items()}
    errors = []
    for component, name, delta in read_adapter(tmp_path / "x.safetensors").changes():
        path, _, leaf = name.rpartition(".")
        key = weight_of(component, path).removesuffix("weight") + leaf
        before = dict(stored.layer.named_parameters())[leaf].detach().double()
        if key not in found:
            errors.append(1.0)
            continue
        after = comfyui.comfy.lora.calculate_weight([(1.0, found[key], 1.0, None, None)], before.clone(), key)
        ours = delta.applied(before)
        errors.append(float((after - before - ours).norm() / ours.norm()))
    assert errors
    assert (max(errors) > 1e-5) == (kind in DIFFERENT)


@pytest.fixture(scope="module")
def sdxl(comfyui):
    """ComfyUI's own SDXL, its UNet and its text encoders, without weights."""
    import comfy.supported_models

    config = dict(
        comfy.supported_models.SDXL.unet_config,
        in_channels=4,
        out_channels=4,
        num_res_blocks=[2, 2, 2],
        channel_mult=[1, 2, 4],
    )
    config |= dict(
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10,
        image_size=32,
        num_head_channels=64,
    )
    config |= dict(use_spatial_transformer=True, legacy=False, num_classes="sequential", dtype=torch.float32)
    with torch.device("meta"):
        config = comfy.supported_models.SDXL(config)
        model = config.get_model({}, device="meta")
    model = comfyui.comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
    options = dict(initial_device=torch.device("meta"), dtype=torch.float32)
    return model, comfyui.comfy.sd.CLIP(config.clip_target(), model_options=options)


def weight_of(component: str, path: str) -> str:
    """ComfyUI's name of the weight."""
    return (
        f"diffusion_model.{sgm(path, 2)}.weight"
        if component == "unet"
        else f"clip_{'lg'[component.endswith('2')]}.transformer.{path}.weight"
    )


def check(comfyui, sdxl, file, adapter, tolerance, caplog):
    """The stock Load LoRA node loads the file into both models; each patch adds that layer's delta."""
    comfyui.folder_paths.add_model_folder_path("loras", str(file.parent), is_default=True)
    node, patches = comfyui.nodes.LoraLoader(), {}
    for strength in (0.0, 0.5, 1.0, 2.0):
        model, clip = node.load_lora(*sdxl, file.name, strength, strength)
        patches[strength] = {**model.patches, **clip.patcher.patches}
    assert not patches.pop(0.0)
    for found in patches.values():
        assert len(found) == 736
        assert set(found) == {weight_of(component, path) for component, path, _ in adapter.items()}
    for component, path, _ in adapter.items():
        key, (down, up) = weight_of(component, path), adapter.low_rank(component, path)
        delta = up @ down
        for strength, found in patches.items():
            patched = comfyui.comfy.lora.calculate_weight(found[key], torch.zeros_like(delta), key)
            assert float((patched - strength * delta).norm() / (strength * delta).norm()) <= tolerance, (
                key,
                strength,
            )
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name == "root"]


def test_the_export_patches_every_weight(comfyui, sdxl, tmp_path, caplog):
    adapter = sdxl_sized(AdapterConfig(rank=64, k=4), tmp_path / "sdxl.safetensors")
    write_comfyui(tmp_path / "x.safetensors", adapter)
    check(comfyui, sdxl, tmp_path / "x.safetensors", adapter, 1e-3, caplog)


MIXED = AdapterConfig(
    rank=16, k=2, hybrid_rank=8, alpha=24.0, rank_pattern={"attn2": 24, "q_proj": 12}, k_pattern={"attn2": 4}
)


@pytest.mark.parametrize("sgm_names", [True, False], ids=["SGM", "diffusers"])
def test_mixed_sizes(comfyui, sdxl, sgm_names, tmp_path, caplog):
    adapter = sdxl_sized(MIXED, tmp_path / "sdxl.safetensors")
    write_comfyui(tmp_path / "x.safetensors", adapter, torch.float32, sgm_names)
    check(comfyui, sdxl, tmp_path / "x.safetensors", adapter, 1e-6, caplog)


def test_diffusers_files_lose_the_unet_there(comfyui, sdxl, tmp_path, caplog):
    """Why comfyui.safetensors exists.  When this fails, ComfyUI has learned diffusers' names."""
    write_diffusers(tmp_path / "x.safetensors", sdxl_sized(MIXED, tmp_path / "sdxl.safetensors"))
    comfyui.folder_paths.add_model_folder_path("loras", str(tmp_path), is_default=True)
    model, clip = comfyui.nodes.LoraLoader().load_lora(*sdxl, "x.safetensors", 1.0, 1.0)
    assert len(model.patches) == 0
    assert len(clip.patcher.patches) == 176


@pytest.mark.parametrize(
    "config", [MIXED, AdapterConfig(method="lora", rank=4, alpha=6.0)], ids=["hybrid", "lora"]
)
def test_the_custom_node_reads_native_files(comfyui, sdxl, config, tmp_path, caplog):
    folder = Path(gralora_diffusion.__file__).parent / "integrations" / "comfyui"
    count = len(comfyui.comfy.weight_adapter.adapters)
    for _ in range(2):  # a second import adds nothing
        assert asyncio.run(comfyui.nodes.load_custom_node(str(folder)))
    assert len(comfyui.comfy.weight_adapter.adapters) - count in (0, 1)
    adapter = sdxl_sized(config, tmp_path / "sdxl.safetensors")
    write_native(tmp_path / "x.safetensors", adapter)
    check(comfyui, sdxl, tmp_path / "x.safetensors", adapter, 1e-6, caplog)
    if hasattr(
        comfyui.comfy.weight_adapter.WeightAdapterBase, "h"
    ):  # ComfyUI 0.16 and later: the nodes that leave weights alone
        component, path, _ = next(adapter.items())
        down, up = adapter.low_rank(component, path)
        patches = comfyui.nodes.LoraLoader().load_lora(*sdxl, "x.safetensors", 1.0, 1.0)[0].patches
        ((_, reader, *_),) = patches[weight_of(component, path)]
        reader.multiplier, x = 0.5, torch.randn(2, 3, down.shape[1])
        torch.testing.assert_close(reader.h(x, None), 0.5 * x @ (up @ down).T)


def test_a_merged_checkpoint_is_a_whole_sdxl_there(comfyui, tmp_path, caplog):
    """By names and shapes ComfyUI takes it for SDXL, and its three models miss nothing and leave nothing."""
    _, written = merged_sdxl(tmp_path / "sdxl.safetensors")
    comfy, unet, vae = comfyui.comfy, "model.diffusion_model.", "first_stage_model."
    config = comfy.model_detection.model_config_from_unet(written, unet)
    assert type(config) is comfy.supported_models.SDXL
    config.set_inference_dtype(torch.float16, None)
    model = config.get_model(written, unet, device="meta").diffusion_model.state_dict()
    assert {n: t.shape for n, t in model.items()} == {
        n.removeprefix(unet): t.shape for n, t in written.items() if n.startswith(unet)
    }
    clip = comfy.sd.CLIP(
        config.clip_target(written),
        model_options=dict(initial_device=torch.device("meta"), dtype=torch.float16),
    )
    missing, unexpected = clip.load_sd(config.process_clip_state_dict(dict(written)), full_model=True)
    assert not unexpected
    assert all(
        "logit_scale" in name or name == "clip_l.transformer.text_projection.weight" for name in missing
    ), missing
    comfy.sd.VAE(
        sd={n.removeprefix(vae): torch.zeros(t.shape) for n, t in written.items() if n.startswith(vae)}
    )
    assert not [
        r.getMessage()
        for r in caplog.records
        if r.levelname in ("WARNING", "ERROR") or "VAE keys" in r.getMessage()
    ]
