"""gralora evaluate: folders and runs, and mistakes in one sentence."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from gralora_diffusion.cli.main import main
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.evaluation.image_sets import images_in

FILES = {"scores.json", "scores.csv", "images.csv", "index.html"}


def command(*arguments):
    main(["evaluate", *map(str, arguments)])


def test_what_is_compared_is_cut_to_the_size_of_what_is_scored(photos, tmp_path, capsys):
    """As with --run; and an earlier evaluation's differences do not stay beside the new scores."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in (1, 3):
            Image.open(photos / f"{i}.png").resize((40, 32)).save(tmp_path / name / f"{i}.png")
    common = ["--reference", photos, "--encoder", "embedded"]
    common += ["--cache", tmp_path / "cache", "--output", tmp_path / "out"]
    command("--generated", tmp_path / "a", tmp_path / "b", *common, "--drop", "sks")
    printed = capsys.readouterr()
    assert "were first cropped and resized to the size of the generated ones, 40 x 32" in printed.out
    assert "the prompts were not scored" in printed.err
    assert (tmp_path / "out" / "differences.csv").is_file()
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"][0]["mean"]
    encoder = load_encoder("embedded")
    generated = image_features(encoder, images_in(tmp_path / "a"))
    references = image_features(encoder, images_in(photos), (40, 32))
    assert found == pytest.approx((generated @ references.T).mean().item(), abs=1e-6)
    command("--generated", photos, *common)  # images of several sizes
    assert "were first cut" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_the_command_scores_a_run(finished_run, tmp_path, capsys):
    command("--run", finished_run, "--cache", tmp_path / "cache", "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "step-00020 - step-00000" in printed
    assert "EfficientNet-Lite2 (ImageNet classes)" in printed
    assert "the embedded base's own image-text encoder" in printed
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {(s["run"], s["n"]) for s in result["scores"]} == {("step-00000", 4), ("step-00020", 4)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"differences.csv"}


def test_a_run_of_the_page_is_scored_from_any_folder(finished_run, tmp_path, capsys, monkeypatch):
    """Its config names its images from the folder above runs."""
    run = tmp_path / "home" / "runs" / "robot"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | dict(instance_data_dir="images/mine")))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command("--run", "home/runs/robot", "--encoder", "imagenet")
    sentence = capsys.readouterr().err
    assert "the images of home/runs/robot, images/mine, are not here: run this where the training" in sentence
    shutil.copytree(EXAMPLE, tmp_path / "home" / "images" / "mine")
    command("--run", "home/runs/robot", "--encoder", "imagenet", "--cache", tmp_path / "cache")
    assert "step-00020 - step-00000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "--generated PHOTOS --reference PHOTOS",
            "weights of CLIP ViT-L-14-quickgelu, tag openai are not on",
        ),
        (
            "--generated PHOTOS --reference PHOTOS --encoder dinov2-base",
            "weights of DINOv2 facebook/dinov2-base are not",
        ),
        ("--generated PHOTOS --paired PHOTOS/1*.png --encoder embedded", "has 6 images|has 2"),
        ("--generated PHOTOS PHOTOS/1*.png --encoder embedded", "has 2 images|has 6|--unpaired"),
        ("--generated PHOTOS --prompts gone --encoder embedded", "prompts cannot be read"),
        ("--generated PHOTOS --encoder embeded", "did you mean 'embedded'"),
        ("--generated nowhere", "nowhere holds no images"),
        ("--run nowhere", "not a run folder"),
        ("--run a --subjects b", "give one of"),
        (
            "--run a --paired PHOTOS --prompts p",
            "--paired and --prompts can only be given with --generated",
        ),
        ("--generated PHOTOS PHOTOS/ --reference PHOTOS", "--generated names a folder twice"),
        (
            "--generated PHOTOS --encoder imagenet",
            "nothing to score: give --reference, --paired or --base",
        ),
        ("--generated PHOTOS --device banana", "--device banana cannot be used here"),
        ("--generated PHOTOS --device hpu", "--device hpu cannot be used here"),
        ("--generated PHOTOS --device cuda:99", "--device cuda:99 cannot be used here"),
        ("--subjects nowhere", "--subjects nowhere must be a folder that holds"),
        ("--subjects PHOTOS", "must be a folder that holds a folder of images for each of at least two"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    arguments, words, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as error:
        command(
            *(word.replace("PHOTOS", str(photos)) for word in arguments.split()),
            "--cache",
            tmp_path / "cache",
        )
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(part in line for part in words.split("|")), line
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


def test_subjects_are_a_table_and_with_output_a_file(tmp_path, capsys):
    for number, name in enumerate(("cat", "toy")):
        (tmp_path / "all" / name).mkdir(parents=True)
        for i in range(2):
            image = Image.linear_gradient("L").resize((64, 64 + 8 * i)).rotate(90 * number)
            image.convert("RGB").save(tmp_path / "all" / name / f"{i}.png")
    command = ["evaluate", "--subjects", tmp_path / "all", "--encoder", "embedded", "--cache", tmp_path / "f"]
    main([*map(str, command), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    head, row = printed.split("\n\n")[1].splitlines()
    assert printed.startswith("4 images of 2 subjects\n")
    assert head.startswith("encoder  ")
    assert head.endswith("between")
    assert "{" not in printed
    (found,) = json.loads((tmp_path / "out" / "subjects.json").read_text())
    assert row.split()[-1] == f"{found['between']:.4f}"


def test_import_does_not_load_the_evaluators_models():
    code = (
        "import sys, gralora_diffusion.evaluation.encoders; print({'open_clip', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_look_alikes_are_ranked_and_copies_of_the_subject_left_out(photos, tmp_path, capsys):
    images = images_in(photos)
    for folder, chosen in dict(generated=images[:2], subject=images[:3], others=images).items():
        (tmp_path / folder / "one").mkdir(parents=True)
        for image in chosen:
            place = tmp_path / folder / "one" if folder == "others" else tmp_path / folder
            shutil.copy(image, place)
    common = ["--generated", tmp_path / "generated", "--reference", tmp_path / "subject"]
    common += ["--encoder", "imagenet", "--cache", tmp_path / "cache", "--output", tmp_path / "out"]
    command(*common, "--lookalikes", tmp_path / "others")
    (found,) = [
        score
        for score in json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
        if score["score"] == "identity"
    ]
    known = {image.read_bytes() for image in images[:3]}
    others = sum(image.read_bytes() not in known for image in images)
    assert (found["n"], found["subject"], found["lookalikes"]) == (2, 3, others)
    assert 0 < found["mean"] <= 1
    assert f"{others} of look-alikes" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "others" / "one")
    (tmp_path / "others" / "one").mkdir()
    shutil.copy(images[0], tmp_path / "others" / "one")
    with pytest.raises(SystemExit):
        command(*common, "--lookalikes", tmp_path / "others")
    assert "only images of the subject itself" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("--subjects", photos, "--lookalikes", tmp_path)
    assert "--lookalikes compares subjects" in capsys.readouterr().err
