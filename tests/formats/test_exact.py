"""Every writer holds the adapter's delta: float64, 1e-10, against the papers' formulas, not low_rank().

Each file is read by its own tool's rule for names and scale, so that any lost factor is found.
"""

import dataclasses
import json
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from adapter_files import CONFIGS, CONVOLUTIONS
from helpers import MODELS, adapted_pipeline
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, load_sdxl
from gralora_diffusion.adapters.control import merge
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.combine import Weighted, summed
from gralora_diffusion.formats.layer_names import canonical, kohya
from gralora_diffusion.formats.nearest import as_lora
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write_peft import installed_path
from gralora_diffusion.formats.writers import WRITERS

EXACT = dict(rtol=0, atol=1e-10)


def product_of(factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """[M, N] without the scale: block (j, i) is sum_s outer(B_js, A_is) (GraLoRA, eq. 5), plus B A.

    N counts a convolution's channels and, within each, its kernel.
    """
    factors = dict(factors)
    for leaf in ("lora_A", "gralora_A"):
        if leaf in factors and factors[leaf].ndim > 3:
            factors[leaf] = factors[leaf].flatten(1, 3)
    total = 0
    if "gralora_A" in factors:
        k, n, r = factors["gralora_A"].shape
        m = factors["gralora_B"].shape[2]
        A = factors["gralora_A"].reshape(k, n, k, r // k)  # [in block i, n, out block j, s]
        B = factors["gralora_B"].reshape(k, k, r // k, m)  # [out block j, in block i, s, m]
        total = total + torch.einsum("injs,jism->jmin", A, B).reshape(k * m, k * n)
    if "lora_A" in factors:
        total = total + factors["lora_B"] @ factors["lora_A"]
    return total


def rank_of(factors: dict[str, torch.Tensor]) -> int:
    blocks = factors["gralora_A"].shape[-1] if "gralora_A" in factors else 0
    return blocks + (factors["lora_A"].shape[0] if "lora_A" in factors else 0)


def scale_of_layer(factors: dict[str, torch.Tensor], config) -> float:
    rank = rank_of(factors)
    alpha = rank if config.alpha is None else config.alpha
    return alpha / (rank**0.5 if config.rslora else rank)


def reference(adapter: Adapter) -> dict[tuple[str, str], torch.Tensor]:
    """{(component, path): delta} by the formulas."""
    found = {}
    for component, path, factors in adapter.items():
        found[component, path] = scale_of_layer(factors, adapter.config) * product_of(factors)
    return found


@pytest.fixture(scope="module", params=(CONFIGS | CONVOLUTIONS).values(), ids=CONFIGS | CONVOLUTIONS)
def random_adapter(request):
    """(pipeline, Adapter) in float64, all factors random and none zero."""
    pipeline, models = adapted_pipeline(request.param)
    for model in models.values():
        for layer in adapted_layers(model.double()).values():
            for p in layer.adapter.parameters():
                p.data = torch.randn(p.shape, dtype=torch.float64)
    return pipeline, Adapter.from_models(models)


def product(down, up) -> torch.Tensor:
    """[M, N]; of two convolutions, with a kernel and of 1 x 1, that of their weights as a matrix."""
    if down.ndim == 4:
        assert up.shape == (up.shape[0], down.shape[0], 1, 1)
        up = up.flatten(1)
    return up @ down.flatten(1)


def by_comfyui(path, adapter) -> dict:
    tensors = load_file(path)
    number = adapter.facts["layers_per_block"]
    found = {}
    for component, layer, _ in adapter.items():
        name = kohya(component, layer, number)
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        found[component, layer] = product(down, up) * tensors[f"{name}.alpha"].double() / down.shape[0]
    return found


def by_diffusers(path, adapter) -> dict:
    tensors = load_file(path)
    assert not [name for name in tensors if name.endswith("alpha")]  # so the scale is 1
    found = {}
    for component, layer, _ in adapter.items():
        name = f"{component}.{layer}"
        found[component, layer] = product(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"])
    return found


def by_peft(path, adapter) -> dict:
    found = {}
    for component, layer, _ in adapter.items():
        tensors = load_file(path / component / "adapter_model.safetensors")
        config = json.loads((path / component / "adapter_config.json").read_text())
        own = installed_path(component, layer)
        name = f"base_model.model.{own}"
        if config["peft_type"] == "LORA":
            down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            scale = config["alpha_pattern"].get(own, config["lora_alpha"]) / down.shape[0]
            found[component, layer] = product(down, up) * scale
            continue
        factors = dict(gralora_A=tensors[f"{name}.gralora_A"], gralora_B=tensors[f"{name}.gralora_B"])
        if config["hybrid_r"]:
            factors["lora_A"] = tensors[f"{name}.gralora_A_general.weight"]
            factors["lora_B"] = tensors[f"{name}.gralora_B_general.weight"]
        scale = config["alpha"] / (config["r"] + config["hybrid_r"])
        found[component, layer] = scale * product_of(factors)
    return found


def by_native(path, adapter) -> dict:
    tensors = load_file(path)
    found = {}
    for component, layer, own in adapter.items():
        factors = {leaf: tensors[f"{component}.{layer}.{leaf}"] for leaf in own}
        alpha = tensors.get(f"{component}.{layer}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / rank_of(factors)
        found[component, layer] = scale * product_of(factors)
    return found


def by_merged(path, adapter) -> dict:
    base = load_sdxl()
    found = {}
    for component in MODELS:
        stem = "diffusion_pytorch_model" if component == "unet" else "model"
        tensors = load_file(path / component / f"{stem}.safetensors")
        own = {canonical(component, name): t for name, t in getattr(base, component).state_dict().items()}
        for other, layer, _ in adapter.items():
            if other == component:
                before = own[f"{layer}.weight"].double()
                found[component, layer] = (tensors[f"{layer}.weight"] - before).flatten(1)
    return found


READ = dict(comfyui=by_comfyui, diffusers=by_diffusers, peft=by_peft, native=by_native, merged=by_merged)


def test_every_writer_is_tested():
    assert READ.keys() == WRITERS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_the_adapters_delta(name, random_adapter, tmp_path):
    _, adapter = random_adapter
    if name == "peft" and adapter.config.k_pattern:
        pytest.skip("PEFT's GraLoRA has one k for a whole model")
    if name == "peft" and adapter.config.method == "gralora" and "conv" in adapter.config.targets:
        pytest.skip("PEFT's GraLoRA supports linear layers only")
    writer = WRITERS[name]
    path = tmp_path / f"out{writer.suffixes[-1]}"
    module, function = writer.function.split(".")
    write = getattr(import_module(f"gralora_diffusion.formats.{module}"), function)
    write(path, adapter, dtype=torch.float64, **(dict(base=None) if writer.needs_base else {}))
    found = READ[name](path, adapter)
    wanted = reference(adapter)
    assert found.keys() == wanted.keys()
    rounding = 1e-6 if name == "native" and adapter.config.rslora else 1e-10  # its alpha is one fp32 number
    for layer, delta in wanted.items():
        assert delta.abs().max() > 0.1
        torch.testing.assert_close(found[layer], delta, rtol=rounding, atol=1e-10)


def added_output(layer, delta) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the adapter adds to the layer's output for a random input, what delta gives for it)."""
    if layer.weight.ndim == 2:
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        return layer(x) - F.linear(x, layer.weight, layer.bias), x @ delta.T
    x = torch.randn(2, layer.in_channels, 6, 5, dtype=torch.float64)
    how = dict(stride=layer.stride, padding=layer.padding)
    plain = F.conv2d(x, layer.weight, layer.bias, **how)
    return layer(x) - plain, F.conv2d(x, delta.view_as(layer.weight), **how)


def test_layers_merges_and_pairs_are_the_adapters_delta(random_adapter):
    pipeline, adapter = random_adapter
    wanted = reference(adapter)
    for (component, path), delta in wanted.items():
        down, up = adapter.low_rank(component, path)
        torch.testing.assert_close(up @ down, delta, **EXACT)
    for component in MODELS:
        model = getattr(pipeline, component)
        layers = adapted_layers(model)
        for path, layer in layers.items():
            delta = wanted[component, canonical(component, path)]
            down, up = layer.low_rank()
            torch.testing.assert_close(up @ down, delta, **EXACT)
            torch.testing.assert_close(layer.delta(), delta, **EXACT)
            with torch.no_grad():
                added, wanted_output = added_output(layer, delta)
            torch.testing.assert_close(added, wanted_output, **EXACT)
        merge(model)
        for path, layer in layers.items():
            delta = wanted[component, canonical(component, path)]
            change = layer.weight - layer.unmerged_weight
            torch.testing.assert_close(change, delta.view_as(change), **EXACT)
            layer.unmerge()


@pytest.mark.parametrize(("name", "dtype"), [("native", "fp16"), ("native", "bf16"), ("comfyui", "fp16")])
@pytest.mark.parametrize("rank", [4, 24])
def test_the_difference_of_two_nearly_equal_adapters_is_kept_in_half_precision(name, dtype, rank, tmp_path):
    """Its rank may be above what a layer's sides allow."""
    config = AdapterConfig(method="lora", rank=rank, targets="attention+ff+conv")
    first = Adapter.from_models(adapted_pipeline(config, ["unet"])[1])
    layers, random = {"unet": {}}, torch.Generator().manual_seed(0)
    for _, path, factors in first.items():
        near = {leaf: t + 1e-3 * torch.randn(t.shape, generator=random) * t for leaf, t in factors.items()}
        layers["unet"][path] = near
    second = dataclasses.replace(first, layers=layers)
    adapter = as_lora(summed([Weighted(first), Weighted(second, -1.0)])).adapter
    WRITERS[name].write(tmp_path / "x.safetensors", adapter, dtype)
    written = read_adapter(tmp_path / "x.safetensors")
    for component, path, _ in adapter.items():
        wanted, found = (x.low_rank(component, path) for x in (adapter, written))
        wanted, found = (up.double() @ down.double() for down, up in (wanted, found))
        assert float((found - wanted).norm() / wanted.norm()) < (1e-3 if dtype == "fp16" else 5e-3)
