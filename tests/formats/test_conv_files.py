"""Files with convolutions: their shapes, what reads them, and what is refused."""

import json

import pytest
import torch
from adapter_files import CONVOLUTIONS, changes, close, deltas
from diffusers import StableDiffusionXLPipeline
from helpers import adapted_pipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gralora_diffusion import AdapterConfig, load_sdxl
from gralora_diffusion.adapters.control import merge
from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.adapter_state import Adapter, describe
from gralora_diffusion.formats.conv_factors import as_matrices, kernel_of, with_kernel
from gralora_diffusion.formats.load import fitted
from gralora_diffusion.formats.nearest import nearest
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui, write_diffusers, write_native
from gralora_diffusion.formats.write_peft import write_peft
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint
from gralora_diffusion.sdxl.load import EMBEDDED

CONV1 = "down_blocks.0.resnets.0.conv1"
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SHORTCUT = "up_blocks.0.resnets.0.conv_shortcut"


@pytest.fixture(scope="module", params=CONVOLUTIONS)
def made(request):
    """(pipeline, Adapter) with random factors."""
    pipeline, models = adapted_pipeline(CONVOLUTIONS[request.param])
    return pipeline, Adapter.from_models(models)


def test_factors_keep_their_kernels_in_files(made, tmp_path):
    pipeline, adapter = made
    write_native(tmp_path / "a.safetensors", adapter)
    tensors = load_file(tmp_path / "a.safetensors")
    convolutions = 0
    for path, layer in adapted_layers(pipeline.unet).items():
        kernel = adapter.kernel("unet", path)
        assert kernel == (tuple(layer.kernel_size) if layer.weight.ndim == 4 else None)
        convolutions += kernel is not None
        own = adapter.layers["unet"][path]
        for leaf, parameter in layer.adapter.named_parameters():
            stored = tensors[f"unet.{path}.{leaf}"]
            assert torch.equal(stored, own[leaf])
            if kernel and leaf.endswith("_A"):
                slices = layer.adapter.k if leaf == "gralora_A" else 1
                assert stored.shape[1:4] == (layer.in_channels // slices, *kernel)
            assert torch.equal(as_matrices({leaf: stored})[leaf], parameter)
    assert convolutions > 10
    close(deltas(read_adapter(tmp_path / "a.safetensors")), deltas(adapter), 0)


@pytest.mark.parametrize("name", ["comfyui", "kohya", "diffusers", "peft"])
def test_our_exports_are_read_again(made, name, tmp_path):
    _, adapter = made
    path = tmp_path / "out.safetensors"
    if name == "peft":
        path = tmp_path / "out"
        write_peft(path, adapter if adapter.config.method == "lora" else nearest(adapter).adapter)
    elif name == "diffusers":
        write_diffusers(path, adapter)
    else:
        write_comfyui(path, adapter, torch.float32, sgm=name == "comfyui")
    read = read_adapter(path)
    close(deltas(read), deltas(adapter), 1e-6)
    for component, module_path, _ in adapter.items():
        assert read.kernel(component, module_path) == adapter.kernel(component, module_path)


@pytest.mark.parametrize("sgm", [True, False], ids=["SGM", "diffusers"])
def test_diffusers_loads_kohyas_names(made, sgm, tmp_path):
    """load_lora_weights on a file in kohya's names changes the weights of all convolutions."""
    _, adapter = made
    write_comfyui(tmp_path / "x.safetensors", adapter, torch.float32, sgm)
    plain = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    plain.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    plain.fuse_lora()
    plain.unload_lora_weights()
    close(matrices(changes(plain, load_sdxl())), deltas(adapter), 1e-4)


def matrices(found: dict) -> dict:
    return {name: change.flatten(1) for name, change in found.items()}


def test_peft_loads_a_plain_lora(tmp_path):
    models = adapted_pipeline(CONVOLUTIONS["locon"], ["unet"])[1]
    adapter = Adapter.from_models(models)
    write_peft(tmp_path / "out", adapter)
    model = PeftModel.from_pretrained(load_sdxl().unet, str(tmp_path / "out" / "unet"))
    wanted = deltas(adapter)
    assert len(wanted) == sum(hasattr(m, "lora_A") for m in model.modules())
    for path in adapter.layers["unet"]:
        theirs = model.base_model.model.get_submodule(path).get_delta_weight("default")
        close({path: theirs.double().flatten(1)}, {path: wanted[f"unet.{path}"]}, 1e-6)


def test_peft_cannot_hold_gralora_of_convolutions(tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(CONVOLUTIONS["conv"], ["unet"])[1])
    with pytest.raises(ConfigError, match=r"PEFT's GraLoRA supports linear layers only.*--energy 1"):
        write_peft(tmp_path / "out", adapter)
    assert not (tmp_path / "out").exists()


def test_headers_give_sd_scripts_its_arguments(tmp_path):
    for config, wanted in ((CONVOLUTIONS["conv"], {"conv_dim": "40", "conv_alpha": "40"}), (None, None)):
        config = config or AdapterConfig(rank=16, k=4, hybrid_rank=8)
        write_comfyui(tmp_path / "x.safetensors", Adapter.from_models(adapted_pipeline(config)[1]))
        with safe_open(tmp_path / "x.safetensors", "pt") as file:
            metadata = file.metadata()
        assert metadata["ss_network_module"] == "networks.lora"
        assert json.loads(metadata.get("ss_network_args", "null")) == wanted
        assert metadata["ss_network_dim"] == "40"


def test_truncation_keeps_kernels(made):
    _, adapter = made
    lora, errors, whole, _ = nearest(adapter, 4)
    assert 0 < whole < 1
    for component, path, factors in lora.items():
        assert factors["lora_A"].shape[0] == factors["lora_B"].shape[1] == 4
        assert kernel_of(factors) == adapter.kernel(component, path)
        assert errors[f"{component}.{path}"][0] == 4
    close(deltas(nearest(adapter).adapter), deltas(adapter), 1e-6)


@pytest.mark.parametrize("targets", ["attention", "attention+ff+conv", "all-linear", ".|conv"])
def test_targets_are_found_from_the_layers(targets):
    models = adapted_pipeline(AdapterConfig(method="lora", rank=4, targets=targets), ["unet"])[1]
    assert describe(Adapter.from_models(models).layers).targets == targets


def test_adapters_of_convolutions_change_no_fingerprint():
    unet = load_sdxl().unet
    before = fingerprint(unet)
    for layer in inject(unet, CONVOLUTIONS["conv"]).values():
        layer.adapter.gralora_B.data.normal_()
    assert fingerprint(unet) == before
    merge(unet)
    conv = unet.mid_block.resnets[0].conv1
    assert not torch.equal(conv.weight, conv.unmerged_weight)
    assert fingerprint(unet) == before


def test_targets_by_name_leave_the_outer_convolutions():
    unet = load_sdxl().unet
    every = [path for path, m in unet.named_modules() if isinstance(m, torch.nn.Conv2d)]
    layers = inject(unet, CONVOLUTIONS["locon"])
    left = [path for path in every if path not in layers]
    assert left == ["conv_in", "conv_out"]


def changed(path, out, name, change):
    """A copy of a native file with another tensor of this name."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors[name] = change(tensors[name])
    save_file({name: t.contiguous() for name, t in tensors.items()}, out, metadata)
    return out


@pytest.mark.parametrize(
    ("leaf", "change", "words"),
    [
        (f"{CONV1}.lora_A", lambda t: t.flatten(1), "do not fit the base's layer .* with a kernel of 3 x 3"),
        (f"{CONV1}.lora_A", lambda t: t[..., :2], "do not fit the base's layer"),
        (f"{CONV1}.lora_A", lambda t: t.flatten(2), "dimensions"),
        (f"{CONV1}.lora_B", lambda t: t[..., None, None], "dimensions"),
        (
            f"{SHORTCUT}.lora_A",
            lambda t: t.flatten(1),
            "do not fit the base's layer .* with a kernel of 1 x 1",
        ),
        (f"{LINEAR}.lora_A", lambda t: t[..., None, None], "do not fit the base's layer"),
    ],
    ids=["flat", "another kernel", "three dimensions", "up of 1 x 1", "flat 1 x 1", "linear"],
)
def test_wrong_shapes_are_one_sentence(leaf, change, words, tmp_path):
    models = adapted_pipeline(CONVOLUTIONS["locon"], ["unet"])[1]
    write_native(tmp_path / "a.safetensors", Adapter.from_models(models))
    bad = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", f"unet.{leaf}", change)
    with pytest.raises(ConfigError, match=words):
        fitted(read_adapter(bad), load_sdxl().components, "here")


def test_kernels_of_the_two_parts_must_agree(tmp_path):
    models = adapted_pipeline(CONVOLUTIONS["conv"], ["unet"])[1]
    write_native(tmp_path / "a.safetensors", Adapter.from_models(models))

    def other_kernel(tensor):
        return tensor.flatten(1).unflatten(1, (-1, 1, 9))

    bad = changed(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", f"unet.{CONV1}.lora_A", other_kernel
    )
    with pytest.raises(ConfigError, match="do not fit each other"):
        read_adapter(bad)


def test_with_kernel_is_as_matrices_backwards():
    factors = dict(lora_A=torch.randn(4, 18), gralora_A=torch.randn(2, 9, 4), lora_B=torch.randn(8, 4))
    found = with_kernel(factors, (3, 1))
    assert found["lora_A"].shape == (4, 6, 3, 1)
    assert found["gralora_A"].shape == (2, 3, 3, 1, 4)
    assert kernel_of(found) == (3, 1)
    assert kernel_of(factors) is None
    for leaf, tensor in as_matrices(found).items():
        assert torch.equal(tensor, factors[leaf])
