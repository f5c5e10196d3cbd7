"""gpu.sh's results outlive sections that crash, hang or break the device; what it measures is in nogpu/."""

import json
import sys

import pytest
from helpers import SCRIPTS

sys.path.insert(0, str(SCRIPTS / "benchmarks"))

import gpu
from gpu_results import Results, cell, table

SECTIONS = """
import os, signal, sys, time
from pathlib import Path

sys.path.insert(0, {benchmarks!r})
from gpu_results import Results

folder, until, later, quick, *shares = sys.argv[1:]
results = Results(Path(folder))
for section in [share.partition("=")[0] for share in shares]:
    overdue = 1000 if section == "presets" else 0
    results.begin(section, time.time() - overdue)
    results.add(section, dict(process=os.getpid()))
    if section == "steps":
        os.kill(os.getpid(), signal.SIGKILL)
    if section == "presets":
        time.sleep(600)
    results.end(section, "done")
    if section == "precisions":
        sys.exit(3)
"""
BEFORE = "import sys; sys.exit({code})"


@pytest.fixture
def sections(monkeypatch, tmp_path):
    """sections(source) puts this in the place of gpu_sections.py."""

    def put(source: str) -> None:
        (tmp_path / "gpu_sections.py").write_text(source)

    monkeypatch.setattr(gpu, "HERE", tmp_path)
    return put


def test_sections_that_crash_hang_or_break_the_device_end_alone(sections, tmp_path):
    sections(SECTIONS.format(benchmarks=str(SCRIPTS / "benchmarks")))
    assert gpu.main(["--output", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found" / "results.json").read_text())["sections"]
    assert list(found) == list(gpu.SECTIONS)
    states = {name: section["state"] for name, section in found.items()}
    crashed = dict(steps="stopped", presets="stopped")
    assert states == dict.fromkeys(gpu.SECTIONS, "done") | crashed
    assert "signal 9" in found["steps"]["sentence"]
    assert "did not end in its time" in found["presets"]["sentence"]
    process = {name: section["rows"][0]["process"] for name, section in found.items()}
    assert process["facts"] == process["steps"] != process["presets"]
    assert len({process[name] for name in ("presets", "precisions", "images", "resume")}) == 4


def test_a_process_that_ends_before_its_first_section_skips_that_one(sections, tmp_path):
    sections(BEFORE.format(code=1))
    assert gpu.main(["--output", str(tmp_path), "--only", "facts", "images"]) == 0
    found = Results(tmp_path)
    assert [found.state(name) for name in ("facts", "images")] == ["skipped", "skipped"]
    assert "exit code 1" in (tmp_path / "results.md").read_text()


def test_without_a_gpu_it_says_so(sections, tmp_path, capfd):
    sections(BEFORE.format(code=gpu.NO_DEVICE))
    assert gpu.main(["--output", str(tmp_path)]) == gpu.NO_DEVICE
    assert "no CUDA device" in capfd.readouterr().err


def test_without_time_every_section_is_skipped(sections, tmp_path):
    sections(BEFORE.format(code=0))
    assert gpu.main(["--output", str(tmp_path), "--minutes", "0.1"]) == 0
    found = Results(tmp_path)
    assert {found.state(name) for name in gpu.SECTIONS} == {"skipped"}


def test_a_table_has_the_columns_of_all_rows():
    rows = [dict(kind="a", ms=1.23456), dict(kind="b|c", problem="no\nmemory", finite=True)]
    assert table(rows) == [
        "| kind | ms | problem | finite |",
        "| --- | --- | --- | --- |",
        "| a | 1.235 |  |  |",
        "| b\\|c |  | no<br>memory | yes |",
    ]
    assert cell(12) == "12"
