"""What is imported, so that --help and mistakes are quick."""

import sys

import pytest
from run_command import run


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--help", "--gralora_rank"),
        ("--gralora_ranks", "--gralora_rank"),
        ("--instance_data_dir=nowhere", "nowhere is not a folder"),
        ("--pretrained_model_name_or_path=/nowhere/model", "/nowhere/model"),
    ],
)
def test_help_and_mistakes_do_not_load_torch(option, words, tmp_path):
    (tmp_path / "probe.py").write_text(
        "import sys\n"
        "from gralora_diffusion.cli.main import main\n"
        "try:\n    main(['train', sys.argv[1]])\n"
        "except SystemExit:\n    print('torch' in sys.modules)\n"
    )
    done = run(sys.executable, tmp_path / "probe.py", option, cwd=tmp_path)
    assert done.stdout.strip().endswith("False"), done.stderr
    assert words in done.stdout + done.stderr


def test_the_package_loads_neither_gradio_nor_open_clip(tmp_path):
    training = ["gralora_diffusion.training.train", "gralora_diffusion.training.dry_run"]
    loaded = modules_after(training, tmp_path)
    assert {"torch", *training} <= loaded
    assert not {"gradio", "open_clip"} & loaded
    bare = modules_after(["gralora_diffusion"], tmp_path)
    assert "gralora_diffusion" in bare
    assert not {"gradio", "open_clip", "torch", "diffusers"} & bare


def modules_after(imported: list[str], folder) -> set[str]:
    """The modules that a process has loaded after these imports."""
    probe = f"import sys, {', '.join(imported)}; print(*sys.modules)"
    return set(run(sys.executable, "-c", probe, cwd=folder).stdout.split())
