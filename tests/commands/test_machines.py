"""What people's shells, terminals and habits of other trainers do to a command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import GRALORA
from PIL import Image
from run_command import assert_one_sentence, call, run

from gralora_diffusion import TrainConfig
from gralora_diffusion.checks import in_home
from gralora_diffusion.cli.main import COMMANDS, main
from gralora_diffusion.command_line import parser_of
from gralora_diffusion.data.concepts import concepts_of
from gralora_diffusion.options import PATHS, ConfigError, options_of
from gralora_diffusion.ui import processes
from gralora_diffusion.unknown_options import FOREIGN

SHORT = ["--max_train_steps", "1", "--skip_final_inference", "--rank", "8", "--train_batch_size", "1"]
NOBODY = "~no_such_user_here"


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


def test_every_path_of_a_config_may_begin_with_a_tilde(home):
    names = [name for name, about in options_of(TrainConfig).items() if about.kind in PATHS]
    assert len(names) >= 9
    for name in names:
        needs = dict(masked_loss=True) if name == "mask_dir" else {}
        config = TrainConfig(**{name: "~/x"}, **needs)
        assert getattr(config.resolved(), name) == str(home / "x"), name
    assert TrainConfig(instance_prompt="~/x").resolved().instance_prompt == "~/x"


def test_a_run_in_the_home_folder(home, tmp_path):
    done = call("train", "--output_dir=~/runs/a", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (home / "runs" / "a" / "adapter.safetensors").is_file()
    words = ["--adapter=~/runs/a", "--output=~/out.png", "--num_inference_steps", "1", "--num_images", "1"]
    done = call("sample", "--prompt", "a", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (home / "out" / "strength-1-000.png").is_file()
    done = call("inspect", "~/runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "~").exists()


def test_paths_in_a_file_of_concepts(home, tmp_path):
    Image.new("RGB", (64, 64)).save(home / "a.png")
    (tmp_path / "c.json").write_text(json.dumps([dict(folder="~", prompt="a")]))
    (concept,) = concepts_of(TrainConfig(concepts=str(tmp_path / "c.json")))
    assert concept.folder == home
    (tmp_path / "c.json").write_text(json.dumps([dict(folder=f"{NOBODY}/x", prompt="a")]))
    with pytest.raises(ConfigError, match=f"there is no home folder for {NOBODY}"):
        concepts_of(TrainConfig(concepts=str(tmp_path / "c.json")))


@pytest.mark.parametrize(
    "words",
    [
        ["train", f"--output_dir={NOBODY}/x"],
        ["sample", "--prompt", "a", f"--output={NOBODY}/x.png"],
        ["sample", "--prompt", "a", f"--adapter={NOBODY}/x"],
        ["convert", f"{NOBODY}/x", "y", "--to", "peft"],
        ["evaluate", f"--run={NOBODY}/x"],
        ["demo", f"--output_dir={NOBODY}/x"],
    ],
)
def test_a_user_who_is_not_there_is_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert f"there is no home folder for {NOBODY}: write the full path" in capsys.readouterr().err


def test_other_paths_stay(home):
    assert [in_home(path) for path in ("a/~", "./~", "owner/name", "")] == ["a/~", "./~", "owner/name", ""]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
def test_a_terminal_without_emoji(tmp_path, encoding):
    """With the fewest characters in processes of their own."""

    def gralora(*words):
        if encoding != "ascii":
            return call(*words, cwd=tmp_path, encoding=encoding)
        return run(*GRALORA, *words, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": encoding})

    folder = tmp_path / "my \U0001f436 \u0436"
    done = gralora("train", "--output_dir", folder, "--instance_prompt", "a \U0001f436", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "\\U0001f436" in done.stdout
    words = ["--adapter", folder, "--prompt", "\U0001f436", "--output", tmp_path / "\U0001f436.png"]
    done = gralora("sample", *words, "--num_inference_steps", "1")
    assert done.returncode == 0, done.stderr
    done = gralora("inspect", folder)
    assert done.returncode == 0, done.stderr
    done = gralora("train", "--instance_data_dir", "no \U0001f436")
    assert_one_sentence(done, "\\U0001f436 is not a folder")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_in_any_encoding(tmp_path, command):
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run(*GRALORA, command, "--help", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr


def test_processes_are_ended_where_there_are_no_groups(monkeypatch):
    """Windows has no os.killpg."""
    monkeypatch.delattr(processes.os, "killpg")
    for at_once in (False, True):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        processes.end_group(child.pid, at_once)
        assert child.wait(10) != 0
        processes.end_group(child.pid, at_once)  # it is gone already


@pytest.mark.parametrize("same", [True, False])
def test_a_run_among_its_own_images_is_refused(tmp_path, same):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "a.png")
    output = tmp_path / "images" if same else tmp_path / "images" / "run"
    words = ["--instance_data_dir", tmp_path / "images", "--instance_prompt", "a", "--output_dir", output]
    done = call("train", *words, *SHORT, cwd=tmp_path)
    assert_one_sentence(done, "the same as" if same else "inside", "--output_dir")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.png"]


@pytest.mark.parametrize("flag", FOREIGN)
def test_an_option_of_another_trainer_gets_one_sentence_with_options_that_exist(flag, capsys):
    assert flag not in parser_of("")._option_string_actions  # which would start a run here
    with pytest.raises(SystemExit) as stop:
        main(["train", flag, "1"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == f"gralora train: unknown option {flag}: {FOREIGN[flag]}\n"
    known = parser_of("")._option_string_actions.keys() | of_other_commands(FOREIGN[flag])
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", FOREIGN[flag].replace("--adam_ and --prodigy_", "")))
    assert named <= known | {flag}, named - known


def test_no_option_of_ours_is_listed_as_another_trainers():
    assert not FOREIGN.keys() & parser_of("")._option_string_actions.keys()


def of_other_commands(sentence: str) -> set[str]:
    """The options of the command that the sentence names."""
    sources = {"gralora convert": "convert.py", "gralora sample": "sample.py"}
    cli = Path(sys.modules["gralora_diffusion.cli.main"].__file__).parent
    found = set()
    for command, file in sources.items():
        if command in sentence:
            found.update(re.findall(r'"(--\w+)"', (cli / file).read_text()))
    return found
