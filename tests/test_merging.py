"""Merged bases load again in plain diffusers, and hold base + delta in every weight."""

import pytest
import torch
from conftest import adapted_pipeline
from diffusers import StableDiffusionXLPipeline
from test_convert import changes, deltas
from test_formats import CONFIGS

from gralora_diffusion import load_sdxl
from gralora_diffusion.config import ConfigError
from gralora_diffusion.exchange import Adapter
from gralora_diffusion.formats import write_diffusers
from gralora_diffusion.merging import write_merged
from gralora_diffusion.sdxl import EMBEDDED


@pytest.fixture(scope="module")
def mixed() -> Adapter:
    return Adapter.from_models(adapted_pipeline(CONFIGS["mixed"])[1])


@pytest.mark.parametrize("single", [False, True], ids=["folder", "checkpoint"])
def test_merged_bases_load_again(single, mixed, tmp_path):
    out = tmp_path / ("merged.safetensors" if single else "merged")
    write_merged(out, mixed, None, torch.float32)
    if single:
        again = StableDiffusionXLPipeline.from_single_file(str(out), config=str(EMBEDDED), local_files_only=True, add_watermarker=False)
    else:
        again = StableDiffusionXLPipeline.from_pretrained(out, add_watermarker=False)
    found, wanted, base = changes(again, load_sdxl()), deltas(mixed), load_sdxl()
    assert set(found) == set(wanted)
    for layer, delta in wanted.items():
        torch.testing.assert_close(found[layer], delta, rtol=0, atol=2e-6)
    assert all(torch.equal(again.vae.state_dict()[name], tensor) for name, tensor in base.vae.state_dict().items())
    with pytest.raises(ConfigError, match="exists already"):
        write_merged(out, mixed, None, torch.float32)


def test_a_merge_that_leaves_the_range_of_fp16_writes_nothing(mixed, tmp_path):
    component, path, factors = next(mixed.items())
    huge = Adapter(mixed.config, {component: {path: factors | dict(gralora_B=factors["gralora_B"] * 1e7)}}, {})
    with pytest.raises(ConfigError, match=r"leaves the range of float16; take --dtype"):
        write_merged(tmp_path / "x", huge, None, torch.float16)
    with pytest.raises(ValueError, match="not finite as float16"):
        write_diffusers(tmp_path / "x.safetensors", huge, torch.float16)
    assert not list(tmp_path.iterdir())
