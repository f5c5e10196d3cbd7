"""Names of layers there and back, and SDXL in full size through the export."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from test_convert import SCRIPTS

from gralora_diffusion import AdapterConfig
from gralora_diffusion.exchange import Adapter
from gralora_diffusion.formats import read_adapter, write_native
from gralora_diffusion.merging import Stored, file_name, to_checkpoint
from gralora_diffusion.names import canonical, checkpoint_names, from_kohya, from_sgm, kohya, sgm
from gralora_diffusion.sdxl import shapes, vae_shapes


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
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    (tmp_path / "sdxl.safetensors").write_bytes(b"")
    models = shapes(tmp_path / "sdxl.safetensors") | {"vae": vae_shapes(tmp_path / "sdxl.safetensors")}
    shaped = {c: {file_name(c, n): Stored(list(t.shape), t.dtype, None) for n, t in model.state_dict().items()} for c, model in models.items()}
    merged = to_checkpoint(shaped, checkpoint_names(shaped, 2, 4))
    written = {name: torch.empty(tensor.shape, device="meta") for name, tensor in merged.items()}
    assert len(written) == 2513
    assert written["conditioner.embedders.1.model.transformer.resblocks.9.attn.in_proj_weight"].shape == (3840, 1280)
    unet = convert_ldm_unet_checkpoint(dict(written), models["unet"].config)
    vae = convert_ldm_vae_checkpoint(dict(written), models["vae"].config)
    for model, found in ((models["unet"], unet), (models["vae"], vae)):
        wanted = model.state_dict()
        assert wanted.keys() == found.keys()
        assert all(found[name].shape == tensor.shape for name, tensor in wanted.items())
