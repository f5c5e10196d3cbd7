"""gralora ui: its options, and mistakes as one sentence."""

import socket
import subprocess

import pytest
from helpers import GRALORA


def refused_with(tmp_path, *arguments) -> str:
    """The one sentence that `gralora ui` exits with; no folder is made."""
    command = [*GRALORA, "ui", *arguments, "--home", tmp_path / "h"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert not (tmp_path / "h").exists()
    (sentence,) = done.stderr.strip().splitlines()
    return sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "0.0.0.0"],
        ["--share"],
        ["--auth", "nopassword"],
        ["--port", "99999"],
        ["--prot", "1"],
        ["--allow_host", "photos.example.com"],
        ["--allow_host", "*", "--auth", "ann:secret"],
        ["--allow_host", "a.example/x", "--auth", "ann:secret"],
        ["--root_path", "studio"],
        ["--root_path", "/studio/"],
        ["--root_path", "//evil.example"],
        ["--comfyui", "/nowhere/loras"],
    ],
)
def test_a23_an_open_page_needs_a_password(arguments, tmp_path):
    assert refused_with(tmp_path, *arguments).startswith("gralora ui: ")


def test_a_taken_port_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sentence = refused_with(tmp_path, "--port", str(port))
    assert sentence == f"gralora ui: port {port} is in use: give another --port, or --port 0 for a free one"


def test_a_foreign_address_is_one_sentence(tmp_path):
    sentence = refused_with(tmp_path, "--listen", "192.0.2.1", "--auth", "ann:secret")
    assert "192.0.2.1 cannot be opened" in sentence


def test_the_first_line_comes_before_the_imports_that_take_long(tmp_path):
    code = (
        "import builtins, sys; from gralora_diffusion.cli.main import main\n"
        "def first(text, **how):\n"
        "    loaded = sorted({'gradio', 'torch', 'diffusers'} & sys.modules.keys())\n"
        "    sys.exit(f'{text} {how} {loaded}')\n"
        "builtins.print = first\n"
        "main(sys.argv[1:])"
    )
    for arguments, text in (
        (["ui", "--port", "0"], "starting the page ..."),
        (["train", "--output_dir", "new"], "loading torch and diffusers ..."),
    ):
        command = [GRALORA[0], "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.stderr == f"{text} {{'flush': True}} []\n"


def test_help_explains_every_option_and_loads_no_library():
    code = (
        "import sys; from gralora_diffusion.cli.main import main\n"
        "try: main(['ui', '--help'])\n"
        "except SystemExit: print(sorted({'gradio', 'torch', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([GRALORA[0], "-c", code], capture_output=True, text=True, timeout=300)
    *text, loaded = done.stdout.strip().splitlines()
    assert loaded == "[]"
    assert text[-2:] == ["example:", "  gralora ui --home studio --port 8000"]
    options = ("--port", "--home", "--listen", "--share", "--auth", "--allow_host", "--root_path")
    for option in (*options, "--comfyui", "--a1111"):
        assert any(line.strip().startswith(option) and len(line.split()) > 2 for line in text), option
