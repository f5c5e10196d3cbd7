"""Mistakes on the command line: one sentence, exit code 2, and nothing is written."""

import os

import pytest
from helpers import ACCELERATE, GRALORA, SCRIPTS, TRAIN
from PIL import Image
from run_command import assert_one_sentence, call, run

from gralora_diffusion import AdapterConfig
from gralora_diffusion.cli.main import main
from gralora_diffusion.options import ConfigError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gralora_ranck", "64"], ["unknown option --gralora_ranck", "did you mean '--gralora_rank'"]),
        (["--rank", "many"], ["--rank is 'many'; it must be a whole number"]),
        (["--learning_rat", "1"], ["unknown option --learning_rat"]),
        (["--adapter", "dora"], ["dora", "gralora"]),
        (["--instance_data_dir", "nowhere", "--instance_prompt", "x"], ["nowhere is not a folder"]),
        (["--instance_data_dir", "empty", "--instance_prompt", "x"], ["empty holds no images"]),
        (["--instance_data_dir", "broken", "--instance_prompt", "x"], ["broken.png", "not an image"]),
        (["--instance_data_dir", "texts", "--instance_prompt", "x"], ["notes.txt", "no image named notes"]),
        (["--instance_data_dir", "uncaptioned"], ["uncaptioned has no caption", "give --instance_prompt"]),
        (["--learning_rate", "-1"], ["--learning_rate is -1.0", "above 0"]),
        (["--learning_rate", "nan"], ["--learning_rate is nan", "finite"]),
        (["--adam_beta1", "2"], ["--adam_beta1 is 2.0", "at most"]),
        (["--seed", str(2**64)], ["--seed"]),
        (["--num_validation_images", "-1"], ["--num_validation_images is -1", "at least 1"]),
        (["--lr_warmup_steps", "5"], ["constant_with_warmup"]),
        (["--gralora_rank", "65536"], ["down_blocks", "rank is 65536", "from 1 to 128"]),
        (["--gralora_rank", "63", "--gralora_k", "4"], ["rank 63", "k 4", "60 and 64", "down_blocks"]),
        (["--targets", "to_nowhere"], ["'to_nowhere'", "matches no linear layer"]),
        (["--adapter", "lora", "--gralora_k", "4"], ["--gralora_k is an option of GraLoRA: drop it"]),
        (["--resolution", "100"], ["divisible by 8"]),
        (["--pretrained_model_name_or_path", "nowhere/model"], ["nowhere/model"]),
        (["--pretrained_model_name_or_path", "model.ckpt"], ["pickle"]),
        (["--rank_pattern", "[1]"], ["--rank_pattern is '[1]'; it must be a JSON object"]),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for folder in ("empty", "broken", "texts", "uncaptioned"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "broken.png").write_bytes(b"nonsense")
    (tmp_path / "texts" / "notes.txt").write_text("milk")
    for folder in ("texts", "uncaptioned"):
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "a.png")
    before = sorted(tmp_path.rglob("*"))
    done = call("train", *arguments, "--output_dir", tmp_path / "out" / "run", cwd=tmp_path)
    assert_one_sentence(done, *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("train --learning_rate fast", "--learning_rate is 'fast'; it must be a number"),
        ("train --rank 8.5", "--rank is '8.5'; it must be a whole number"),
        ("train --gralora_rank=8.5", "--gralora_rank is '8.5'; it must be a whole number"),
        ("train --seed", "--seed needs a value"),
        ("train --verbose=yes", "--verbose takes no value, but 'yes' is given"),
        ("train --lr_scheduler flat", "--lr_scheduler is 'flat'; it must be one of linear, cosine, "),
        ("train --dry_run maybe", "--dry_run is 'maybe'; it must be True or False"),
        ("train --preset subject-13gb", "--preset is 'subject-13gb', which is not a preset; did you mean"),
        ("train --preset x", "--preset is 'x', which is not a preset; it must be one of subject, style, "),
        ("train photos", "'photos' is not expected here; options start with --"),
        (
            "train --network_dim 32 --train_batch 2 --zzz --network_dim=8",
            "unknown options --network_dim (--rank is the rank), --train_batch (did you mean "
            "'--train_batch_size'?), --zzz; --help_all lists all options",
        ),
        ("sample", "--prompt is required"),
        ("convert", "IN, OUT and --to are required"),
        ("convert a b --to zip", "--to is 'zip'; it must be one of "),
        ("convert a b --to kohya", "--to is 'kohya'; --to comfyui writes the file for that tool too"),
        (
            "sample --prompt x --steps 4 --sampler euler --neg y",
            "unknown options --steps (--num_inference_steps is its name here), --sampler (--scheduler is its "
            "name here), --neg (--negative_prompt is its name here); --help lists all options",
        ),
        ("compare --output x --max_train_steps 9", "unknown option --max_train_steps: --steps is its name"),
        ("compare --output x --ranks", "--ranks needs at least one value"),
        ("evaluate --batch_size x", "--batch_size is 'x'; it must be a whole number"),
        ("ui --port x", "--port is 'x'; it must be a whole number"),
        ("entanglement --adapter lora --hybrid_rank 2", "--hybrid_rank is an option of GraLoRA: drop it"),
    ],
)
def test_a_mistake_in_the_syntax_has_the_words_of_the_other_mistakes(command, sentence, capsys):
    with pytest.raises(SystemExit) as exit:
        main(command.split())
    assert exit.value.code == 2
    name = command.split()[0]
    assert capsys.readouterr().err.startswith(f"gralora {name}: {sentence}")


def test_a_hub_id_without_a_network_is_one_line(tmp_path):
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    for more in ([], ["--dry_run"]):
        base = ["--pretrained_model_name_or_path", "nowhere/model", *more]
        done = run(*TRAIN, *base, "--output_dir", "run", cwd=tmp_path, env=offline)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert "nowhere/model: HF_HUB_OFFLINE is set, and the base is neither a local folder" in line


@pytest.mark.parametrize("command", ["train", "train --dry_run", "sample"])
def test_a_hub_that_does_not_answer_is_named_at_once(tmp_path, command):
    """It took 24 s of retries, and the sentence spoke of a missing config.json."""
    away = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    name, *more = command.split()
    options = ["--output_dir", "run"] if name == "train" else ["--prompt", "a dog", "--output", "a.png"]
    base = ["--pretrained_model_name_or_path", "nowhere/model"]
    done = run(*GRALORA, name, *more, *base, *options, cwd=tmp_path, env=away)
    assert done.returncode == 2
    first, last = done.stderr.strip().splitlines()
    assert first == "note: looking for nowhere/model on the Hugging Face hub"
    assert "nowhere/model: the Hugging Face hub could not be reached, and the base is neither" in last


def test_several_flags_of_gralora_are_all_named():
    with pytest.raises(
        ConfigError, match=r"^--hybrid_rank and --gralora_k are options of GraLoRA: drop them"
    ):
        AdapterConfig(method="lora", k=4, hybrid_rank=2)


def test_through_accelerate_a_mistake_is_printed_and_writes_nothing(tmp_path):
    """Accelerate turns any exit code into 1 and adds its own lines; the sentence is above them."""
    command = [*ACCELERATE, "--quiet", SCRIPTS / "train_sdxl.py", "--gralora_ranck", 64]
    done = run(*command, "--output_dir", tmp_path / "r", cwd=tmp_path)
    assert done.returncode == 1
    assert "gralora train: unknown option --gralora_ranck; did you mean '--gralora_rank'?" in done.stderr
    assert not list(tmp_path.iterdir())


def test_verbose_needs_a_dry_run(tmp_path):
    done = run(*TRAIN, "--verbose", cwd=tmp_path)
    assert_one_sentence(done, "--verbose lists the layers of a --dry_run")
    assert not list(tmp_path.iterdir())


def test_num_processes_reports_mistakes(tmp_path):
    assert_one_sentence(run(*TRAIN, "--num_processes", 0, cwd=tmp_path), "--num_processes is 0")
    done = run(*TRAIN, "--num_processes", 2, "--rank", 7, "--gralora_k", 2, cwd=tmp_path)
    assert_one_sentence(done, "rank 7 is not divisible by k 2")
    assert not list(tmp_path.iterdir())
