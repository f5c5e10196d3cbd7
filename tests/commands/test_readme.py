"""The README says what is so: its commands parse, its images are there, its file tree is the tree."""

import re
import shlex
from pathlib import Path

from helpers import ROOT

from gralora_diffusion.command_line import parse

README = (ROOT / "README.md").read_text()


def commands():
    blocks = [
        text for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M) if not language
    ]
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if line.startswith(("accelerate", "python", "make", "pip")):
            yield shlex.split(line, comments=True)


def test_training_commands_parse():
    found = [c for c in commands() if c[:2] == ["accelerate", "launch"]]
    assert len(found) >= 3
    for command in found:
        assert (ROOT / "scripts" / Path(command[2]).name).is_file()
        parse("", command[3:])


def test_the_other_scripts_exist_and_know_their_flags():
    found = [c for c in commands() if c[:1] == ["python"]]
    assert found
    for command in found:
        source = (ROOT / command[1]).read_text()
        assert all(f'"{flag}"' in source for flag in command[2:] if flag.startswith("--")), command


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    found = [c[1] for c in commands() if c[:1] == ["make"]]
    assert {"demo", "test"} <= set(found) <= set(targets)


def test_images_are_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_the_file_tree_is_the_tree():
    tree = README[README.index("## Files") :]
    here = [
        p for folder in ("gralora_diffusion", "scripts", "ui", "tests") for p in (ROOT / folder).glob("*.py")
    ]
    for path in here:
        assert path.name in tree, f"{path.name} is not in the README's file tree"
    for name in re.findall(r"[\w/]+\.py", tree):
        assert name in {p.name for p in here}, f"{name} is in the README's file tree, and nowhere else"
