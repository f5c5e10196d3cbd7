"""One adapter through every format and loader: names, sizes, scales, and the delta of every layer."""

import json
import math

import numpy as np
import pytest
import torch
from adapter_files import CONFIGS, close, deltas
from diffusers import StableDiffusionXLPipeline
from helpers import GRALORA, MODELS, adapted_pipeline
from peft import PeftModel
from run_command import call, run
from safetensors import safe_open
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, load_adapter, load_sdxl
from gralora_diffusion.adapters.low_rank import truncate
from gralora_diffusion.formats import writers
from gralora_diffusion.formats.adapter_state import Adapter, sizes_of
from gralora_diffusion.formats.combine import Weighted, summed
from gralora_diffusion.formats.layer_names import canonical, kohya
from gralora_diffusion.formats.nearest import nearest
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import KOHYA, write_comfyui, write_diffusers, write_native
from gralora_diffusion.formats.write_peft import installed_path, write_peft
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import EMBEDDED


def kohya_sgm(path, adapter, dtype):
    write_comfyui(path, adapter, dtype)


def kohya_diffusers(path, adapter, dtype):
    write_comfyui(path, adapter, dtype, sgm=False)


STRENGTHS = (0.0, 0.5, 1.0, 2.0)
WRITERS = dict(
    native=write_native, comfyui=kohya_sgm, kohya=kohya_diffusers, diffusers=write_diffusers, peft=write_peft
)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def adapter(request) -> Adapter:
    """Random factors in all three models of the embedded base."""
    return Adapter.from_models(adapted_pipeline(request.param)[1])


@pytest.fixture(scope="module")
def mixed() -> Adapter:
    return Adapter.from_models(adapted_pipeline(CONFIGS["mixed"])[1])


def scaled(wanted: dict, strength: float) -> dict:
    return {layer: strength * delta for layer, delta in wanted.items()}


def blank(model):
    """Every weight is zero, so that whatever is added to one is seen to its last digit."""
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=["fp32", "fp16"]
)
def test_there_and_back(kind, dtype, tolerance, adapter, tmp_path):
    there, back = tmp_path / ("x" if kind == "peft" else "x.safetensors"), tmp_path / "back.safetensors"
    if kind == "peft" and len({sizes_of(f) for _, _, f in adapter.items()}) > 1:
        with pytest.raises(ConfigError, match=r"one rank and one k .* --energy 1"):
            write_peft(there, adapter, dtype)
        assert not list(tmp_path.iterdir())
        return
    WRITERS[kind](there, adapter, dtype)
    write_native(back, read_adapter(there))
    again = read_adapter(back)
    close(deltas(again), deltas(adapter), tolerance)
    if dtype == torch.float32 and (
        kind == "native" or (kind == "peft" and adapter.config.method == "gralora")
    ):
        for component, path, factors in adapter.items():
            mine = again.layers[component][path]
            assert mine.keys() == factors.keys()
            assert all(torch.equal(mine[leaf], factors[leaf]) for leaf in factors)
        assert again.config.rank == adapter.config.rank


def test_a_lora_is_the_same_tensors_after_every_format(tmp_path):
    """Also with a rank of its own in some layers, where kohya's names take one alpha for all, and round."""
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
            if kind in ("comfyui", "kohya"):
                torch.testing.assert_close(mine["lora_B"], factors["lora_B"] / power, rtol=3e-7, atol=0)
            else:
                assert torch.equal(mine["lora_B"], factors["lora_B"]), (kind, path)
        assert {again.config.rank, *again.config.rank_pattern.values()} == {4, 8, 12}


def by_kohyas_arithmetic(path, strength) -> dict[str, torch.Tensor]:
    """delta = up @ down * alpha / rank, as sd-scripts' merge computes it, by kohya's names."""
    tensors = load_file(path)
    names = {key.split(".")[0] for key in tensors}
    assert set(tensors) == {
        f"{name}.{leaf}" for name in names for leaf in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    found = {}
    for name in names:
        down, up, alpha = (
            tensors[f"{name}.{leaf}"] for leaf in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        assert alpha.dtype == torch.float32
        assert down.shape[0] == up.shape[1] <= alpha.item()
        found[name] = strength * (up.double() @ down.double()) * alpha.item() / down.shape[0]
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=["fp32", "fp16"]
)
@pytest.mark.parametrize("style", ["comfyui", "kohya"])
def test_kohyas_arithmetic(style, dtype, tolerance, adapter, tmp_path):
    WRITERS[style](tmp_path / "x.safetensors", adapter, dtype)
    wanted = {
        kohya(*layer.split(".", 1), 1 if style == "comfyui" else None): delta
        for layer, delta in deltas(adapter).items()
    }
    for strength in STRENGTHS:
        close(by_kohyas_arithmetic(tmp_path / "x.safetensors", strength), scaled(wanted, strength), tolerance)
    alphas = {}
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        if name.endswith("alpha"):
            alphas.setdefault(name.split("_")[1], set()).add(tensor.item())
    assert all(len(found) == 1 for found in alphas.values()), alphas


LOADED = [(torch.float32, 1e-6, strength) for strength in STRENGTHS] + [(torch.float16, 1e-3, 1.0)]


@pytest.mark.parametrize("kind", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize(("dtype", "tolerance", "strength"), LOADED)
def test_plain_diffusers_applies_every_layer(kind, dtype, tolerance, strength, adapter, tmp_path):
    """load_lora_weights, set_adapters, and fuse_lora, so that what is compared is the weights."""
    WRITERS[kind](tmp_path / "x.safetensors", adapter, dtype)
    plain = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    for component in MODELS:
        blank(getattr(plain, component))
    plain.load_lora_weights(str(tmp_path), weight_name="x.safetensors", adapter_name="x")
    plain.set_adapters("x", strength)
    plain.fuse_lora(components=list(MODELS))
    plain.unload_lora_weights()
    found = {
        f"{c}.{canonical(c, n.removesuffix('.weight'))}": t.double()
        for c in MODELS
        for n, t in getattr(plain, c).state_dict().items()
        if t.any()
    }
    close(found, scaled(deltas(adapter), strength) if strength else {}, tolerance)


def test_the_scale_of_a_call_to_diffusers(mixed, tmp_path):
    """cross_attention_kwargs=dict(scale=...) is the strength of the UNet and of both text encoders."""
    write_comfyui(tmp_path / "x.safetensors", mixed, torch.float32)
    plain = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    common = dict(prompt="a dog", num_inference_steps=2, guidance_scale=3.0, output_type="np")
    for strength in STRENGTHS:
        ours = load_sdxl()
        load_adapter(ours, tmp_path / "x.safetensors", strength)
        images = ours(**common, generator=torch.manual_seed(0)).images
        theirs = plain(
            **common, generator=torch.manual_seed(0), cross_attention_kwargs=dict(scale=strength)
        ).images
        np.testing.assert_allclose(theirs, images, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=["fp32", "fp16"]
)
def test_peft_loads_its_folders(dtype, tolerance, adapter, tmp_path):
    """Each layer's answer to the identity at every strength, then the merged weights."""
    whole = len({sizes_of(factors) for _, _, factors in adapter.items()}) == 1
    write_peft(tmp_path / "x", adapter if whole else nearest(adapter).adapter, dtype)
    wanted, base = deltas(adapter), load_sdxl()
    for component in MODELS:
        mine = {path: wanted[f"{component}.{path}"] for path in adapter.layers[component]}
        own = {path: installed_path(component, path) for path in mine}
        model = PeftModel.from_pretrained(blank(getattr(base, component)), tmp_path / "x" / component)
        model.base_model.float()  # the folder's own dtype would round the answers too
        layers = {path: model.get_submodule(f"base_model.model.{own[path]}") for path in mine}
        learned = {path: dict(layer.scaling) for path, layer in layers.items()}
        for strength in STRENGTHS:
            for path, layer in layers.items():
                layer.scaling["default"] = strength * learned[path]["default"]
            got = {
                path: layer(torch.eye(layer.in_features)).T.detach().double()
                for path, layer in layers.items()
            }
            close(got, scaled(mine, strength), tolerance)
        model = model.merge_and_unload()
        close(
            {path: model.get_submodule(own[path]).weight.detach().double() for path in mine},
            scaled(mine, STRENGTHS[-1]),
            tolerance,
        )


@pytest.mark.parametrize("how", [dict(rank=6), dict(energy=0.9), dict(energy=1.0)], ids=str)
def test_the_best_lora_of_a_size(how, mixed):
    """Against a full SVD of the dense delta, which the code itself never forms."""
    converted = nearest(mixed, **how)
    whole = converted.error
    wanted, got = deltas(mixed), deltas(converted.adapter)
    lost = total = 0.0
    for layer, delta in wanted.items():
        rank, error = converted.rows[layer]
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
    adapter = Adapter.from_models(
        adapted_pipeline(AdapterConfig(rank=16, k=2, targets="mid_block.*attn"), ["unet"])[1]
    )
    for _, _, factors in adapter.items():
        factors["gralora_B"] *= size / factors["gralora_B"].std()
    write_comfyui(tmp_path / "x.safetensors", adapter)
    close(deltas(read_adapter(tmp_path / "x.safetensors")), deltas(adapter), 1e-3)


def test_kohyas_file_is_the_one_that_diffusers_trainers_write(mixed, tmp_path):
    """--output_kohya_format: names, shapes and deltas are those of diffusers' own conversion."""
    from diffusers.utils import convert_all_state_dict_to_peft, convert_state_dict_to_kohya

    write_diffusers(tmp_path / "x.safetensors", mixed)
    write_comfyui(tmp_path / KOHYA, mixed, torch.float32, sgm=False)
    theirs = convert_state_dict_to_kohya(
        convert_all_state_dict_to_peft(load_file(tmp_path / "x.safetensors"))
    )
    ours = load_file(tmp_path / KOHYA)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    for name in {name.split(".")[0] for name in ours}:
        products = []
        for tensors in (ours, theirs):
            down = tensors[f"{name}.lora_down.weight"].double()
            up = tensors[f"{name}.lora_up.weight"].double()
            products.append(up @ down * (tensors[f"{name}.alpha"].item() / len(down)))
        close({name: products[0]}, {name: products[1]}, 1e-6)


def test_the_header_files_it_under_sdxl(mixed, tmp_path):
    write_comfyui(tmp_path / "my_dog.safetensors", mixed)
    with safe_open(tmp_path / "my_dog.safetensors", "pt") as file:
        said = file.metadata()
    assert said["ss_base_model_version"] == "sdxl_base_v1-0"
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert said["modelspec.sai_model_spec"] == "1.0.1"
    assert (said["ss_v2"], said["ss_network_module"], said["ss_output_name"]) == (
        "False",
        "networks.lora",
        "my_dog",
    )
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "128"
    assert said["gralora.layers_per_block"] == "1"
    assert {"modelspec.title", "modelspec.implementation", "modelspec.resolution", "ss_tag_frequency"} <= set(
        said
    )
    assert "lora_adapter_metadata" not in said
    assert all(
        isinstance(json.loads(said[name]), dict)
        for name in ("ss_tag_frequency", "gralora.config", "gralora.facts")
    )


def test_the_command_round_trips_and_says_what_is_lost(mixed, tmp_path):
    write_native(tmp_path / "adapter.safetensors", mixed)
    words = ["convert", tmp_path, "small.safetensors", "--to", "comfyui", "--rank", 8]
    done = run(*GRALORA, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == sum(map(len, mixed.layers.values())) + 3
    assert "unet.mid_block" in done.stdout
    assert lines[-3].startswith("overall relative error: ")
    assert 0 < float(lines[-3].split()[-1]) < 1
    assert "note: this adapter does not fit SDXL" in done.stderr
    done = call("convert", "small.safetensors", "back.safetensors", "--to", "native", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_adapter(tmp_path / "back.safetensors").config.rank == 8


def test_the_commands_mistakes_are_one_sentence_and_write_nothing(mixed, tmp_path):
    write_native(tmp_path / "adapter.safetensors", mixed)
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in [
        (["nowhere", "x.safetensors", "--to", "comfyui"], "nowhere does not exist"),
        ([tmp_path, "x.pt", "--to", "comfyui"], "must end in .safetensors"),
        ([tmp_path, "x", "--to", "peft"], "--energy 1"),
        ([tmp_path, "x.safetensors", "--to", "comfyui", "--rank", 8, "--energy", 0.9], "give one of them"),
        ([tmp_path, "x.safetensors", "--to", "native", "--energy", 1.5], "above 0 and at most 1"),
    ]:
        done = call("convert", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        (line,) = [text for text in done.stderr.strip().splitlines() if text.startswith("gralora convert: ")]
        assert words in line
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_a_mask_that_a_file_cannot_hold_is_noted(tmp_path, capsys):
    _, models = adapted_pipeline(AdapterConfig(rank=8, k=2, tlora=True), ["unet"])
    adapter = Adapter.from_models(models, "embedded tiny base", {})
    writers.WRITERS["native"].write(tmp_path / "adapter.safetensors", adapter)
    assert "T-LoRA" not in capsys.readouterr().err
    writers.WRITERS["comfyui"].write(tmp_path / "comfyui.safetensors", adapter)
    assert "T-LoRA's mask is not part of this file" in capsys.readouterr().err
    nearest(adapter, 4)
    assert "T-LoRA's mask is not part of the new adapter" in capsys.readouterr().err
    summed([Weighted(adapter), Weighted(adapter, 0.5)])
    assert "T-LoRA's mask is not part of the new adapter" in capsys.readouterr().err
    summed([Weighted(adapter, 0.5)])  # stays of its kind
    assert "T-LoRA" not in capsys.readouterr().err
