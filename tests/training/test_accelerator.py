"""Processes that a launcher started: together they train one run, and alone they are refused."""

import os
import subprocess
import sys

import pytest
from helpers import TRAIN

OPTIONS = ["--max_train_steps", "1", "--skip_final_inference", "--output_dir", "run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def environment(**changes) -> dict:
    """This process's environment, without what accelerate and launchers set."""
    foreign = ("ACCELERATE_", "WORLD_SIZE", "RANK", "LOCAL_", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="") | changes


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_of_several_that_sees_no_others_is_refused_and_writes_nothing(tmp_path, rank):
    """As a launcher starts it; with LOCAL_RANK too, torch itself would wait for the others."""
    launched = environment(WORLD_SIZE="2", RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
    done = subprocess.run(
        [*TRAIN, *OPTIONS],
        cwd=tmp_path,
        env=launched,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    if rank == "0":  # the message comes once
        assert "2 processes were started together" in done.stderr
        assert "use `gralora train --num_processes N`" in done.stderr
        assert "ACCELERATE_USE_CPU=1 for torchrun without GPUs" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("on_cpu", "code"), [({}, 1), (dict(ACCELERATE_USE_CPU="1"), 0)])
def test_torchrun_on_a_cpu_needs_what_the_message_says(tmp_path, on_cpu, code):
    command = [*TORCHRUN, "-m", "gralora_diffusion", "train", *OPTIONS]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(**on_cpu),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("2 processes were started together" in done.stderr) == (code == 1)
    assert (tmp_path / "run" / "adapter.safetensors").exists() == (code == 0)
    assert bool(list(tmp_path.iterdir())) == (code == 0)
