import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from card import environment
from helpers import ROOT
from stub_build import why_not

HERE = Path(__file__).parent
TIMEOUT = 900  # seconds of a process


@pytest.fixture(scope="session", autouse=True)
def stub_or_skip() -> None:
    """These tests need the stub, and no real GPU."""
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is a real GPU")
    if problem := why_not():
        pytest.skip(f"there is no stub of a GPU: {problem}")


def run_script(name: str | Path, *options, gib: float = 24.0, **more: str) -> subprocess.CompletedProcess:
    """A script of this folder, or another file, on the stub; `more` is for its environment."""
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / name), *map(str, options)]
    env = environment(gib, PYTHONPATH=path, OMP_NUM_THREADS="1", **more)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture(scope="session")
def script(stub_or_skip) -> Callable:
    """run_script()."""
    return run_script


@pytest.fixture(scope="session")
def run_cases(stub_or_skip, tmp_path_factory) -> Callable[[dict], dict]:
    """run_cases(cases) -> {name: what cases.py found}, all of them in one process."""

    def run(cases: dict) -> dict:
        folder = tmp_path_factory.mktemp("cases")
        given, found = folder / "cases.json", folder / "found.json"
        given.write_text(json.dumps(cases))
        done = run_script("cases.py", given, found)
        assert found.is_file(), done.stderr[-5000:]
        return json.loads(found.read_text())

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where the commands of a module write."""
    return tmp_path_factory.mktemp("home")
