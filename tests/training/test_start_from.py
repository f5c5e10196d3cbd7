"""--start_from: a run begins with another adapter's change, or with the nearest that its factors can hold."""

import json
import math

import pytest
import torch
from adapter_files import deltas
from helpers import adapted_pipeline
from safetensors.torch import save_file

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_sdxl, save_adapter, train
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui, write_native
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.start_from import EXACT, start_from

EPSILON = dict(prediction_type="epsilon", rescale_betas_zero_snr=False)
LORA = AdapterConfig(method="lora", rank=8, alpha=4.0)
GRALORA = AdapterConfig(rank=8, k=2)
CONV = "attention+ff+conv"


def written(config: AdapterConfig, file, names=("unet",)) -> Adapter:
    _, models = adapted_pipeline(config, names)
    save_adapter(file, models)
    return read_adapter(file)


def begun(config: AdapterConfig, file):
    """(what start_from() tells, {component.path: change of the adapters then})"""
    pipeline = load_sdxl()
    torch.manual_seed(3)
    inject(pipeline.unet, config)
    started = start_from(str(file), {"unet": pipeline.unet}, EPSILON)
    found = {}
    for path, layer in adapted_layers(pipeline.unet).items():
        found[f"unet.{path}"] = layer.adapter.delta().detach().double()
    return started, found


EXACTLY = {
    "a LoRA as it is": (LORA, LORA),
    "another scale": (LORA, AdapterConfig(method="lora", rank=8, alpha=16.0)),
    "a higher rank": (LORA, AdapterConfig(method="lora", rank=12)),
    "GraLoRA as it is": (GRALORA, AdapterConfig(rank=8, k=2, rslora=True)),
    "a LoRA into GraLoRA of k times its rank": (LORA, AdapterConfig(rank=16, k=2)),
    "GraLoRA into LoRA of k times its rank": (GRALORA, AdapterConfig(method="lora", rank=16)),
    "hybrid as it is": (AdapterConfig(rank=8, k=2, hybrid_rank=4), AdapterConfig(rank=8, k=2, hybrid_rank=4)),
    "LoCon into conv GraLoRA": (
        AdapterConfig(method="lora", rank=4, targets=CONV),
        AdapterConfig(rank=16, k=4, targets=CONV),
    ),
    "fewer layers": (LORA, AdapterConfig(method="lora", rank=8, targets="attention+ff")),
}
NEARLY = {
    "a lower rank": (LORA, AdapterConfig(method="lora", rank=4)),
    "another k": (GRALORA, AdapterConfig(rank=8, k=4)),
    "into hybrid": (LORA, AdapterConfig(rank=8, k=2, hybrid_rank=4)),
    "GraLoRA into LoRA": (GRALORA, LORA),
}


@pytest.mark.parametrize("way", [*EXACTLY, *NEARLY])
def test_the_run_begins_with_the_adapters_change(way, tmp_path):
    first, then = (EXACTLY | NEARLY)[way]
    wanted = deltas(written(first, tmp_path / "x.safetensors"))
    started, got = begun(then, tmp_path / "x.safetensors")
    lost = total = 0.0
    for layer, delta in got.items():
        goal = wanted.get(layer, torch.zeros_like(delta))
        error = float((delta - goal).norm())
        if layer in wanted:
            assert started.errors[layer] == pytest.approx(error / float(goal.norm()), abs=1e-6)
        lost += error**2
        total += float(goal.norm()) ** 2
    assert not started.lost
    assert started.error == pytest.approx(math.sqrt(lost / total), abs=1e-6)
    if way in EXACTLY:
        assert started.error < EXACT
    else:
        assert EXACT < started.error < 1
        assert f"relative error {started.error:.3e}" in started.text()
        assert len(started.text().splitlines()) == len(started.errors) + 1


def test_the_factors_are_the_best_of_their_kind(tmp_path):
    """Each block of the result is the truncated SVD of that block of the change."""
    wanted = deltas(written(LORA, tmp_path / "x.safetensors"))
    _, got = begun(AdapterConfig(rank=8, k=4), tmp_path / "x.safetensors")
    for layer, delta in wanted.items():
        m, n = delta.shape
        blocks = delta.reshape(4, m // 4, 4, n // 4).transpose(1, 2)
        u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
        best = ((u[..., :2] * s[..., None, :2]) @ vh[..., :2, :]).transpose(1, 2).reshape(m, n)
        torch.testing.assert_close(got[layer], best, rtol=1e-4, atol=1e-5)


def test_ranks_that_the_change_does_not_need_can_be_trained(tmp_path):
    """A factor pair of zeros would stay zero forever: A is random there, and B zero."""
    written(LORA, tmp_path / "x.safetensors")
    for config in (AdapterConfig(method="lora", rank=12), AdapterConfig(rank=24, k=2)):
        pipeline = load_sdxl()
        inject(pipeline.unet, config)
        start_from(str(tmp_path / "x.safetensors"), {"unet": pipeline.unet}, EPSILON)
        for layer in adapted_layers(pipeline.unet).values():
            for A, _ in layer.adapter.factors:
                rows = A.detach() if A.ndim == 2 else A.detach().transpose(1, 2).flatten(0, 1)
                assert float(rows.norm(dim=1).min()) > 0.1


def test_layers_that_the_run_does_not_train_are_named(tmp_path):
    wanted = deltas(written(LORA, tmp_path / "x.safetensors", ("unet", "text_encoder")))
    started, _ = begun(LORA, tmp_path / "x.safetensors")
    assert started.lost
    assert all(name.startswith("text_encoder.") for name in started.lost)
    left = sum(float(delta.square().sum()) for layer, delta in wanted.items() if layer.startswith("text"))
    total = sum(float(delta.square().sum()) for delta in wanted.values())
    assert started.error == pytest.approx(math.sqrt(left / total), rel=1e-5)


def options(folder, name, **given):
    given = dict(adapter=LORA, max_train_steps=8, train_batch_size=2, skip_final_inference=True) | given
    return TrainConfig(output_dir=str(folder / name), latent_cache_dir=str(folder / "cache"), **given)


def losses(run) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The folder with a trained LoRA in parent/, and its file for other tools."""
    folder = tmp_path_factory.mktemp("parent")
    train(options(folder, "parent", max_train_steps=60, learning_rate=3e-3))
    write_comfyui(folder / "other.safetensors", read_adapter(folder / "parent"), torch.float32)
    return folder


def test_a_run_goes_on_from_a_lora_and_stays_ahead(parent):
    """It begins at the LoRA's own loss, whatever the kind, and ends below a run from zero."""
    new = AdapterConfig(rank=16, k=2)
    zero = losses(train(options(parent, "zero", adapter=new)))
    same = losses(train(options(parent, "same", start_from=str(parent / "parent"))))
    path = train(options(parent, "other", adapter=new, start_from=str(parent / "other.safetensors")))
    other = losses(path)
    assert other[0] == pytest.approx(same[0], rel=1e-4)
    assert sum(same[-4:]) < sum(zero[-4:])
    assert sum(other[-4:]) < sum(zero[-4:])
    assert abs(same[0] - zero[0]) > 1e-3
    facts = read_adapter(path).facts
    assert facts["parent"]["name"] == "other"
    assert str(parent) not in json.dumps(facts)


def test_a_started_run_resumes_bit_by_bit(parent):
    start = dict(adapter=AdapterConfig(rank=8, k=2), start_from=str(parent / "parent"))
    whole = train(options(parent, "whole", **start))
    train(options(parent, "parts", **start, checkpointing_steps=4, max_train_steps=4))
    moved = parent / "moved.safetensors"  # content decides, not the path
    moved.write_bytes((parent / "parent" / "adapter.safetensors").read_bytes())
    parts = train(options(parent, "parts", **(start | dict(start_from=str(moved))), checkpointing_steps=4))
    for name in ("adapter.safetensors",):
        first = {f"{c}.{p}": f for c, p, f in read_adapter(whole / name).items()}
        second = {f"{c}.{p}": f for c, p, f in read_adapter(parts / name).items()}
        for layer, factors in first.items():
            for leaf, tensor in factors.items():
                assert torch.equal(second[layer][leaf], tensor)
    other = start | dict(start_from=str(parent / "other.safetensors"))
    with pytest.raises(ConfigError, match="a different adapter to start from"):
        train(options(parent, "parts", **other, max_train_steps=12))


def test_what_cannot_be_gone_on_from_is_refused_before_anything_is_written(parent, tmp_path):
    adapter = read_adapter(parent / "parent")
    v_prediction = Adapter(
        adapter.config,
        adapter.layers,
        adapter.facts | dict(objective=EPSILON | dict(prediction_type="v_prediction")),
    )
    other_base = dict(adapter.facts["base"], name="another", fingerprint=dict(names="x", weights=[1.0]))
    write_native(tmp_path / "v.safetensors", v_prediction)
    facts = adapter.facts | dict(base=other_base)
    write_native(tmp_path / "base.safetensors", Adapter(adapter.config, adapter.layers, facts))
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{key}.diff": torch.zeros(7, 7)}, tmp_path / "size.safetensors")
    save_file({f"{key.replace('to_q', 'to_out_0')}.diff_b": torch.zeros(7)}, tmp_path / "bias.safetensors")
    for name, words in {
        "v": "v_prediction",
        "base": "a different base, another",
        "size": "does not fit",
        "bias": "none of its layers",
        "absent": "does not exist",
    }.items():
        config = options(tmp_path, "run", start_from=str(tmp_path / f"{name}.safetensors"))
        with pytest.raises(ConfigError, match=words):
            train(config)
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="--start_from"):
        options(tmp_path, "run", start_from="x", allocate="gora")


def test_another_noise_schedule_is_told(tmp_path):
    adapter = written(LORA, tmp_path / "x.safetensors")
    objective = dict(prediction_type="epsilon", rescale_betas_zero_snr=True)
    facts = adapter.facts | dict(objective=objective)
    write_native(tmp_path / "zero.safetensors", Adapter(adapter.config, adapter.layers, facts))
    started, _ = begun(LORA, tmp_path / "zero.safetensors")
    assert "epsilon with zero terminal SNR, and this run is for epsilon" in started.text()
    started, _ = begun(LORA, tmp_path / "x.safetensors")
    assert "note" not in started.text()
