"""scripts/benchmarks/gpu.sh as a whole, in its small sizes; the numbers mean nothing on the stub."""

import json
import os
import subprocess
import sys

import pytest
from card import environment
from helpers import ROOT

SCRIPT = ROOT / "scripts" / "benchmarks" / "gpu.sh"
sys.path.insert(0, str(SCRIPT.parent))

from gpu_results import TITLES  # noqa: E402

HERE = ROOT / "tests" / "nogpu"
STAND_INS = """
import sys
if any(word.endswith("gpu_sections.py") for word in sys.orig_argv):  # the processes that use the device
    import stand_ins
"""


@pytest.fixture(scope="module")
def found(stub_or_skip, tmp_path_factory):
    """(what the script printed, its results.json, its results.md)"""
    home = tmp_path_factory.mktemp("gpu")
    (home / "sitecustomize.py").write_text(STAND_INS)
    path = os.pathsep.join([str(home), str(HERE), os.environ.get("PYTHONPATH", "")])
    caches = dict(TRITON_CACHE_DIR=str(home / "triton"), TORCHINDUCTOR_CACHE_DIR=str(home / "inductor"))
    env = environment(PYTHONPATH=path, PYTHON=sys.executable, OMP_NUM_THREADS="1", **caches)
    command = ["bash", str(SCRIPT), "--quick", "--output", str(home / "found")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((home / "found" / "results.json").read_text())
    return done.stdout, results, (home / "found" / "results.md").read_text()


def rows_of(results: dict, section: str) -> list[dict]:
    return results["sections"][section]["rows"]


def problems(results: dict, section: str) -> dict[str, str]:
    """{the first cell of a row: what is wrong}, without what --quick leaves out."""
    found = {}
    for row in rows_of(results, section):
        problem = row.get("problem", "")
        if problem and "--quick" not in problem:
            found[str(next(iter(row.values())))] = problem
    return found


def test_every_section_is_done(found):
    printed, results, page = found
    states = {name: section["state"] for name, section in results["sections"].items()}
    assert states == dict.fromkeys(TITLES, "done"), results
    for title in TITLES.values():
        assert f"{title}: done" in printed
        assert f"## {title}" in page


def test_only_what_the_stub_lacks_is_a_problem(found):
    results = found[1]
    assert set(problems(results, "facts")) <= {"cuDNN"}
    assert set(problems(results, "steps")) <= {"GraLoRA, compiled blocks"}  # without a CUDA compiler
    assert problems(results, "presets") == {}
    assert set(problems(results, "precisions")) <= {"int8-torchao", "nf4-torchao"}  # without torchao
    assert problems(results, "images") == {}
    assert problems(results, "resume") == {}


def test_every_kind_of_step_is_measured_with_and_without_checkpointing(found):
    rows = rows_of(found[1], "steps")
    measured = {(row["kind"], row["checkpointing"]) for row in rows if "ms" in row}
    kinds = ("LoRA", "GraLoRA", "PEFT LoRA", "PEFT GraLoRA", "diffusers' script")
    for kind in ("frozen UNet, gradient of its input", *kinds):
        assert {(kind, False), (kind, True)} <= measured
    assert all(row["peak GiB"] > 0 for row in rows if "ms" in row)


def test_runs_draw_their_images_and_fit_their_forecasts(found):
    rows = [row for row in rows_of(found[1], "presets") if "problem" not in row]
    assert len(rows) == 2
    for row in rows:
        assert row["images"] == 8
        assert 0 < row["peak GiB"] < 2 * row["estimated GiB"]


def test_kernels_that_do_nothing_leave_equal_adapters(found):
    for row in rows_of(found[1], "resume"):
        assert row["equal bits"]
