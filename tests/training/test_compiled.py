"""--compile: the same training, with the same names in its files; and where it is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._inductor import cpp_builder

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.adapters import whole_operations
from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import load_sdxl
from gralora_diffusion.training import compiled
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.train import train

QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2, targets=r"(down_blocks|mid_block).*attn"),
    mixed_precision="bf16",
    max_train_steps=2,
    skip_final_inference=False,
    num_inference_steps=1,
    num_validation_images=1,
    adam_epsilon=1e-3,  # so that rounding does not decide a step's sign
)


def run(folder: Path, **options) -> Path:
    return train(dataclasses.replace(QUICK, output_dir=str(folder), **options))


def block_of_the_base(unswapped: bool):
    """(a transformer block in bf16 with a GraLoRA whose factors are random, its FlatFactors)"""
    block = load_sdxl().unet.mid_block.attentions[0].transformer_blocks[0].bfloat16()
    torch.manual_seed(0)
    inject(block, AdapterConfig(rank=8, k=2, targets="attn"))
    for parameter in adapter_parameters(block).values():
        parameter.data = torch.randn(parameter.shape) * 0.05
    groups = [dict(params=list(adapter_parameters(block).values()))]
    return block.train(), FlatFactors.of_models(groups, [block], torch.bfloat16, unswapped=unswapped)


def gradients(block, factors: FlatFactors) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, block.attn1.to_q.in_features, generator=random).bfloat16().requires_grad_()
    text = torch.randn(1, 5, block.attn2.to_k.in_features, generator=random).bfloat16()
    block(x, encoder_hidden_states=text).float().square().mean().backward()
    factors.collect()
    return factors.gradients.clone(), x.grad.float()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "unswapped"), [("inductor", False), ("aot_eager", True)], ids=["inductor", "as on GPUs"]
)
def test_a_compiled_block_has_the_same_gradients(backend, unswapped, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", backend)
    if unswapped:
        monkeypatch.setattr(whole_operations, "DEVICES", ("cpu",))
    eager, (block, factors) = block_of_the_base(unswapped), block_of_the_base(unswapped)
    assert compiled.compile_blocks(torch.nn.ModuleList([block]), 1) == 1
    assert not any("_orig_mod" in name for name, _ in block.named_parameters())
    for expected, found in zip(gradients(*eager), gradients(block, factors), strict=True):
        assert expected.any()
        assert (found - expected).norm() < 0.02 * expected.norm()
    assert factors.copies_gradients.count_nonzero() == 0


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_adapter(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    folders = [run(tmp_path / "eager"), run(tmp_path / "compiled", compile=True, gradient_checkpointing=True)]
    assert "blocks of the UNet are compiled in the first step" in capsys.readouterr().err
    expected, found = (load_file(folder / "adapter.safetensors") for folder in folders)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 0.02 * tensor.abs().max()


@pytest.mark.parametrize("other", [dict(base_model_precision="int8-torchao"), dict(offload_unet=True)])
def test_options_that_move_or_change_the_weights_are_refused(other):
    if "offload_unet" in other:
        other |= dict(gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="--compile needs a UNet whose weights stay"):
        TrainConfig(compile=True, **other)


def test_a_machine_without_a_compiler_is_refused(monkeypatch):
    def missing():
        raise RuntimeError("no compiler")

    config = TrainConfig(compile=True)
    compiled.check_compile(config, torch.device("cpu"))
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler .*: drop it"):
        compiled.check_compile(config, torch.device("cpu"))
    with pytest.raises(ConfigError, match="this is mps: drop it"):
        compiled.check_compile(config, torch.device("mps"))
    compiled.check_compile(dataclasses.replace(config, compile=False), torch.device("mps"))
