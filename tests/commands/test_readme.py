"""The README keeps its limits, and is true: commands, presets, files, images, the ten lines of Python."""

import re
import shlex
import subprocess
import sys

import pytest
from helpers import GRALORA, ROOT
from PIL import Image

from gralora_diffusion.cli.main import COMMANDS
from gralora_diffusion.command_line import parse
from gralora_diffusion.presets import PRESETS

README = (ROOT / "README.md").read_text()


def blocks(language: str = "") -> list[str]:
    return [
        text for found, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M) if found == language
    ]


def commands() -> list[list[str]]:
    """The commands of the fenced blocks, and those between backquotes in the text."""
    lines = "\n".join(blocks()).replace("\\\n", " ").splitlines() + re.findall(r"`(gralora [^`]+)`", README)
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert len(README.split()) <= 1400
    assert max(map(len, lines)) <= 160


def test_training_commands_parse():
    found = [words[2:] for words in commands() if words[:2] == ["gralora", "train"] and len(words) > 2]
    assert found
    for options in found:
        parse("", options)


def test_the_other_commands_know_their_options(tmp_path):
    found = [words for words in commands() if words[0] == "gralora" and words[1:2] != ["train"]]
    assert {words[1] for words in found} >= {"sample", "ui", "convert", "evaluate", "compare"}
    for words in found:
        if words[1].startswith("-"):
            continue
        assert words[1] in COMMANDS, words
        flags = [word for word in words if word.startswith("--")]
        done = subprocess.run([*GRALORA, words[1], "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert not [flag for flag in flags if flag not in done.stdout], words


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    found = {words[1] for words in commands() if words[0] == "make"}
    assert {"demo", "test"} <= found <= set(targets)


def test_the_presets_are_the_presets():
    rows = re.findall(r"`((?:subject|style)-\d+gb)` \| ([\d.]+) GiB", README)
    assert {name: float(size) for name, size in rows} == {n: p["forecast_gib"] for n, p in PRESETS.items()}


def test_what_it_links_to_is_there():
    for path in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README):
        assert path.startswith("https://arxiv.org/abs/") or (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_ten_lines_of_python_run(tmp_path):
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 10
    script = tmp_path / "notebook.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "robot.png") as image:
        assert image.size == (64, 64)
