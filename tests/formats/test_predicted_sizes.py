"""The sizes that are predicted from shapes alone are those of the files."""

from pathlib import Path

import pytest
import torch
from adapter_files import CONFIGS, CONVOLUTIONS
from foreign_files import MADE
from helpers import MODELS, adapted_pipeline
from safetensors.torch import save_file

from gralora_diffusion import AdapterConfig
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.nearest import nearest
from gralora_diffusion.formats.predicted_sizes import CONTENTS, nearest_on_meta, on_meta, predicted_sizes
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.writers import DTYPES, WRITERS
from gralora_diffusion.options import ConfigError

TRAINED = {
    **CONFIGS,
    **CONVOLUTIONS,
    "gralora of rank 64, k 4": AdapterConfig(rank=64, k=4),  # a plain LoRA of rank 256, above layers' sides
    "gralora of rank 64, k 8": AdapterConfig(rank=64, k=8, alpha=3.0),
    "hybrid of rank 64": AdapterConfig(rank=64, k=4, hybrid_rank=32),
    "T-LoRA": AdapterConfig(method="lora", rank=32, tlora=True),
    "Ortho-LoRA": AdapterConfig(method="ortholora", rank=8),
    "ranks of an allocation": AdapterConfig(
        method="lora", rank=8, rslora=True, alpha=16.0, rank_pattern={"to_q$": 3, "to_k$": 40, "fc1$": 11}
    ),
    "all layers": AdapterConfig(method="lora", rank=16, targets="all-linear"),
}
CASES = [("fp16", None), ("fp16", 32), ("fp32", None), ("fp8", 3)]
TEXT_ENCODERS = ("gralora", "locon")  # whose text encoders are trained too


def written(adapter: Adapter, folder: Path, dtype: str) -> dict[str, int | None]:
    """{format: bytes of its files}; None where the writer refuses the adapter."""
    sizes = {}
    for kind in CONTENTS:
        path = folder / f"of-{kind}{WRITERS[kind].suffixes[0]}"
        try:
            WRITERS[kind].write(path, adapter, dtype)
        except ConfigError:
            sizes[kind] = None
            continue
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sizes[kind] = sum(file.stat().st_size for file in files)
    return sizes


def check_sizes(adapter: Adapter, folder: Path, rank: int | None, dtype: str) -> dict[str, int | None]:
    shapes = on_meta(adapter)
    if rank is not None:
        adapter = nearest(adapter, rank).adapter
        shapes = nearest_on_meta(shapes, rank)
    found = written(adapter, folder, dtype)
    predicted = predicted_sizes(shapes, getattr(torch, DTYPES[dtype]), "of-comfyui")
    assert predicted == found
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_sizes_are_those_of_every_kind_that_is_trained(tmp_path, name):
    _, models = adapted_pipeline(TRAINED[name], MODELS if name in TEXT_ENCODERS else ("unet",))
    adapter = Adapter.from_models(models)
    adapter.facts["prompts"] = {"instance_prompt": "a photo of sks dög"}
    for number, (dtype, rank) in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = check_sizes(adapter, folder, rank, dtype)
        assert found["comfyui"]
        assert found["diffusers"]
        assert rank is None or all(found.values())


def test_files_of_a_gralora_for_other_tools_hold_its_whole_rank(tmp_path):
    """k blocks of rank r are a plain LoRA of rank k r, in layers with shorter sides too."""
    _, models = adapted_pipeline(TRAINED["gralora of rank 64, k 8"], ("unet",))
    adapter = Adapter.from_models(models)
    numbers = 0
    found = check_sizes(adapter, tmp_path, None, "fp16")
    for _, _, factors in adapter.items():
        k, n, _ = factors["gralora_A"].shape
        numbers += 8 * 64 * (k * n + k * factors["gralora_B"].shape[2])
    assert 2 * numbers < found["diffusers"] < 2.1 * numbers


@pytest.mark.parametrize("name", MADE)
def test_sizes_are_those_of_other_tools_kinds(tmp_path, name):
    path = tmp_path / "in.safetensors"
    save_file(MADE[name][0], path, MADE[name][1] or None)
    try:
        adapter = read_adapter(path)
    except ConfigError:
        pytest.skip("of several files")
    check_sizes(adapter, tmp_path, None, "fp16")
    (tmp_path / "small").mkdir()
    try:
        nearest(adapter, 2)
    except ConfigError:
        with pytest.raises(ConfigError):
            nearest_on_meta(on_meta(adapter), 2)
        return
    check_sizes(adapter, tmp_path / "small", 2, "fp16")
