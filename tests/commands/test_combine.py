"""Several adapters as one, other strengths and kinds, extraction and inspection, by the commands."""

import json

import numpy as np
import pytest
import torch
from adapter_files import close
from helpers import GRALORA, adapted_pipeline
from PIL import Image
from run_command import call, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gralora_diffusion import AdapterConfig, load_sdxl, save_adapter
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui, write_native

KINDS = {
    "gralora": AdapterConfig(rank=8, k=2, targets="attention+ff+conv"),
    "lora": AdapterConfig(method="lora", rank=4, alpha=2.0),
}


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    """{component.parameter: change} in fp64."""
    found = {}
    for component, name, delta in adapter.changes():
        found[f"{component}.{name}"] = delta.delta().double().flatten(1)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """gralora.safetensors, lora.safetensors, and merged/, the base with the first in it."""
    folder = tmp_path_factory.mktemp("combine")
    for name, config in KINDS.items():
        _, models = adapted_pipeline(config)
        save_adapter(folder / f"{name}.safetensors", models)
    write_merged(folder / "merged", read_adapter(folder / "gralora.safetensors"), None, torch.float32)
    return folder


@pytest.fixture(scope="module")
def adapters(folder):
    return [read_adapter(folder / f"{name}.safetensors") for name in KINDS]


def test_a_sum_is_exact(folder, adapters, tmp_path):
    files = [folder / f"{name}.safetensors" for name in KINDS]
    options = ["--strength", "0.5,-2", "--layer_strength", "attn2=0.25", "--layer_strength", "mid_block=0"]
    done = call("convert", *files, "sum.safetensors", "--to", "native", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = {}
    for adapter, strength in zip(adapters, (0.5, -2.0), strict=True):
        for name, delta in dense(adapter).items():
            factor = 0.25 if "attn2" in name else 0.0 if "mid_block" in name else 1.0
            if factor:
                wanted[name] = wanted.get(name, 0) + strength * factor * delta
    close(dense(read_adapter(tmp_path / "sum.safetensors")), wanted, 1e-6)


def test_another_strength_keeps_the_kind(folder, adapters, tmp_path):
    file = folder / "gralora.safetensors"
    done = call("convert", file, "x.safetensors", "--to", "native", "--strength", 0.3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = read_adapter(tmp_path / "x.safetensors")
    assert again.config.method == "gralora"
    close(dense(again), {name: 0.3 * delta for name, delta in dense(adapters[0]).items()}, 1e-6)


@pytest.mark.parametrize("how", [["--rank", 6], ["--rank", 8, "--method", "gralora", "--k", 2]], ids=str)
def test_the_printed_error_of_a_sum_is_its_error(how, folder, adapters, tmp_path):
    files = [folder / f"{name}.safetensors" for name in KINDS]
    done = call("convert", *files, "x.safetensors", "--to", "native", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("overall relative error"))
    wanted = dense(adapters[0])
    for name, delta in dense(adapters[1]).items():
        wanted[name] = wanted.get(name, 0) + delta
    got = dense(read_adapter(tmp_path / "x.safetensors"))
    lost = sum(float((got[name] - delta).square().sum()) for name, delta in wanted.items())
    total = sum(float(delta.square().sum()) for delta in wanted.values())
    assert float(line.split()[-1]) == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert read_adapter(tmp_path / "x.safetensors").config.method == ("gralora" if "--k" in how else "lora")


def test_a_gralora_comes_back_from_its_lora(folder, adapters, tmp_path):
    """Blocks of the rank that it had: the nearest GraLoRA of its exported LoRA is itself."""
    write_comfyui(tmp_path / "lora.safetensors", adapters[0], torch.float32)
    how = ["--to", "native", "--rank", 8, "--method", "gralora", "--k", 2, "--dtype", "fp32"]
    done = call("convert", "lora.safetensors", "x.safetensors", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    close(dense(read_adapter(tmp_path / "x.safetensors")), dense(adapters[0]), 1e-5)


@pytest.mark.parametrize("k", [None, 2])
def test_extract_finds_what_was_merged(k, folder, adapters, tmp_path):
    how = ["--rank", 16] if k is None else ["--rank", 8, "--method", "gralora", "--k", k]
    base = tmp_path / "base"
    write_merged(base, zero_like(adapters[0]), None, torch.float32)
    words = ["extract", folder / "merged", base, "x.safetensors", *how, "--to", "native"]
    done = run(*GRALORA, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    close(dense(read_adapter(tmp_path / "x.safetensors")), dense(adapters[0]), 2e-4)


def zero_like(adapter: Adapter) -> Adapter:
    layers = {}
    for component, path, factors in adapter.items():
        zeros = {leaf: torch.zeros_like(tensor) for leaf, tensor in factors.items()}
        layers.setdefault(component, {})[path] = zeros
    return Adapter(adapter.config, layers, adapter.facts)


def test_extract_from_the_base_itself_is_refused(folder, tmp_path):
    done = call("extract", folder / "merged", folder / "merged", "x.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing to extract" in done.stderr
    assert not list(tmp_path.iterdir())


def test_inspect_shows_what_a_file_holds(folder, adapters, tmp_path):
    done = run(*GRALORA, "inspect", folder / "gralora.safetensors", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kinds"] == {"GraLoRA": len(dense(adapters[0]))}
    assert found["ranks"] == {"8": len(dense(adapters[0]))}
    square = sum(float(delta.square().sum()) for delta in dense(adapters[0]).values())
    assert sum(norm**2 for norm in found["norms"].values()) == pytest.approx(square, rel=1e-6)
    done = call("inspect", folder / "gralora.safetensors", cwd=tmp_path)
    assert "unet.mid_block" in done.stdout
    assert "embedded" not in done.stderr


def test_an_input_is_never_overwritten(folder, tmp_path):
    save_file(load_file(folder / "lora.safetensors"), tmp_path / "x.safetensors", header(folder))
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    for out in ("x.safetensors", "./x.safetensors", "link.safetensors"):
        done = call("convert", "x.safetensors", out, "--to", "native", cwd=tmp_path)
        assert done.returncode == 2
        assert "is an input" in done.stderr
    assert (tmp_path / "x.safetensors").read_bytes() == before


def header(folder) -> dict[str, str]:
    with safe_open(folder / "lora.safetensors", "pt") as file:
        return file.metadata()


def test_fp8_halves_the_file(folder, adapters, tmp_path):
    sizes = {}
    for dtype in ("fp16", "fp8"):
        how = ["--to", "comfyui", "--dtype", dtype]
        done = call("convert", folder / "lora.safetensors", f"{dtype}.safetensors", *how, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        sizes[dtype] = (tmp_path / f"{dtype}.safetensors").stat().st_size
    assert sizes["fp8"] < 0.7 * sizes["fp16"]
    close(dense(read_adapter(tmp_path / "fp8.safetensors")), dense(adapters[1]), 0.06)


def test_a_kind_that_needs_the_base_asks_for_it(tmp_path):
    unet = load_sdxl().unet
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = unet.get_submodule(path).weight
    key = "lora_unet_" + path.replace(".", "_")
    torch.manual_seed(0)
    tensors = {
        f"{key}.lora_down.weight": torch.randn(3, weight.shape[1]) * 0.1,
        f"{key}.lora_up.weight": torch.randn(weight.shape[0], 3) * 0.1,
        f"{key}.dora_scale": weight.norm(dim=1, keepdim=True) * 1.2,
    }
    save_file(tensors, tmp_path / "dora.safetensors")
    how = ["convert", "dora.safetensors", "x.safetensors", "--to", "comfyui"]
    done = call(*how, cwd=tmp_path)
    assert done.returncode == 2
    assert "--rank" in done.stderr
    done = call(*how, "--rank", 8, cwd=tmp_path)
    assert done.returncode == 2
    assert "--pretrained_model_name_or_path" in done.stderr
    write_native(tmp_path / "zero.safetensors", Adapter.from_models(adapted_pipeline(KINDS["lora"])[1]))
    base = ["--pretrained_model_name_or_path", tmp_path / "base"]
    write_merged(
        tmp_path / "base", zero_like(read_adapter(tmp_path / "zero.safetensors")), None, torch.float32
    )
    done = call(*how, "--rank", min(weight.shape), "--dtype", "fp32", *base, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (delta,) = [delta for _, _, delta in read_adapter(tmp_path / "dora.safetensors").changes()]
    got = read_adapter(tmp_path / "x.safetensors")
    wanted = {f"unet.{path}.weight": delta.delta(weight.detach()).double()}
    close(dense(got), wanted, 1e-5)


@pytest.mark.filterwarnings("ignore:.*trained on a different base")
def test_sample_adds_several_adapters(folder, tmp_path):
    """Two adapters at their strengths draw what their sum, converted exactly, draws."""
    files = [folder / f"{name}.safetensors" for name in KINDS]
    how = ["--to", "native", "--strength", "0.5,-1", "--dtype", "fp32"]
    done = call("convert", *files, "sum.safetensors", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    common = ["--prompt", "a robot", "--num_images", 1, "--num_inference_steps", 3]
    both = ["--adapter", files[0], "--adapter", files[1], "--strength", "0.5,-1", "--output", "both.png"]
    for options in (both, ["--adapter", "sum.safetensors", "--output", "sum.png"]):
        done = call("sample", *common, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "prediction: epsilon" in done.stdout
    images = []
    for name in ("both", "sum"):
        (image,) = (tmp_path / name).glob("*.png")
        images.append(np.asarray(Image.open(image), dtype=int))
    assert np.abs(images[0] - images[1]).max() <= 2


def test_sample_refuses_strengths_that_do_not_match(folder, tmp_path):
    file = folder / "lora.safetensors"
    done = call("sample", "--adapter", file, "--strength", "1,2", "--prompt", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("it must be one number from -100 to 100")


def test_a_file_of_an_input_folder_is_never_overwritten(folder, tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "adapter.safetensors"
    file.write_bytes((folder / "lora.safetensors").read_bytes())
    before = file.read_bytes()
    done = call("convert", "run", "run/adapter.safetensors", "--to", "comfyui", cwd=tmp_path)
    assert done.returncode == 2
    assert "is an input" in done.stderr
    assert file.read_bytes() == before
    done = call("convert", "run", "run/new.safetensors", "--to", "comfyui", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "sizes", [["--rank", 0], ["--rank", -3], ["--rank", 66, "--k", 4], ["--k", 0]], ids=str
)
def test_extract_checks_its_sizes(sizes, folder, tmp_path):
    done = call("extract", folder / "merged", folder / "merged", "x.safetensors", *sizes, cwd=tmp_path)
    assert done.returncode == 2
    assert "--rank" in done.stderr


def test_rounding_is_no_change(folder, adapters, tmp_path):
    """The same base in another precision has nothing to extract."""
    zero = zero_like(adapters[0])
    write_merged(tmp_path / "fp32", zero, None, torch.float32)
    write_merged(tmp_path / "bf16", zero, None, torch.bfloat16)
    done = call("extract", "bf16", "fp32", "x.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing to extract" in done.stderr
