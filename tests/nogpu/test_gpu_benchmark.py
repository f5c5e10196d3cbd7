"""scripts/benchmarks/gpu.sh as a whole, in its small sizes; the numbers mean nothing on the stub."""

import json
import os
import subprocess
import sys

import pytest
from card import environment
from helpers import ROOT

SCRIPT = ROOT / "scripts" / "benchmarks" / "gpu.sh"
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
    env = environment(PYTHONPATH=path, PYTHON=sys.executable, OMP_NUM_THREADS="1")
    command = ["bash", str(SCRIPT), "--quick", "--output", str(home / "found")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((home / "found" / "results.json").read_text())
    return done.stdout, results, (home / "found" / "results.md").read_text()
