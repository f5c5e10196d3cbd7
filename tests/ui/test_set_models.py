"""Captions and masks of a set by models that are really there."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_tagger import CAPTION, write_tagger

from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, set_models
from gralora_diffusion.ui.workspace import BUNDLED


@pytest.fixture
def tagger(workspace):
    return write_tagger(workspace.models / "tagger")


@pytest.fixture
def images(workspace):
    return workspace.images / image_sets.copy(workspace, BUNDLED, "mine")


def test_a_tagger_captions_those_without_a_caption(workspace, tagger, images):
    (images / "00.txt").write_text("my own words\n")
    for number in range(1, 6):
        (images / f"0{number}.txt").unlink(missing_ok=True)
    found = list(set_models.caption_set(workspace, "mine", "tagger", " a photo\nof sks ", overwrite=False))
    assert found[0] == (0, 6, "Loading tagger")
    assert found[1] == (1, 6, "00.png: kept its caption")
    assert found[-1] == (6, 6, f"05.png: a photo of sks, {CAPTION}")
    assert (images / "00.txt").read_text() == "my own words\n"
    assert (images / "03.txt").read_text() == f"a photo of sks, {CAPTION}\n"
    list(set_models.caption_set(workspace, "mine", "tagger", "", overwrite=True))
    assert (images / "00.txt").read_text() == f"{CAPTION}\n"


def test_captions_stop_where_the_reader_stops(workspace, tagger, images):
    """As Gradio ends the handler of an event that was cancelled: what is written is complete."""
    for path in images.glob("*.txt"):
        path.unlink()
    progress = set_models.caption_set(workspace, "mine", "tagger", "", overwrite=False)
    for done, _, _ in progress:
        if done == 2:
            break
    progress.close()
    assert sorted(path.name for path in images.glob("*.txt")) == ["00.txt", "01.txt"]


def test_a_caption_that_is_typed_meanwhile_is_kept(workspace, tagger, images, monkeypatch):
    """Before the image's turn, and while the model works on it."""
    for path in images.glob("*.txt"):
        path.unlink()

    class Typist:
        """The tagger, and somebody who types a caption for 01.png while it works on that image."""

        def __init__(self, captioner):
            self.captioner = captioner
            self.seen = 0

        def of(self, image):
            self.seen += 1
            if self.seen == 2:
                image_sets.save_captions(workspace, "mine", {"01.png": "typed at its turn"})
            return self.captioner.of(image)

    load = set_models.loaded_captioner
    monkeypatch.setattr(set_models, "loaded_captioner", lambda *names: Typist(load(*names)))
    progress = set_models.caption_set(workspace, "mine", "tagger", "", overwrite=False)
    for done, _, text in progress:
        if done == 1:
            image_sets.save_captions(workspace, "mine", {"04.png": "typed before its turn"})
        assert ("kept its caption" in text) == (done in (2, 5))
    assert image_sets.caption_of(images / "01.png") == "typed at its turn"
    assert image_sets.caption_of(images / "04.png") == "typed before its turn"
    assert image_sets.caption_of(images / "05.png") == CAPTION


@pytest.mark.parametrize("file", ["00.caption", "00.json"])
def test_captions_by_a_model_go_where_training_reads_them(workspace, tagger, images, file):
    (images / "00.txt").unlink(missing_ok=True)
    (images / file).write_text('{"caption": "my own words"}' if file.endswith("json") else "my own words")
    list(set_models.caption_set(workspace, "mine", "tagger", "", overwrite=False))
    assert image_sets.caption_of(images / "00.png") == "my own words"
    list(set_models.caption_set(workspace, "mine", "tagger", "", overwrite=True))
    assert image_sets.caption_of(images / "00.png") == CAPTION
    assert not (images / "00.txt").exists()


def test_img_focus_makes_masks_and_keeps_those_that_are_there(workspace, images):
    Image.new("L", (64, 64), 255).save(images / "00_mask.png")
    before = (images / "00_mask.png").read_bytes()
    found = list(set_models.mask_set(workspace, "mine", "img-focus", 0.5, overwrite=False))
    assert [done for done, _, _ in found] == list(range(7))
    assert found[1][2] == "00.png: kept its mask"
    assert (images / "00_mask.png").read_bytes() == before
    masks = image_sets.masks_in(images)
    made = [text for _, _, text in found if text.endswith("mask made")]
    assert len(masks) == len(made) + 1 >= 3
    with Image.open(images / "01-masklabel.png") as mask:
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    list(set_models.mask_set(workspace, "mine", "img-focus", 0.5, overwrite=True))
    assert (images / "00_mask.png").read_bytes() != before
    assert not (images / "00-masklabel.png").exists()


def test_only_models_that_are_there_are_offered(workspace, tagger):
    (workspace.models / "unet").mkdir()
    (workspace.models / "unet" / "config.json").write_text(json.dumps(dict(model_type="gpt2")))
    (workspace.models / "blip").mkdir()
    (workspace.models / "blip" / "config.json").write_text(json.dumps(dict(model_type="blip")))
    for name, text in (("list", "[1]"), ("deep", "[" * 100_000), ("odd", '{"model_type": ["blip"]}')):
        (workspace.models / name).mkdir()
        (workspace.models / name / "config.json").write_text(text)
    (workspace.models / "file.safetensors").touch()
    assert set_models.captioners(workspace) == ["blip", "tagger"]
    assert "img-focus" in set_models.saliency_models()


def test_an_unusable_model_is_one_sentence_without_a_path(workspace, images):
    (workspace.models / "blip").mkdir()
    (workspace.models / "blip" / "config.json").write_text(json.dumps(dict(model_type="blip")))
    with pytest.raises(ConfigError, match="the model cannot be used: blip") as refusal:
        list(set_models.caption_set(workspace, "mine", "blip", "", overwrite=False))
    assert str(workspace.root) not in str(refusal.value)
    assert "--" not in str(refusal.value)


@pytest.mark.parametrize("model", ["", None, "../tagger", "/etc", "tagger/..", "Salesforce/blip", ["tagger"]])
def test_a_model_is_named_from_the_list(workspace, tagger, images, model):
    with pytest.raises(ConfigError, match="no captioning model named"):
        next(set_models.caption_set(workspace, "mine", model, "", overwrite=False))
    with pytest.raises(ConfigError, match="no mask model named"):
        next(set_models.mask_set(workspace, "mine", model, 0.5, overwrite=False))


def test_what_a_browser_sends_is_checked(workspace, tagger, images):
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    for threshold in (0, 1, -1, 2, None, "0.5", float("nan")):
        with pytest.raises(ConfigError, match="the threshold is"):
            next(set_models.mask_set(workspace, "mine", "img-focus", threshold, overwrite=True))
    with pytest.raises(ConfigError, match="the prefix has 2001 characters"):
        next(set_models.caption_set(workspace, "mine", "tagger", "x" * 2001, overwrite=True))
    for progress in (
        set_models.caption_set(workspace, BUNDLED, "tagger", "", overwrite=True),
        set_models.mask_set(workspace, BUNDLED, "img-focus", 0.5, overwrite=True),
    ):
        with pytest.raises(ConfigError, match="the bundled images cannot be changed"):
            next(progress)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before
    assert not list(EXAMPLE.glob("*mask*"))
