"""The benchmark counts operations as theory does and reports all its figures; speed is not tested."""

import functools
import json
import math
import subprocess
import sys

import pytest
from helpers import SCRIPTS

BENCHMARKS = SCRIPTS / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import benchmark_layers  # noqa: E402
import benchmark_pipelines  # noqa: E402
import benchmark_steps  # noqa: E402
from benchmark_inputs import random_base, write_images  # noqa: E402
from benchmark_operations import count_operations, operations  # noqa: E402
from benchmark_turns import Bench, ratio  # noqa: E402
from timed_run import TRAIN, timed_run  # noqa: E402

SHORT = Bench(rounds=3, seconds=1.0)


def is_ratio(found) -> bool:
    return set(found) == {"median", "low", "high"} and (
        math.isnan(found["median"]) or found["low"] <= found["median"] <= found["high"]
    )


def test_all_run_in_every_round_and_the_first_rounds_do_not_count():
    order = []
    contestants = {name: functools.partial(order.append, name) for name in "abc"}
    times = Bench(rounds=3).in_turns(contestants, warm_up=1)
    assert {name: len(t) for name, t in times.items()} == dict(a=3, b=3, c=3)
    assert [sorted(order[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert [order[i] for i in range(3, 12, 3)] == ["a", "b", "c"]


def test_a_ratio_is_taken_round_by_round():
    times = dict(base=[1.0, 2.0, 1.0], one=[3.0, 4.0, 5.0], other=[2.0, 3.0, 2.0])
    assert ratio(times, "one", "other", "base") == dict(median=2.0, low=2.0, high=4.0)
    assert ratio(times, "one", "other")["median"] == 1.5
    assert math.isnan(ratio(times | dict(other=times["base"]), "one", "other", "base")["median"])


@pytest.mark.parametrize(("tokens", "n", "m", "rank"), [(6, 16, 24, 8), (10, 40, 8, 8)])
def test_gralora_saves_as_many_additions_as_in_theory(tokens, n, m, rank):
    for row in operations(tokens, n, m, rank, blocks=(1, 2, 4, 8)):
        assert row["forward"]["exact"] == row["forward"]["theory"] == -(row["k"] - 1) * rank * tokens
        assert row["both"]["exact"] == row["both"]["theory"] == 2 * row["forward"]["theory"]
        assert row["forward"]["torch"] == row["both"]["torch"] == 0


def test_torchs_count_and_the_exact_count_of_a_lora_layer():
    import torch
    from torch import nn

    from gralora_diffusion import LoRALinear

    layer = LoRALinear.from_linear(nn.Linear(16, 24, bias=False), 8)
    counted, exact = count_operations(layer, torch.randn(6, 16))
    assert counted == 2 * 6 * (16 * 24 + 16 * 8 + 8 * 24)
    assert exact == 6 * (24 * 31 + 8 * 31 + 24 * 16)  # the last product adds to what is there


def test_layers_are_compared_in_time_and_memory(capsys):
    rows = benchmark_layers.layers(SHORT, [(12, 16, 24)], [(8, 2)])
    assert [row["dtype"] for row in rows] == ["fp32", "bf16"]
    for row, size in zip(rows, (4, 2), strict=True):
        assert all(is_ratio(r) for r in row["ratios"].values())
        assert set(row["ms"]) == {"frozen", "LoRA", "GraLoRA", "PEFT LoRA", "PEFT GraLoRA"}
        assert row["kept"]["LoRA"] == (16 + 8) * size
        assert row["kept"]["GraLoRA"] == (16 + 2 * 8) * size
        assert row["kept"]["GraLoRA"] <= row["kept"]["PEFT LoRA"] + 2 * 8 * size
    assert capsys.readouterr().out.count("16 -> 24") == 2


def test_export_is_exact_and_compared_with_pefts(capsys):
    found = benchmark_pipelines.export(SHORT, 8, 2, {(32, 48): 3, (32, 32): 2})
    assert set(found["seconds"]) == {"ours", benchmark_pipelines.PEFT}
    assert 0 <= found["error"] < 1e-6  # of what is exported, not of the layer alone
    assert "5 layers" in capsys.readouterr().out


def test_adapters_are_loaded_merged_swapped_and_sampled():
    found = benchmark_pipelines.loading(SHORT, "tiny", 8, 2, rounds=2)
    assert set(found) == {"load", "merge", "load + merge", "unmerge", "strength", "swap"}
    assert all(is_ratio(row["ratio"]) and row["ours"] > 0 and row["diffusers"] > 0 for row in found.values())
    steps = benchmark_pipelines.sampling(SHORT, "tiny", 8, 2, images=1)
    assert {"merged", "GraLoRA", "LoRA", "PEFT LoRA", "GraLoRA / PEFT LoRA", "ms"} <= set(steps)


def test_a_training_command_is_timed_step_by_step(tmp_path):
    options = dict(
        instance_data_dir=write_images(tmp_path / "images", 2, 64),
        instance_prompt="x",
        max_train_steps=4,
        train_batch_size=1,
        rank=4,
        gralora_k=1,
        skip_final_inference=True,
        output_dir=tmp_path / "run",
    )
    found = timed_run(TRAIN, [*benchmark_steps.words(options), "--no-cache_latents"])
    assert set(found) == {"wall", "cpu"}
    for times in found.values():
        assert 0 < times["step"] < times["first"]
        assert times["peak"] > 2**20
    with pytest.raises(SystemExit, match="not a folder"):
        timed_run(TRAIN, ["--instance_data_dir", str(tmp_path / "none")])


def test_the_larger_base_has_sdxls_proportions(tmp_path):
    base = random_base(tmp_path / "base", 32)
    unet, vae = benchmark_steps.flops(base, 64)
    assert unet > vae > 0


def test_the_command_prints_tables_plots_and_one_line_of_json_last(tmp_path):
    command = [sys.executable, BENCHMARKS / "benchmark.py"]
    options = ["--quick", "--only", "scaling", "--rounds", "2", "--plot", tmp_path / "plots.png"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"machine", "scaling"}
    assert set(found["scaling"]) == {"rank", "k", "tokens", "images", "adapters", "operations"}
    assert (tmp_path / "plots.png").read_bytes().startswith(b"\x89PNG")
    options = ["--diffusers_script", tmp_path / "none.py"]
    wrong = subprocess.run([*command, *options], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "none.py does not exist" in wrong.stderr
