"""What was trained for is read from every tool's marks, and travels into every output."""

import json

import pytest
import torch
from helpers import adapted_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gralora_diffusion import AdapterConfig, load_sdxl
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.combine import Weighted, summed
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui, write_native
from gralora_diffusion.formats.write_peft import write_peft
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.objective import (
    header_of,
    objective_of_checkpoint,
    objective_of_folder,
    objective_of_header,
    objective_of_scheduler,
    objective_text,
)
from gralora_diffusion.sdxl.sampling import as_trained

EPSILON = dict(prediction_type="epsilon", rescale_betas_zero_snr=False)
V = dict(prediction_type="v_prediction", rescale_betas_zero_snr=False)
V_ZERO = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True)


@pytest.mark.parametrize(
    ("names", "header", "wanted"),
    [
        ((), {}, {}),
        (("v_pred",), {}, V),
        (("v_pred", "ztsnr"), {}, V_ZERO),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, V),
        ((), {"modelspec.prediction_type": "v"}, V),
        ((), {"modelspec.prediction_type": "V"}, V),
        ((), {"modelspec.prediction_type": "epsilon"}, EPSILON),
        ((), {"modelspec.prediction_type": "none of ours"}, {}),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, V_ZERO),
        ((), {"ss_v_parameterization": "False"}, EPSILON),
    ],
    ids=str,
)
def test_marks_of_checkpoints(names, header, wanted):
    assert objective_of_checkpoint(set(names), header) == wanted


@pytest.mark.parametrize("objective", [EPSILON, V, V_ZERO], ids=objective_text)
def test_a_header_says_it_and_is_read_again(objective):
    assert objective_of_header(header_of(objective)) == objective


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter.from_models(adapted_pipeline(AdapterConfig(rank=8, k=2), ["unet"])[1])


def trained_for(adapter: Adapter, objective: dict) -> Adapter:
    return Adapter(adapter.config, adapter.layers, adapter.facts | dict(objective=objective))


@pytest.mark.parametrize("objective", [EPSILON, V, V_ZERO], ids=objective_text)
def test_it_travels_into_merged_bases(objective, adapter, tmp_path):
    mine = trained_for(adapter, objective)
    write_merged(tmp_path / "folder", mine, None, torch.float32)
    assert objective_of_folder(tmp_path / "folder") == objective
    scheduler = load_sdxl(str(tmp_path / "folder")).scheduler
    same = as_trained(scheduler, **objective)
    assert same is scheduler
    write_merged(tmp_path / "file.safetensors", mine, None, torch.float32)
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        names, header = set(file.keys()), file.metadata()
    assert objective_of_checkpoint(names, header) == objective
    assert ("ztsnr" in names) == objective["rescale_betas_zero_snr"]
    # an adapter that does not say what it was trained for leaves the base's own
    silent = Adapter(adapter.config, adapter.layers, {})
    write_merged(tmp_path / "again.safetensors", silent, str(tmp_path / "folder"), torch.float32)
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        assert objective_of_checkpoint(set(file.keys()), file.metadata()) == objective


@pytest.mark.parametrize("write", [write_comfyui, write_native])
def test_it_travels_through_adapter_files(write, adapter, tmp_path):
    write(tmp_path / "x.safetensors", trained_for(adapter, V_ZERO))
    assert read_adapter(tmp_path / "x.safetensors").facts["objective"] == V_ZERO


def test_adapters_for_different_predictions_are_not_added(adapter):
    parts = [Weighted(trained_for(adapter, objective)) for objective in (V, EPSILON)]
    with pytest.raises(ConfigError, match=r"one is for .*, another for "):
        summed(parts)
    both = summed([parts[0], Weighted(trained_for(adapter, V))])
    assert both.facts["objective"] == V


def test_it_travels_through_peft_folders(adapter, tmp_path):
    write_peft(tmp_path / "x", trained_for(adapter, V_ZERO))
    assert read_adapter(tmp_path / "x").facts["objective"] == V_ZERO


def test_epsilon_of_another_tool_does_not_change_a_base_that_predicts_v(adapter, tmp_path):
    """Every file of kohya's scripts says it, also those that are used with bases that predict v."""
    write_comfyui(
        tmp_path / "x.safetensors", Adapter(adapter.config, adapter.layers, dict(layers_per_block=1))
    )
    header = {"ss_v_parameterization": "False", "gralora.layers_per_block": "1"}
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "theirs.safetensors", header)
    theirs = read_adapter(tmp_path / "theirs.safetensors")
    write_merged(tmp_path / "v", trained_for(adapter, V_ZERO), None, torch.float32)
    write_merged(tmp_path / "both", theirs, str(tmp_path / "v"), torch.float32)
    assert objective_of_folder(tmp_path / "both") == V_ZERO


def test_a_scheduler_is_of_one_objective(adapter, tmp_path):
    """What was trained for epsilon on a base of v with zero terminal SNR has neither."""
    write_merged(tmp_path / "v", trained_for(adapter, V_ZERO), None, torch.float32)
    scheduler = as_trained(load_sdxl(str(tmp_path / "v")).scheduler, **EPSILON)
    assert objective_of_scheduler(scheduler.config) == EPSILON


def test_a_folder_without_a_scheduler_says_nothing(tmp_path):
    assert objective_of_folder(tmp_path) == {}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({}))
    assert objective_of_folder(tmp_path) == EPSILON
