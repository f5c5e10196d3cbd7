"""One adapter through every format and loader: names, sizes, scales, and the delta of every layer."""

import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import MODELS, adapted_pipeline
from diffusers import StableDiffusionXLPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_formats import CONFIGS

from gralora_diffusion import AdapterConfig, load_adapter, load_sdxl
from gralora_diffusion.adapters import truncate
from gralora_diffusion.config import ConfigError
from gralora_diffusion.exchange import Adapter, sizes, to_lora
from gralora_diffusion.formats import check_fits, read_adapter, write_comfyui, write_diffusers, write_native, write_peft
from gralora_diffusion.injection import adapters, enable, merge, remove, set_strength, unmerge
from gralora_diffusion.merging import checkpoint, write_merged
from gralora_diffusion.names import canonical, from_kohya, from_sgm, kohya, sgm
from gralora_diffusion.sdxl import EMBEDDED, shapes

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


def test_both_conventions_of_hybrid_rank(tmp_path):
    """PEFT: r 8 beside hybrid_r 8.  The paper's code: r 16, of which hybrid_r 8.  The tensors are the same, and so is the scale, alpha/16."""
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(rank=16, k=4, hybrid_rank=8, alpha=24.0), ["unet"])[1])
    write_peft(tmp_path / "x", adapter)
    file = tmp_path / "x" / "unet" / "adapter_config.json"
    config = json.loads(file.read_text())
    assert (config["r"], config["hybrid_r"], config["alpha"]) == (8, 8, 24.0)
    for r in (8, 16):
        file.write_text(json.dumps(config | dict(r=r)))
        again = read_adapter(tmp_path / "x")
        assert (again.config.rank, again.config.hybrid_rank, again.config.k, again.config.alpha) == (16, 8, 4, 24.0)
        close(deltas(again), deltas(adapter), 0)
    file.write_text(json.dumps(config | dict(r=12)))
    with pytest.raises(ConfigError, match=r"says r 12.* and the tensors 8"):
        read_adapter(tmp_path / "x" / "unet")


def test_a_peft_folder_made_by_peft(tmp_path):
    from peft import GraloraConfig, LoraConfig, get_peft_model

    for config in (
        GraloraConfig(r=8, hybrid_r=4, gralora_k=2, alpha=18, target_modules=["to_q", "to_v"], init_weights=False),
        LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], rank_pattern={"attn2.to_v": 8}, use_rslora=True, init_lora_weights=False),
    ):
        model = get_peft_model(load_sdxl().unet, config)
        model.save_pretrained(tmp_path / config.peft_type)
        merged, base = model.merge_and_unload(), load_sdxl()
        load_adapter(base, tmp_path / config.peft_type)
        for path, layer in adapters(base.unet).items():
            change = merged.get_submodule(path).weight - layer.weight
            torch.testing.assert_close(layer.delta(), change, rtol=0, atol=2e-6)


def test_the_header_of_diffusers_is_honoured(tmp_path):
    """A file as diffusers' own trainers write it: alpha is not the rank, and stands in the header alone."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = load_sdxl().unet
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], rank_pattern={"attn2.to_v": 8}, init_lora_weights=False)
    unet.add_adapter(config)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(unet), **_collate_lora_metadata({"unet": unet}))
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert '"unet.lora_alpha": 6' in file.metadata()["lora_adapter_metadata"]
    unet.fuse_lora()
    ours = load_sdxl()
    load_adapter(ours, tmp_path)
    assert len(adapters(ours.unet)) == 28
    for path, layer in adapters(ours.unet).items():
        change = unet.get_submodule(path).base_layer.weight - layer.weight
        torch.testing.assert_close(layer.delta(), change, rtol=0, atol=2e-6)


def test_old_names_of_diffusers(tmp_path):
    down, up = torch.randn(4, 192), torch.randn(128, 4)
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up, f"{name}.alpha": torch.tensor(2.0)}, tmp_path / "x.safetensors")
    close(deltas(read_adapter(tmp_path / "x.safetensors")), {name: (up.double() @ down.double()) / 2}, 1e-6)


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


@pytest.mark.parametrize("of_sdxl", [False, True], ids=["embedded", "SDXL"])
def test_names_there_and_back(of_sdxl, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    models, number = shapes(tmp_path / "x.safetensors" if of_sdxl else None), 2 if of_sdxl else 1
    for component, model in models.items():
        modules = {canonical(component, p): m for p, m in model.named_modules() if list(m.parameters(recurse=False))}
        linears = [path for path, m in modules.items() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
        for style in (number, None):
            names = {kohya(component, path, style): path for path in linears}
            assert len(names) == len(linears)
            assert all(from_kohya(name, number) == (component, path) for name, path in names.items())
        if component == "unet":
            assert all(from_sgm(sgm(path, number), number) == path for path in modules)
    some = "down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0"
    assert kohya("unet", some, 2) == "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_out_0"
    assert sgm("up_blocks.0.upsamplers.0.conv", 2) == "output_blocks.2.2.conv"
    for name in ("lora_unet_Down_blocks_1", "lora_te3_x", "lora_unet_input_blocks_3_1_proj_in", "lora_unet_input_blocks_5_0_proj_in", "lora_unet_"):
        with pytest.raises(ValueError, match="is not"):
            from_kohya(name)


def sdxl_sized(config: AdapterConfig, file) -> Adapter:
    """Random factors for all attention layers of SDXL's three models, from the public config's shapes alone."""
    from gralora_diffusion import inject

    file.write_bytes(b"")
    torch.manual_seed(0)
    layers = {}
    for component, model in shapes(file).items():
        for path, layer in inject(model, config).items():
            factors = {leaf: torch.empty(p.shape).normal_(std=0.02) for leaf, p in layer.adapter_parameters.items()}
            layers.setdefault(component, {})[canonical(component, path)] = factors
    return Adapter(config, layers, dict(layers_per_block=2))


@pytest.mark.slow
def test_full_size_export(tmp_path):
    """Rank 64, k 4: every key has a name that the original checkpoint's layers give it, each once.  Memory in a process of its own."""
    adapter = sdxl_sized(AdapterConfig(rank=64, k=4), tmp_path / "sdxl.safetensors")
    assert {component: len(found) for component, found in adapter.layers.items()} == dict(unet=560, text_encoder=48, text_encoder_2=128)
    write_native(tmp_path / "adapter.safetensors", adapter)
    del adapter
    code = (
        "import resource, runpy, sys, time\n"
        "sys.argv = ['convert_adapter.py', *sys.argv[2:]] if (script := sys.argv[1]) else []\n"
        "started = time.monotonic()\n"
        "runpy.run_path(script, run_name='__main__')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.monotonic() - started)\n"
    )
    command = [sys.executable, "-c", code, SCRIPTS / "convert_adapter.py", tmp_path / "adapter.safetensors", tmp_path / "x.safetensors"]
    done = subprocess.run([*map(str, command), "--to", "comfyui"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "736 layers of " in done.stdout
    memory, seconds = map(float, done.stdout.split()[-2:])
    print(f"export of 736 layers, rank 64, k 4: {seconds:.1f} s, {memory / 2**30:.2f} GiB at most")
    assert memory < 4 * 2**30
    adapter = read_adapter(tmp_path / "adapter.safetensors")
    names = {kohya(component, path, 2): (component, path) for component, path, _ in adapter.items()}
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        keys = set(file.keys())
        assert keys == {f"{name}.{leaf}" for name in names for leaf in ("lora_down.weight", "lora_up.weight", "alpha")}
        for name in list(names)[::60]:
            down, up, alpha = (file.get_tensor(f"{name}.{leaf}") for leaf in ("lora_down.weight", "lora_up.weight", "alpha"))
            assert alpha.item() == down.shape[0] == 256
            mine, theirs = adapter.low_rank(*names[name]), (down.float(), up.float())
            wanted = mine[1] @ mine[0]
            assert float((theirs[1] @ theirs[0] - wanted).norm() / wanted.norm()) < 1e-3


def test_full_size_names_are_the_original_checkpoints(tmp_path):
    """Shapes alone: what merging writes for SDXL is read back by diffusers' own conversion, tensor for tensor."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    (tmp_path / "sdxl.safetensors").write_bytes(b"")
    models = shapes(tmp_path / "sdxl.safetensors")
    levels = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512))
    with torch.device("meta"):
        models["vae"] = AutoencoderKL(**levels, layers_per_block=2, latent_channels=4)
    written = {name: torch.cat(parts) for name, parts in checkpoint(types.SimpleNamespace(**models)).items()}
    assert len(written) == 2515 - 2  # the original has a logit_scale and a position_ids, which nothing in SDXL reads
    assert written["conditioner.embedders.1.model.transformer.resblocks.9.attn.in_proj_weight"].shape == (3840, 1280)
    unet = convert_ldm_unet_checkpoint(dict(written), models["unet"].config)
    vae = convert_ldm_vae_checkpoint(dict(written), models["vae"].config)
    for model, found in ((models["unet"], unet), (models["vae"], vae)):
        wanted = model.state_dict()
        assert wanted.keys() == found.keys()
        assert all(found[name].shape == tensor.shape for name, tensor in wanted.items())


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


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    first, second = (Adapter.from_models(adapted_pipeline(CONFIGS[name])[1]) for name in ("mixed", "lora"))
    write_native(folder / "dog.safetensors", first)
    write_comfyui(folder / "style.safetensors", second, torch.float32)
    return folder, deltas(first), deltas(second)


def weights_now(pipeline) -> dict[str, torch.Tensor]:
    """What each adapted layer adds to its weight, from its answer to the identity."""
    found = {}
    for component in MODELS:
        for path, layer in adapters(getattr(pipeline, component)).items():
            plain = layer.to_linear()
            identity = torch.eye(layer.in_features)
            found[f"{component}.{canonical(component, path)}"] = (layer(identity) - plain(identity)).T.double()
    return found


def same(got, wanted):
    assert got.keys() == wanted.keys()
    for layer in wanted:
        torch.testing.assert_close(got[layer], wanted[layer], rtol=0, atol=5e-6)


def test_several_adapters_in_a_plain_pipeline(two_files):
    folder, dog, style = two_files
    pipeline = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, add_watermarker=False)
    keys = {c: set(getattr(pipeline, c).state_dict()) for c in MODELS}
    weights = {c: {n: id(p) for n, p in getattr(pipeline, c).named_parameters()} for c in MODELS}
    assert load_adapter(pipeline, folder / "dog.safetensors", 0.5)["name"] == "dog"
    load_adapter(pipeline, folder / "style.safetensors", 2.0, name="paint")
    same(weights_now(pipeline), {layer: 0.5 * dog[layer] + 2 * style[layer] for layer in dog})
    for c in MODELS:  # the base's tensors are where they were, and no other name is taken by a weight
        assert keys[c] <= set(getattr(pipeline, c).state_dict())
        assert weights[c].items() <= {n: id(p) for n, p in getattr(pipeline, c).named_parameters()}.items()
    with pytest.raises(ConfigError, match="named 'dog' already"):
        load_adapter(pipeline, folder / "dog.safetensors")
    with pytest.raises(ValueError, match=r"no adapter named 'cat'; there are: dog, paint"):
        set_strength(pipeline, 1, "cat")
    set_strength(pipeline, 1.0, "dog")
    enable(pipeline, False, "paint")
    same(weights_now(pipeline), dog)
    enable(pipeline, True, "paint")
    merge(pipeline.unet)
    set_strength(pipeline, 0.25, "paint")  # merged layers are merged anew
    unet = {layer: delta for layer, delta in dog.items() if layer.startswith("unet.")}
    for path, layer in adapters(pipeline.unet).items():
        wanted = unet[f"unet.{path}"] + 0.25 * style[f"unet.{path}"]
        torch.testing.assert_close(layer.weight.double() - layer.unmerged_weight.double(), wanted, rtol=0, atol=5e-6)
    unmerge(pipeline.unet)
    remove(pipeline, "dog")
    same(weights_now(pipeline), {layer: 0.25 * delta for layer, delta in style.items()})
    load_adapter(pipeline, folder / "dog.safetensors")
    remove(pipeline, "dog")
    remove(pipeline, "paint")
    assert not any(adapters(getattr(pipeline, c)) for c in MODELS)
    assert weights == {c: {n: id(p) for n, p in getattr(pipeline, c).named_parameters()} for c in MODELS}
    assert {c: set(getattr(pipeline, c).state_dict()) for c in MODELS} == keys


def test_a_pipeline_with_two_adapters_is_saved_one_at_a_time(two_files, tmp_path):
    from gralora_diffusion import save_adapter

    folder, _, style = two_files
    pipeline = load_sdxl()
    load_adapter(pipeline, folder / "dog.safetensors")
    load_adapter(pipeline, folder / "style.safetensors")
    models = {name: getattr(pipeline, name) for name in MODELS}
    with pytest.raises(ValueError, match="several adapters"):
        save_adapter(tmp_path / "x.safetensors", models)
    remove(pipeline, "dog")
    save_adapter(tmp_path / "x.safetensors", models)
    close(deltas(read_adapter(tmp_path / "x.safetensors")), style, 1e-6)


def test_compiled_models_follow_strength(two_files):
    folder, _, _ = two_files
    pipeline = load_sdxl()
    load_adapter(pipeline, folder / "dog.safetensors")
    load_adapter(pipeline, folder / "style.safetensors", 0.5)
    block = pipeline.unet.mid_block.attentions[0].transformer_blocks[0]
    width, cross = block.attn1.to_q.in_features, block.attn2.to_k.in_features
    x, text = torch.randn(1, 4, width), torch.randn(1, 3, cross)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for strength in (0.5, 0.0, 2.0):
            set_strength(pipeline, strength, "style")
            torch.testing.assert_close(compiled(x, encoder_hidden_states=text), block(x, encoder_hidden_states=text), rtol=0, atol=1e-5)
        before = compiled(x, encoder_hidden_states=text)
        remove(pipeline, "style")
        after = compiled(x, encoder_hidden_states=text)
        torch.testing.assert_close(after, block(x, encoder_hidden_states=text), rtol=0, atol=1e-5)
        assert (after - before).abs().max() > 1e-3


def bad_files(folder, adapter) -> dict[str, tuple]:
    """{what is wrong: (path, words of the sentence)}"""
    write_native(native := folder / "native.safetensors", adapter)
    write_comfyui(exported := folder / "exported.safetensors", adapter)
    write_diffusers(diffusers := folder / "diffusers.safetensors", adapter)
    write_peft(folder / "peft", adapter)
    config = json.loads((folder / "peft" / "unet" / "adapter_config.json").read_text())
    found = {}

    def bad(what, words, source, change=None, metadata=None):
        tensors, said = load_file(source), safe_open(source, "pt").metadata()
        first = next(name for name in sorted(tensors) if "alpha" not in name)
        tensors = change(tensors, first) if change else tensors
        save_file(
            {name: tensor.clone() for name, tensor in tensors.items()}, folder / f"{what}.safetensors", said | (metadata(said) if metadata else {})
        )
        found[what] = folder / f"{what}.safetensors", words

    def bad_peft(what, words, change):
        shutil.copytree(folder / "peft" / "unet", folder / what)
        (folder / what / "adapter_config.json").write_text(change if isinstance(change, str) else json.dumps(config | change))
        found[what] = folder / what, words

    for source in (native, exported, diffusers):
        kind = source.stem
        bad(f"{kind}, half a pair", "needs", source, lambda t, first: {n: v for n, v in t.items() if n != first})
        bad(f"{kind}, not finite", "not finite", source, lambda t, first: t | {first: t[first] * float("nan")})
        bad(f"{kind}, wrong shape", "fit", source, lambda t, first: t | {first: t[first][:1].repeat(3, *[1] * (t[first].ndim - 1))})
        bad(f"{kind}, dimensions", "dimensions", source, lambda t, first: t | {first: t[first].flatten()})
        bad(f"{kind}, whole numbers", "not finite", source, lambda t, first: t | {first: t[first].int()})
        bad(f"{kind}, unknown layer", "SDXL has no such layer", source, lambda t, _: {n.replace("to_q", "to_k2"): v for n, v in t.items()})
    bad("exported, a surprise", "unknown tensor", exported, lambda t, _: t | {"surprise": torch.zeros(1)})
    bad("exported, LoCon", "LoCon", exported, lambda t, first: t | {first.split(".")[0] + ".lora_mid.weight": torch.zeros(1)})
    bad("exported, DoRA", "DoRA", exported, lambda t, first: t | {first.split(".")[0] + ".dora_scale": torch.zeros(1)})
    bad("exported, no alpha", "alpha", exported, lambda t, first: t | {first.split(".")[0] + ".alpha": torch.tensor(float("nan"))})
    bad("exported, odd block count", "layers_per_block", exported, metadata=lambda _: {"gralora.layers_per_block": "many"})
    bad("exported, facts", "gralora.facts", exported, metadata=lambda _: {"gralora.facts": "["})
    bad("SD 1.5, text encoder", "Stable Diffusion 1 or 2", exported, lambda t, _: {n.replace("lora_te1", "lora_te"): v for n, v in t.items()})
    old = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{old}.lora_down.weight": torch.ones(4, 320), f"{old}.lora_up.weight": torch.ones(320, 4)}
    bad("SD 1.5, UNet", "Stable Diffusion 1 or 2", exported, lambda t, _: pair)
    bad(
        "both styles",
        "two styles",
        exported,
        lambda t, _: t | {kohya(*from_kohya(n.split(".")[0], 1)) + "." + n.split(".", 1)[1]: v for n, v in t.items()},
    )
    bad("diffusers, lie", "the header says rank 99", diffusers, metadata=lambda _: {"lora_adapter_metadata": '{"unet.r": 99, "unet.lora_alpha": 4}'})
    bad("diffusers, alpha", "its alpha is 'x'", diffusers, metadata=lambda _: {"lora_adapter_metadata": '{"unet.r": 28, "unet.lora_alpha": "x"}'})
    bad("diffusers, header", "cannot be read", diffusers, metadata=lambda _: {"lora_adapter_metadata": "no JSON"})
    bad_peft("PEFT, lie", "says r 64", dict(r=64))
    bad_peft("PEFT, alpha", "says alpha None", dict(alpha=None))
    bad_peft("PEFT, kind", "type OFT", dict(peft_type="OFT"))
    bad_peft("PEFT, config", "not a JSON object", "[]")
    bad_peft("PEFT, pickle", "pickle", {})
    (folder / "PEFT, pickle" / "adapter_model.safetensors").rename(folder / "PEFT, pickle" / "adapter_model.bin")
    for name, content in (("pickle", b"\x80\x04\x95."), ("empty", b""), ("liar", (2**62).to_bytes(8, "little") + b"{}"), ("text", b"hello world")):
        (folder / f"{name}.safetensors").write_bytes(content)
        found[name] = folder / f"{name}.safetensors", "not a complete .safetensors file"
    (folder / "cut.safetensors").write_bytes(exported.read_bytes()[:-100])
    found["cut"] = folder / "cut.safetensors", "not a complete .safetensors file"
    (folder / "nothing").mkdir()
    found["empty folder"] = folder / "nothing", "is not there"
    return found


def test_what_is_wrong_is_one_sentence_and_nothing_is_applied(tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(rank=16, k=2, hybrid_rank=4, targets=r"attn1\.to_[qv]$|self_attn\.[qv]"))[1])
    pipeline = load_sdxl()
    for what, (path, words) in bad_files(tmp_path, adapter).items():
        with pytest.raises(ConfigError) as caught:
            load_adapter(pipeline, path)
        assert words in str(caught.value), (what, str(caught.value))
        assert "\n" not in str(caught.value)
        assert not any(adapters(getattr(pipeline, c)) for c in MODELS), what


def test_headers_that_lie_about_the_native_file(tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(rank=16, k=2, alpha=8.0), ["unet"])[1])
    write_native(tmp_path / "x.safetensors", adapter)
    tensors = load_file(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["gralora_diffusion"])
    lies = dict(rank=dict(rank=64), k=dict(k=4), hybrid_rank=dict(hybrid_rank=8), alpha=dict(alpha=16.0), method=dict(method="lora", k=None))
    words = dict(rank="says rank 64", k="k 4", hybrid_rank="hybrid_rank 8", alpha="alpha is not the one of the header", method="a lora layer needs")
    for name, lie in lies.items():
        save_file(tensors, tmp_path / "lie.safetensors", {"gralora_diffusion": json.dumps(facts | dict(config=facts["config"] | lie))})
        with pytest.raises(ConfigError, match=words[name]):
            read_adapter(tmp_path / "lie.safetensors")


def test_another_width(mixed, tmp_path):
    """SDXL's own shapes against an adapter of the embedded base, without any weights."""
    (tmp_path / "sdxl.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"do not fit the base's layer \d+ -> \d+; the adapter was made for another base|no such layer"):
        check_fits(mixed, str(tmp_path / "sdxl.safetensors"), "x")
    check_fits(mixed, None, "x")


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
