"""Merged bases load again in plain diffusers, and hold base + delta in every weight."""

import shutil

import pytest
import torch
from adapter_files import CONFIGS, changes, deltas
from diffusers import StableDiffusionXLPipeline
from helpers import adapted_pipeline
from safetensors.torch import load_file, save_file

from gralora_diffusion import load_sdxl
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.base_files import OLD_VAE, from_checkpoint, structure, to_checkpoint
from gralora_diffusion.formats.lazy_tensors import write_streamed
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.write import write_diffusers
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import EMBEDDED


@pytest.fixture(scope="module")
def mixed() -> Adapter:
    return Adapter.from_models(adapted_pipeline(CONFIGS["mixed"])[1])


@pytest.mark.parametrize("single", [False, True], ids=["folder", "checkpoint"])
def test_merged_bases_load_again(single, mixed, tmp_path):
    out = tmp_path / ("merged.safetensors" if single else "merged")
    write_merged(out, mixed, None, torch.float32)
    if single:
        again = StableDiffusionXLPipeline.from_single_file(
            str(out), config=str(EMBEDDED), local_files_only=True, add_watermarker=False
        )
    else:
        again = StableDiffusionXLPipeline.from_pretrained(out, add_watermarker=False)
    found, wanted, base = changes(again, load_sdxl()), deltas(mixed), load_sdxl()
    assert set(found) == set(wanted)
    for layer, delta in wanted.items():
        torch.testing.assert_close(found[layer], delta, rtol=0, atol=2e-6)
    assert all(
        torch.equal(again.vae.state_dict()[name], tensor) for name, tensor in base.vae.state_dict().items()
    )
    with pytest.raises(ConfigError, match="already exists"):
        write_merged(out, mixed, None, torch.float32)


def test_other_ways_to_store_a_base(mixed, tmp_path):
    """In parts, as a variant, and with the VAE attention's names and shapes before diffusers 0.15."""
    base = tmp_path / "base"
    shutil.copytree(EMBEDDED, base)
    unet, vae = (
        base / "unet" / "diffusion_pytorch_model.safetensors",
        base / "vae" / "diffusion_pytorch_model.safetensors",
    )
    tensors = load_file(unet)
    unet.unlink()
    for i in (0, 1):
        save_file(
            dict(list(tensors.items())[i::2]),
            unet.with_name(f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"),
        )
    old, tensors = {new: name for name, new in OLD_VAE.items()}, load_file(vae)
    for name in list(tensors):
        if not any(new in name for new in old):
            continue
        tensor = tensors.pop(name)
        for new in old:
            name = name.replace(new, old[new])
        tensors[name] = tensor[..., None, None] if tensor.ndim == 2 else tensor
    assert "encoder.mid_block.attentions.0.query.weight" in tensors
    save_file(tensors, vae)
    (base / "text_encoder" / "model.safetensors").rename(base / "text_encoder" / "model.fp16.safetensors")
    write_merged(tmp_path / "a.safetensors", mixed, str(base), torch.float32)
    write_merged(tmp_path / "b.safetensors", mixed, None, torch.float32)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_checkpoint_is_read_as_it_was_written(mixed, tmp_path):
    """Other tensors stay: marks of v-prediction, old buffers; the header loses its hashes."""
    write_merged(tmp_path / "x.safetensors", mixed, None, torch.float32)
    more = dict(v_pred=torch.zeros(0), position_ids=torch.arange(77)[None], logit_scale=torch.tensor(4.6))
    tensors = load_file(tmp_path / "x.safetensors") | more
    save_file(tensors, tmp_path / "x.safetensors", {"modelspec.title": "x", "modelspec.hash_sha256": "0x0"})
    _, names, layout = structure(EMBEDDED)
    found, others, metadata = from_checkpoint(tmp_path / "x.safetensors", names, layout)
    assert others.keys() == more.keys()
    assert metadata == {"modelspec.title": "x"}
    write_streamed(tmp_path / "y.safetensors", to_checkpoint(found, layout) | others, torch.float32, metadata)
    again = load_file(tmp_path / "y.safetensors")
    assert again.keys() == tensors.keys()
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


def test_a_merge_that_leaves_the_range_of_fp16_writes_nothing(mixed, tmp_path):
    component, path, factors = next(mixed.items())
    huge = Adapter(
        mixed.config, {component: {path: factors | dict(gralora_B=factors["gralora_B"] * 1e7)}}, {}
    )
    with pytest.raises(ConfigError, match=r"is too large for float16; use --dtype"):
        write_merged(tmp_path / "x", huge, None, torch.float16)
    with pytest.raises(ValueError, match="not finite as float16"):
        write_diffusers(tmp_path / "x.safetensors", huge, torch.float16)
    assert not list(tmp_path.iterdir())
