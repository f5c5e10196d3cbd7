"""One adapter through every format and loader: names, sizes, scales, and the delta of every layer."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODELS, adapted_pipeline
from diffusers import StableDiffusionXLPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from test_formats import CONFIGS

from gralora_diffusion import AdapterConfig, load_sdxl
from gralora_diffusion.adapters import truncate
from gralora_diffusion.config import ConfigError
from gralora_diffusion.exchange import Adapter, sizes, to_lora
from gralora_diffusion.formats import read_adapter, write_comfyui, write_diffusers, write_native, write_peft
from gralora_diffusion.names import canonical, kohya
from gralora_diffusion.sdxl import EMBEDDED

SCRIPTS = Path(__file__).parent.parent / "scripts"


def kohya_sgm(path, adapter, dtype):
    write_comfyui(path, adapter, dtype)


def kohya_diffusers(path, adapter, dtype):
    write_comfyui(path, adapter, dtype, sgm=False)


WRITERS = dict(native=write_native, comfyui=kohya_sgm, kohya=kohya_diffusers, diffusers=write_diffusers, peft=write_peft)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def adapter(request) -> Adapter:
    """Random factors in all three models of the embedded base."""
    return Adapter.from_models(adapted_pipeline(request.param)[1])


@pytest.fixture(scope="module")
def mixed() -> Adapter:
    return Adapter.from_models(adapted_pipeline(CONFIGS["mixed"])[1])


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    pairs = {f"{component}.{path}": adapter.low_rank(component, path) for component, path, _ in adapter.items()}
    return {layer: up.double() @ down.double() for layer, (down, up) in pairs.items()}


def close(got: dict, wanted: dict, tolerance: float):
    """The same layers, each with a delta that differs by no more than this, relative to it (Frobenius)."""
    assert set(got) == set(wanted)
    worst = max(float((got[layer] - wanted[layer]).norm() / wanted[layer].norm()) for layer in wanted)
    assert worst <= tolerance, worst


def changes(pipeline, base) -> dict[str, torch.Tensor]:
    """{component.path: how far each weight is from the base's}, for the weights that differ; every other tensor must be the base's."""
    found = {}
    for component in MODELS:
        before = getattr(base, component).state_dict()
        after = getattr(pipeline, component).state_dict()
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            if not torch.equal(after[name], tensor):
                found[f"{component}.{canonical(component, name.removesuffix('.weight'))}"] = after[name].double() - tensor.double()
    return found


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=["fp32", "fp16"])
def test_there_and_back(kind, dtype, tolerance, adapter, tmp_path):
    there, back = tmp_path / ("x" if kind == "peft" else "x.safetensors"), tmp_path / "back.safetensors"
    if kind == "peft" and len({sizes(f) for _, _, f in adapter.items()}) > 1:
        with pytest.raises(ConfigError, match=r"one rank and one k .* --energy 1"):
            write_peft(there, adapter, dtype)
        assert not list(tmp_path.iterdir())
        return
    WRITERS[kind](there, adapter, dtype)
    write_native(back, read_adapter(there))
    again = read_adapter(back)
    close(deltas(again), deltas(adapter), tolerance)
    if dtype == torch.float32 and (kind == "native" or (kind == "peft" and adapter.config.method == "gralora")):
        for component, path, factors in adapter.items():
            mine = again.layers[component][path]
            assert mine.keys() == factors.keys()
            assert all(torch.equal(mine[leaf], factors[leaf]) for leaf in factors)
        assert again.config.rank == adapter.config.rank


def test_a_lora_is_the_same_tensors_after_every_format(tmp_path):
    """Also with a rank of its own in some layers: the padding is taken off again."""
    config = AdapterConfig(method="lora", rank=8, rank_pattern={"attn2": 12, "q_proj": 4})
    adapter = Adapter.from_models(adapted_pipeline(config)[1])
    for kind, write in WRITERS.items():
        write(there := tmp_path / (kind if kind == "peft" else f"{kind}.safetensors"), adapter, torch.float32)
        again = read_adapter(there)
        for component, path, factors in adapter.items():
            mine, power = again.layers[component][path], 1.0
            if kind in ("comfyui", "kohya"):
                power = float(mine["lora_A"].flatten()[0] / factors["lora_A"].flatten()[0])
                assert math.log2(power).is_integer()
            assert torch.equal(mine["lora_A"], factors["lora_A"] * power), (kind, path)
            assert torch.equal(mine["lora_B"], factors["lora_B"] / power), (kind, path)
        assert {again.config.rank, *again.config.rank_pattern.values()} == {4, 8, 12}


def by_kohyas_arithmetic(path, strength=1.0) -> dict[str, torch.Tensor]:
    """delta = up @ down * alpha / rank, as sd-scripts' merge computes it, by kohya's names."""
    tensors = load_file(path)
    names = {key.split(".")[0] for key in tensors}
    assert set(tensors) == {f"{name}.{leaf}" for name in names for leaf in ("lora_down.weight", "lora_up.weight", "alpha")}
    found = {}
    for name in names:
        down, up, alpha = (tensors[f"{name}.{leaf}"] for leaf in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert alpha.dtype == torch.float32
        assert alpha.item() == down.shape[0] == up.shape[1]
        found[name] = strength * (up.double() @ down.double()) * alpha.item() / down.shape[0]
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("style", ["comfyui", "kohya"])
def test_kohyas_arithmetic(style, dtype, tolerance, adapter, tmp_path):
    WRITERS[style](tmp_path / "x.safetensors", adapter, dtype)
    wanted = {kohya(*layer.split(".", 1), 1 if style == "comfyui" else None): delta for layer, delta in deltas(adapter).items()}
    close(by_kohyas_arithmetic(tmp_path / "x.safetensors"), wanted, tolerance)
    ranks = {}
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        if name.endswith("lora_down.weight"):
            ranks.setdefault(name.split("_")[1], set()).add(tensor.shape[0])
    assert all(len(found) == 1 for found in ranks.values()), ranks


@pytest.mark.parametrize("kind", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_plain_diffusers_applies_every_layer(kind, strength, adapter, tmp_path):
    """Fused into the base, so that what is compared is the weights."""
    WRITERS[kind](tmp_path / "x.safetensors", adapter, torch.float32)
    plain = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    base = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    plain.load_lora_weights(str(tmp_path), weight_name="x.safetensors", adapter_name="x")
    plain.set_adapters("x", strength)
    plain.fuse_lora(components=list(MODELS))
    plain.unload_lora_weights()
    wanted = {layer: strength * delta for layer, delta in deltas(adapter).items()} if strength else {}
    found = changes(plain, base)
    assert set(found) == set(wanted)
    for layer, delta in wanted.items():
        torch.testing.assert_close(found[layer], delta, rtol=0, atol=1e-6 * max(1.0, float(delta.abs().max())))


@pytest.mark.parametrize("name", ["lora", "gralora", "hybrid"])
def test_peft_loads_its_folders(name, tmp_path):
    pipeline, models = adapted_pipeline(CONFIGS[name])
    adapter = Adapter.from_models(models)
    write_peft(tmp_path / "x", adapter)
    wanted, base = deltas(adapter), load_sdxl()
    for component in MODELS:
        model = PeftModel.from_pretrained(getattr(load_sdxl(), component), tmp_path / "x" / component).merge_and_unload()
        before = getattr(base, component).state_dict()
        for path in adapter.layers[component]:
            own = path if component != "text_encoder" or f"{path}.weight" in before else path.removeprefix("text_model.")
            change = model.state_dict()[f"{own}.weight"] - before[f"{own}.weight"]
            torch.testing.assert_close(change.double(), wanted[f"{component}.{path}"], rtol=0, atol=2e-6)
    assert pipeline is not base


def test_peft_takes_other_sizes_as_a_lora(mixed, tmp_path):
    lora, _, whole = to_lora(mixed)
    assert whole < 1e-6
    write_peft(tmp_path / "x", lora)
    close(deltas(read_adapter(tmp_path / "x")), deltas(mixed), 1e-6)
    base, wanted = load_sdxl().unet, deltas(mixed)
    model = PeftModel.from_pretrained(load_sdxl().unet, tmp_path / "x" / "unet").merge_and_unload().state_dict()
    for path in mixed.layers["unet"]:
        change = (model[f"{path}.weight"] - base.get_submodule(path).weight).double()
        torch.testing.assert_close(change, wanted[f"unet.{path}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_peft_strength(strength, tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(CONFIGS["hybrid"], ["unet"])[1])
    write_peft(tmp_path / "x", adapter)
    model, path = PeftModel.from_pretrained(load_sdxl().unet, tmp_path / "x" / "unet"), next(iter(adapter.layers["unet"]))
    layer = model.get_submodule(f"base_model.model.{path}")
    layer.scaling["default"] *= strength
    x = torch.randn(3, layer.in_features)
    wanted = torch.nn.functional.linear(x, layer.weight, layer.bias) + strength * x @ deltas(adapter)[f"unet.{path}"].float().T
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", [dict(rank=6), dict(energy=0.9), dict(energy=1.0)], ids=str)
def test_the_best_lora_of_a_size(how, mixed):
    """Against a full SVD of the dense delta, which the code itself never forms."""
    lora, errors, whole = to_lora(mixed, **how)
    wanted, got = deltas(mixed), deltas(lora)
    lost = total = 0.0
    for layer, delta in wanted.items():
        rank, error = errors[layer]
        s = torch.linalg.svdvals(delta)
        kept = s.square().cumsum(0) / s.square().sum()
        assert rank == (how["rank"] if "rank" in how else int((kept < how["energy"] * (1 - 1e-13)).sum()) + 1)
        best = float(s[rank:].norm() / s.norm())
        assert error == pytest.approx(best, abs=1e-6)
        assert float((got[layer] - delta).norm() / delta.norm()) == pytest.approx(best, abs=1e-6)
        lost, total = lost + float((got[layer] - delta).norm()) ** 2, total + float(delta.norm()) ** 2
    assert whole == pytest.approx(math.sqrt(lost / total), abs=1e-6)
    assert (whole < 1e-6) == (how == dict(energy=1.0))


def test_an_untrained_adapter_shrinks_to_zero():
    down, up, error, norm = truncate(torch.randn(8, 6), torch.zeros(5, 8), energy=0.9)
    assert (down.shape, up.shape, error, norm) == ((1, 6), (5, 1), 0.0, 0.0)


@pytest.mark.parametrize("size", [1e-7, 1e-3, 30.0])
def test_fp16_keeps_its_digits_at_every_size_of_the_weights(size, tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(rank=16, k=2, targets="mid_block.*attn"), ["unet"])[1])
    for _, _, factors in adapter.items():
        factors["gralora_B"] *= size / factors["gralora_B"].std()
    write_comfyui(tmp_path / "x.safetensors", adapter)
    close(deltas(read_adapter(tmp_path / "x.safetensors")), deltas(adapter), 1e-3)


def test_the_header_files_it_under_sdxl(mixed, tmp_path):
    write_comfyui(tmp_path / "my_dog.safetensors", mixed)
    with safe_open(tmp_path / "my_dog.safetensors", "pt") as file:
        said = file.metadata()
    assert said["ss_base_model_version"] == "sdxl_base_v1-0"
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert said["modelspec.sai_model_spec"] == "1.0.1"
    assert (said["ss_v2"], said["ss_network_module"], said["ss_output_name"]) == ("False", "networks.lora", "my_dog")
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "128"
    assert said["gralora.layers_per_block"] == "1"
    assert {"modelspec.title", "modelspec.implementation", "modelspec.resolution", "ss_tag_frequency"} <= set(said)
    assert "lora_adapter_metadata" not in said
    assert all(isinstance(json.loads(said[name]), dict) for name in ("ss_tag_frequency", "gralora.config", "gralora.facts"))


def convert(*arguments, cwd):
    command = [sys.executable, SCRIPTS / "convert_adapter.py", *arguments]
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=600)


def test_the_command_round_trips_and_says_what_is_lost(mixed, tmp_path):
    write_native(tmp_path / "adapter.safetensors", mixed)
    done = convert(tmp_path, "small.safetensors", "--to", "comfyui", "--rank", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == sum(map(len, mixed.layers.values())) + 2
    assert "unet.mid_block" in done.stdout
    assert lines[-2].startswith("relative error of the whole: ")
    assert 0 < float(lines[-2].split()[-1]) < 1
    done = convert("small.safetensors", "back.safetensors", "--to", "native", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_adapter(tmp_path / "back.safetensors").config.rank == 8


def test_the_commands_mistakes_are_one_sentence_and_write_nothing(mixed, tmp_path):
    write_native(tmp_path / "adapter.safetensors", mixed)
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in [
        (["nowhere", "x.safetensors", "--to", "comfyui"], "nowhere is not there"),
        ([tmp_path, "x.pt", "--to", "comfyui"], "must end in .safetensors"),
        ([tmp_path, "x", "--to", "peft"], "--energy 1"),
        ([tmp_path, "x.safetensors", "--to", "comfyui", "--rank", 8, "--energy", 0.9], "give one of them"),
        ([tmp_path, "x.safetensors", "--to", "native", "--energy", 1.5], "above 0 and at most 1"),
    ]:
        done = convert(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        (line,) = [text for text in done.stderr.strip().splitlines() if text.startswith("convert_adapter: ")]
        assert words in line
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.rglob("*")) == before
