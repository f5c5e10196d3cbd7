"""The public names, and that the documents name the folders, files and tables that are there."""

import importlib
import re
import subprocess
import sys

import pytest
from helpers import GRALORA, ROOT

import gralora_diffusion
from gralora_diffusion.cli.main import COMMANDS

PACKAGE = ROOT / "gralora_diffusion"
PUBLIC = {
    *(
        "AdapterConfig",
        "TrainConfig",
        "LoRALinear",
        "GraLoRALinear",
        "inject",
        "train",
        "sample",
        "load_sdxl",
    ),
    *("load_adapter", "save_adapter", "set_strength", "enable", "remove", "evaluate"),
}


def wings() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_public_names_complete_and_are_what_they_say():
    assert set(gralora_diffusion.__all__) == PUBLIC
    assert set(dir(gralora_diffusion)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(gralora_diffusion, name).__name__ == name
    with pytest.raises(AttributeError, match="no 'nothing'"):
        gralora_diffusion.nothing  # noqa: B018
    assert (PACKAGE / "py.typed").is_file()


def test_importing_the_package_imports_no_library():
    code = (
        "import sys, gralora_diffusion; print({'torch', 'diffusers', 'gradio', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_readmes_layout_is_the_layout():
    layout = (
        (ROOT / "README.md").read_text().partition("\n## Layout\n")[2].partition("\n[CONTRIBUTING.md]")[0]
    )
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+/)`", layout)}
    assert named - {"gralora_diffusion", "tests", "commands", "browser"} == wings()
    assert {"commands", "browser"} <= {path.name for path in (ROOT / "tests").iterdir()}


def test_contributing_names_files_and_tables_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    floors = text.partition("\n## Layout\n")[2].partition("`tests/` has a folder")[0]
    named = set(re.findall(r"`(\w+)/`", floors))
    assert named == wings()
    ground = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"`(\w+\.py)`", floors)) == ground
    for path in set(re.findall(r"`([\w/]+\.py)`", text)) - {"ui/tab_NAME.py", "cli/NAME.py"}:
        assert (PACKAGE / path).is_file() or (ROOT / path).is_file(), path
    for table, path in re.findall(r"`([A-Z_]+)` in `([\w/]+)\.py`", text):
        if path.startswith("tests/"):
            assert re.search(rf"^{table} = ", (ROOT / f"{path}.py").read_text(), re.M), table
            continue
        assert getattr(importlib.import_module(f"gralora_diffusion.{path.replace('/', '.')}"), table), table


USAGE = {
    "mask": "FOLDER",
    "caption": "FOLDER --model MODEL",  # after [options]
    "sample": "--prompt TEXT",
    "convert": "--to FORMAT IN [IN ...] OUT",
    "extract": "TUNED BASE OUT",
    "inspect": "IN",
    "compare": "--output FOLDER",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_in_groups_with_an_example(command, tmp_path):
    done = subprocess.run([*GRALORA, command, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (usage,) = [line for line in done.stdout.splitlines() if line.startswith("usage: ")]
    assert usage.startswith(f"usage: gralora {command} [options]")
    assert usage.split()[4:] == USAGE.get(command, "").split()
    assert f"gralora {command}" in done.stdout.partition("[options]")[2], "an example"
    assert not list(tmp_path.iterdir())


def test_the_command_is_the_module_and_says_what_it_does_not_know(tmp_path):
    done = subprocess.run([*GRALORA, "trian"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("gralora: unknown command 'trian'; did you mean 'train'?")
    listed = subprocess.run(GRALORA, cwd=tmp_path, capture_output=True, text=True).stdout
    assert all(re.search(rf"^  {name} ", listed, re.M) for name in COMMANDS)
