"""The custom node for ComfyUI on a stub of what it uses; test_comfyui.py runs ComfyUI itself."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adapter_files import CONFIGS, CONVOLUTIONS
from helpers import adapted_pipeline
from safetensors.torch import load_file

import gralora_diffusion
from gralora_diffusion import AdapterConfig
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.write import write_native

CONFIGS = {**CONFIGS, **CONVOLUTIONS, "alpha": AdapterConfig(method="lora", rank=4, alpha=6.0)}
CONFIGS["ortho"] = AdapterConfig(method="ortholora", rank=4, alpha=6.0, targets="attention+ff+conv")
NODE = Path(gralora_diffusion.__file__).parent / "integrations" / "comfyui" / "__init__.py"


class WeightAdapterBase:
    """What ComfyUI's class of this name has for a reader of files."""

    multiplier = 1.0

    @classmethod
    def load(cls, x, lora, alpha, dora_scale, loaded_keys=None):
        raise NotImplementedError


@pytest.fixture
def comfyui(monkeypatch):
    """comfy.weight_adapter with its list of readers, one of which has no name."""
    comfy, module = types.ModuleType("comfy"), types.ModuleType("comfy.weight_adapter")
    module.WeightAdapterBase = WeightAdapterBase
    module.adapters = [type("LoRAAdapter", (WeightAdapterBase,), {"name": "lora"}), WeightAdapterBase]
    comfy.weight_adapter = module
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.weight_adapter", module)
    return module


def import_node(comfyui):
    """The node's reader, as ComfyUI imports a custom node's folder."""
    spec = importlib.util.spec_from_file_location("custom_node", NODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS == {}
    return comfyui.adapters[-1]


def name_in_comfyui(component: str, path: str) -> str:
    """What ComfyUI asks readers for: diffusers' path, with its old names of attention processors."""
    if component != "unet":
        return f"{component}.{path}"
    return f"unet.{path.replace('.to_', '.processor.to_').removesuffix('.0')}"


def shape_of(adapter: Adapter, component: str, path: str, delta: torch.Tensor) -> torch.Size:
    kernel = adapter.kernel(component, path)
    return delta.shape if kernel is None else delta.unflatten(1, (-1, *kernel)).shape


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_node_adds_the_adapters_delta(config, comfyui, tmp_path):
    """To weights and to outputs, in each layer, and every tensor of the file is used."""
    reader = import_node(comfyui)
    adapter = Adapter.from_models(adapted_pipeline(config)[1])
    write_native(tmp_path / "x.safetensors", adapter)
    tensors = load_file(tmp_path / "x.safetensors")
    used = set()
    for component, path, _ in adapter.items():
        found = reader.load(name_in_comfyui(component, path), tensors, None, None, used)
        assert isinstance(found, WeightAdapterBase)
        down, up = adapter.low_rank(component, path)
        delta = (up @ down).view(shape_of(adapter, component, path, up @ down))
        weight = torch.randn_like(delta)
        patched = found.calculate_weight(weight.clone(), path, 0.5, 1.0, None, lambda x: x)
        torch.testing.assert_close(patched, weight + 0.5 * delta, rtol=1e-5, atol=1e-5)
        found.multiplier = 0.25
        if delta.ndim == 4:
            found.kw_dict = dict(stride=2, padding=1)
            x = torch.randn(2, delta.shape[1], 5, 4)
            wanted = F.conv2d(x, 0.25 * delta, stride=2, padding=1)
        else:
            x = torch.randn(2, 3, delta.shape[1])
            wanted = F.linear(x, 0.25 * delta)
        torch.testing.assert_close(found.h(x, None), wanted, rtol=1e-4, atol=1e-4)
    assert used == set(tensors)


def test_what_is_not_a_native_layer_is_left_to_others(comfyui):
    reader = import_node(comfyui)
    lora = {"unet.a.lora_A": torch.ones(2, 4), "lora_unet_a.lora_down.weight": torch.ones(2, 4)}
    for name in ("unet.a", "unet.b", "lora_unet_a"):
        assert reader.load(name, lora, None, None) is None
    lora["unet.a.lora_B"] = torch.ones(3, 2)
    assert reader.load("unet.a", lora, None, None).loaded_keys == {"unet.a.lora_A", "unet.a.lora_B"}


def test_another_shape_is_an_error(comfyui):
    reader = import_node(comfyui)
    lora = {"unet.a.lora_A": torch.ones(2, 4, 1, 1), "unet.a.lora_B": torch.ones(3, 2)}
    found = reader.load("unet.a", lora, None, None)
    with pytest.raises(ValueError, match=r"layer of \[3, 4, 1, 1\], and the model's is \[3, 4\]"):
        found.calculate_weight(torch.zeros(3, 4), "a.weight", 1.0, 1.0, None, lambda x: x)


def test_a_second_import_adds_nothing(comfyui):
    count = len(comfyui.adapters)
    import_node(comfyui)
    import_node(comfyui)
    assert len(comfyui.adapters) == count + 1
