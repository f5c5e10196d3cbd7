"""Training in several processes."""

import json
import os
import sys

import pytest
from helpers import SCRIPTS, TRAIN
from run_command import run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]


COMMON = ["--gralora_rank", 16, "--max_train_steps", 3, "--skip_final_inference", "--adam_epsilon", 1e-3]
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    """A run of one process with the batch of two."""
    folder = tmp_path_factory.mktemp("one") / "run"
    words = [*COMMON, "--train_batch_size", 4, "--output_dir", folder]
    done = run(*TRAIN, *words, cwd=folder.parent, env=os.environ | ON_CPU)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "two_processes",
    [[*TRAIN, "--num_processes", 2], [*TORCHRUN, SCRIPTS / "train_sdxl.py"]],
    ids=["--num_processes", "torchrun"],
)
def test_two_processes_equal_one_with_twice_the_batch(two_processes, in_one_process, tmp_path):
    from safetensors.torch import load_file

    words = [*COMMON, "--train_batch_size", 2, "--output_dir", tmp_path / "two"]
    two = run(*two_processes, *words, cwd=tmp_path, env=os.environ | ON_CPU)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("done:") == 1
    runs = (in_one_process, tmp_path / "two")
    first, second = (load_file(folder / "adapter.safetensors") for folder in runs)
    assert max((first[k] - second[k]).abs().max() for k in first) < 1e-6
    losses = [losses_of(folder) for folder in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def losses_of(run_folder):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


FAILS = """
import os
import sys

import torch

from gralora_diffusion.cli.main import main
from gralora_diffusion.training import objective, train

where, real, count = sys.argv.pop(1), objective.diffusion_loss, []


def loss(*values, **options):
    count.append(1)
    if len(count) == 3 + 2 and where == "step":  # three batches tell the time
        raise torch.OutOfMemoryError("CUDA out of memory")
    return real(*values, **options)


def fails(*_):
    raise SystemExit(1)


if os.environ["RANK"] == "1":
    objective.diffusion_loss = loss
    if where == "before":
        train.loss_function = fails
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "before"])
def test_where_one_process_fails_the_others_stop_with_a_sentence(tmp_path, where):
    (tmp_path / "fails.py").write_text(FAILS)
    options = ["--max_train_steps", 4, "--skip_final_inference", "--output_dir", tmp_path / "run"]
    words = [tmp_path / "fails.py", where, "train", *options]
    done = run(*TORCHRUN, *words, cwd=tmp_path, env=os.environ | ON_CPU)
    assert done.returncode != 0
    assert "[rank0]" not in done.stderr, "a traceback in place of a sentence"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    if where == "step":
        assert status["state"] == "failed"
        assert done.stderr.count("out of memory at step 2: ") == 1
        assert status["message"].startswith("another process failed at step 2: its own message says why")
        assert (tmp_path / "run" / "checkpoint-1" / "manifest.json").is_file()
    else:
        asked = "stopped before the first step"  # where torchrun's signal came first
        assert status["message"].startswith(("another process of this run has ended", asked))


SHARE = """
import copy
from types import SimpleNamespace

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed.fsdp import OffloadPolicy

from gralora_diffusion import AdapterConfig, inject, load_sdxl
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.sdxl.base import blank_inputs, predict
from gralora_diffusion.training.sharding import shard

Accelerator()  # starts the processes' group; on CPUs it takes FSDP for plain data parallelism
unet = load_sdxl().unet
inject(unet, AdapterConfig(rank=8, k=2))
torch.manual_seed(0)
for parameter in adapter_parameters(unet).values():
    parameter.data.normal_(std=0.05)
whole, frozen = copy.deepcopy(unet), sum(p.numel() for p in unet.parameters() if not p.requires_grad)
plugin = SimpleNamespace(reshard_after_forward=True, cpu_offload=OffloadPolicy())
shard(unet, SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin)))
inputs = blank_inputs(unet.config, 1, 8)
inputs[0].normal_()
for model in (unet, whole):
    predict(model, *inputs).square().sum().backward()
here = sum(p.to_local().numel() for p in unet.parameters() if hasattr(p, "to_local"))
pairs = zip(adapter_parameters(unet).values(), adapter_parameters(whole).values(), strict=True)
same = all((a.grad - b.grad).norm() <= 1e-5 * b.grad.norm() for a, b in pairs)
print(f"share {here / frozen:.2f} {same}\\n", end="", flush=True)
"""


@pytest.mark.slow
def test_sharding_keeps_a_part_of_the_base_in_each_process_and_the_gradients(tmp_path):
    (tmp_path / "share.py").write_text(SHARE)
    on_cpu = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = run(*TORCHRUN, tmp_path / "share.py", cwd=tmp_path, env=on_cpu)
    assert done.stdout.splitlines() == ["share 0.50 True"] * 2, done.stderr


def test_fsdp_that_accelerate_ignores_is_refused(tmp_path):
    asked = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    done = run(*TRAIN, "--output_dir", tmp_path / "run", cwd=tmp_path, env=asked)
    assert done.returncode == 2
    assert "accelerate is configured for FSDP, but uses" in done.stderr
    assert not (tmp_path / "run").exists()
