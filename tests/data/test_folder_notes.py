"""What folders hold that is not trained on as its writer may expect: a note says so, or it is refused."""

import json

import pytest
from PIL import Image

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.class_folders import (
    check_class_folders,
    check_class_images,
    class_image_facts,
    find_class_images,
)
from gralora_diffusion.data.dataset import instance_images
from gralora_diffusion.data.held_out import hold_out
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.options import ConfigError


def draw(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = sum(map(ord, str(folder / name)))
        Image.effect_noise((64, 64), 20 + seed % 97).save(folder / name)


def captions(folder, prompt="the prompt", **options) -> dict[str, str]:
    return {image.path.name: image.caption for image in find_images(folder, prompt, **options)}


def images_of(folder, **options):
    return instance_images(TrainConfig(instance_data_dir=str(folder), **options))


@pytest.mark.parametrize(
    "name",
    [
        "a mask.png",
        "a (mask).png",
        "a_mask_1.png",
        "a_mask_00001_.png",
        "a_mask (1).png",
        "a[mask].png",
        "a_seg.png",
    ],
)
def test_a_mask_by_any_name_is_its_image_s(tmp_path, name):
    draw(tmp_path, "a.png", "b.png")
    Image.new("L", (64, 64), 255).save(tmp_path / name)
    found = images_of(tmp_path, instance_prompt="x", masked_loss=True)
    assert [image.path.name for image in found if image.mask] == ["a.png"]
    assert [image.path.name for image in found] == ["a.png", "b.png"]


def test_two_masks_of_one_image_are_refused(tmp_path):
    draw(tmp_path, "a.png", "a_mask_1.png", "a_mask_2.png")
    with pytest.raises(ConfigError, match=r"a_mask_1\.png and a_mask_2.png are masks of one image"):
        images_of(tmp_path, instance_prompt="x", masked_loss=True)


def test_a_mask_of_no_image_is_named(tmp_path, capsys):
    draw(tmp_path, "1.png", "1_mask.png", "2_mask.png")
    assert list(captions(tmp_path)) == ["1.png", "2_mask.png"]
    assert (
        "1 image whose names are those of masks, trained on as any other: 2_mask.png"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("folder", "names"), [("10_sks_mask", "a.png b.png"), ("10_masks", "a_mask.png")])
def test_a_folder_of_masks_is_no_concept(tmp_path, folder, names):
    draw(tmp_path / "10_sks", "a.png", "b.png")
    draw(tmp_path / folder, *names.split())
    with pytest.raises(ConfigError, match=f"{folder} holds masks by its name, .*beside their images"):
        images_of(tmp_path)


def test_a_concept_that_is_called_mask_is_one(tmp_path):
    draw(tmp_path / "10_sks", "a.png", "b.png")
    draw(tmp_path / "10_mask", "c.png", "d.png")
    assert len(images_of(tmp_path)) == 4


def test_a_mask_that_metadata_lists_is_trained_on_or_a_mask(tmp_path, capsys):
    draw(tmp_path, "a.png", "a_mask.png")
    lines = [json.dumps({"file_name": name, "text": name}) for name in ("a.png", "a_mask.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert len(images_of(tmp_path)) == 2
    assert "trained on as any other: a_mask.png" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"a_mask\.png is named as the mask of a\.png, and listed"):
        images_of(tmp_path, masked_loss=True)


@pytest.mark.parametrize("name", ["metadata.csv", "concepts.json"])
def test_a_list_in_another_encoding_is_noted(tmp_path, capsys, name):
    draw(tmp_path / "img", "a.png")
    if name == "metadata.csv":
        (tmp_path / "img" / name).write_bytes("file_name,text\na.png,a café\n".encode("cp1252"))
        assert captions(tmp_path / "img") == {"a.png": "a café"}
    else:
        (tmp_path / name).write_bytes('[{"folder": "img", "prompt": "a café"}]'.encode("cp1252"))
        (image,) = instance_images(TrainConfig(concepts=str(tmp_path / name)))
        assert image.caption == "a café"
    assert f"{name} is not UTF-8 and is read as cp1252" in capsys.readouterr().err


def test_images_that_metadata_names_in_a_subfolder_have_their_own_captions(tmp_path, capsys):
    draw(tmp_path / "images", "a.png", "b.png", "c.png")
    (tmp_path / "images" / "a.txt").write_text("of its own")
    lines = [{"file_name": "images/a.png", "text": "one"}, {"file_name": "images\\b.png", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert captions(tmp_path) == {"a.png": "of its own", "b.png": "two"}
    said = capsys.readouterr().err
    assert "metadata.jsonl or metadata.csv (a.txt is used)" in said
    assert "images holds 1 image that metadata.jsonl or metadata.csv does not name, left out: c.png" in said
    assert "subfolder" not in said


@pytest.mark.parametrize("entry", [{"text": "", "caption": "a dog"}, {"text": None, "caption": "a dog"}])
def test_an_empty_text_leaves_the_caption_to_the_next_key(tmp_path, entry):
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png"} | entry))
    assert captions(tmp_path) == {"a.png": "a dog"}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.json").write_text(json.dumps({"caption": entry["text"], "text": "a cat"}))
    assert captions(tmp_path) == {"a.png": "a cat"}


def test_a_blank_row_and_a_foreign_json_are_no_captions(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a dog\n,\n")
    (tmp_path / "a.json").write_text('{"prompt": "of a generator", "seed": 1}')
    assert captions(tmp_path) == {"a.png": "a dog"}
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ConfigError, match=r'a\.json is not a JSON object with "caption"'):
        captions(tmp_path)


@pytest.mark.parametrize(
    ("content", "kind"), [(r"{\rtf1\ansi a dog}", "RTF"), ("<!DOCTYPE html><p>a dog", "HTML")]
)
def test_a_document_is_no_caption(tmp_path, content, kind):
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ConfigError, match=f"a.txt is {kind}, not plain text: save it as plain text"):
        captions(tmp_path)


def test_the_prompt_that_folder_names_replace_is_named(tmp_path, capsys):
    draw(tmp_path / "10_sks dog", "a.png")
    draw(tmp_path / "5_", "b.png")
    found = images_of(tmp_path, instance_prompt="a photo of sks dog")
    assert {image.caption for image in found} == {"sks dog", "a photo of sks dog"}
    assert (
        "the prompt 'a photo of sks dog' is not used where the folder's name is the prompt: 10_sks dog\n"
        in (capsys.readouterr().err)
    )


def test_the_same_image_in_two_concepts_and_a_folder_of_masks_of_none_are_named(tmp_path, capsys):
    draw(tmp_path / "img" / "10_dog", "a.png")
    (tmp_path / "img" / "10_cat").mkdir()
    (tmp_path / "img" / "10_cat" / "b.png").write_bytes((tmp_path / "img" / "10_dog" / "a.png").read_bytes())
    for name in ("10_dog", "10_bird"):
        (tmp_path / "masks" / name).mkdir(parents=True)
        Image.new("L", (64, 64), 255).save(tmp_path / "masks" / name / "a.png")
    images_of(tmp_path / "img", masked_loss=True, mask_dir=str(tmp_path / "masks"))
    said = capsys.readouterr().err
    assert "10_cat/b.png and 10_dog/a.png hold the same bytes, in different concepts" in said
    assert "masks has 1 subfolder of no concept: 10_bird" in said


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"A.PNG": None, "a.txt": "x"},
            r"no caption .* \(a\.txt: a caption .*no image named a, but A:",
        ),
        ({"a.png": None, "a_caption.txt": "x"}, r"\(a_caption\.txt: a caption without an image"),
        ({"A.png": None, "a.txt": "x", "b.png": None, "b.txt": "y"}, "no image named a, but A: rename one"),
        ({"a.png": None, "labels.csv": "file_name,text\n"}, r"\(labels\.csv: a list of captions by its name"),
        ({"a.png": None, "data.jsonl": "{}"}, r"\(data\.jsonl: a list of captions by its name"),
    ],
)
def test_a_caption_with_another_name_is_named(tmp_path, files, words):
    for name, text in files.items():
        if text is None:
            draw(tmp_path, name)
        else:
            (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        captions(tmp_path, None)


def test_an_image_that_is_called_as_lists_are_has_its_caption(tmp_path):
    draw(tmp_path, "train.png", "labels.png", "data.png")
    (tmp_path / "train.txt").write_text("a train")
    (tmp_path / "labels.txt").write_text("labels")
    (tmp_path / "data.json").write_text('{"caption": "a diagram"}')
    assert captions(tmp_path, None) == {
        "data.png": "a diagram",
        "labels.png": "labels",
        "train.png": "a train",
    }


def test_images_one_level_deeper_are_named(tmp_path):
    draw(tmp_path / "10_dog" / "sorted", "a.png")
    with pytest.raises(ConfigError, match=r"10_dog holds no images .*; move here those of its 1 subfolder"):
        images_of(tmp_path)


def prior(tmp_path, **options):
    return TrainConfig(
        instance_data_dir=str(tmp_path / "img"),
        instance_prompt="sks dog",
        with_prior_preservation=True,
        class_data_dir=str(tmp_path / "reg"),
        class_prompt="a dog",
        **options,
    )


def test_class_images_are_read_and_checked_as_training_images_are(tmp_path):
    draw(tmp_path / "img", "a.png")
    draw(tmp_path / "reg" / "images", "r.png")
    line = {"file_name": "images/r.png", "words": "a dog\nthat sits"}
    (tmp_path / "reg" / "metadata.jsonl").write_text(json.dumps(line))
    (tmp_path / "img" / "metadata.jsonl").write_text('{"file_name": "a.png", "words": "sks dog"}')
    config = prior(tmp_path, caption_column="words")
    check_class_folders(config)
    check_class_images(config, instance_images(config), None)
    assert class_image_facts(config)["class images"].startswith("1 of your own in reg")
    (tmp_path / "reg" / "images" / "r.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"reg holds 1 file that cannot be used; .*r\.png"):
        check_class_images(config, instance_images(config), None)


def test_the_metadata_of_class_images_may_have_other_columns(tmp_path):
    draw(tmp_path / "img", "a.png")
    draw(tmp_path / "reg", "r.png")
    (tmp_path / "img" / "metadata.jsonl").write_text('{"file_name": "a.png", "words": "sks dog"}')
    (tmp_path / "reg" / "metadata.jsonl").write_text('{"file_name": "r.png", "text": "a dog"}')
    config = prior(tmp_path, caption_column="words")
    (found,) = find_class_images(tmp_path / "reg", "x", config, None)
    assert found.caption == "a dog"


def test_masks_of_held_out_images_are_no_concept(tmp_path):
    draw(tmp_path / "img", "a.png")
    draw(tmp_path / "held" / "10_dog", "h.png")
    draw(tmp_path / "held" / "10_dog_mask", "h.png")
    folder = dict(instance_data_dir=str(tmp_path / "img"), validation_dir=str(tmp_path / "held"))
    config = TrainConfig(instance_prompt="x", **folder)
    with pytest.raises(ConfigError, match="10_dog_mask holds masks by its name") as caught:
        hold_out(config, instance_images(config))
    assert caught.value.option == "validation_dir"


def test_a_training_image_is_no_class_image(tmp_path):
    draw(tmp_path / "img", "a.png")
    (tmp_path / "reg").mkdir()
    (tmp_path / "reg" / "copy.png").write_bytes((tmp_path / "img" / "a.png").read_bytes())
    config = prior(tmp_path)
    with pytest.raises(ConfigError, match=r"copy\.png is the same image as a\.png of the training"):
        check_class_images(config, instance_images(config), None)


def test_wildcards_with_numbers_are_refused_in_class_and_held_out_captions_too(tmp_path):
    draw(tmp_path / "img", "a.png")
    draw(tmp_path / "reg", "r.png")
    draw(tmp_path / "held", "h.png")
    for path in ("reg/r.txt", "held/h.txt"):
        (tmp_path / path).write_text("a {2$$red|blue} dog")
    config = prior(tmp_path, caption_wildcards=True)
    with pytest.raises(ConfigError, match=r"r\.png has '\{2"):
        check_class_images(config, instance_images(config), None)
    folder = dict(instance_data_dir=str(tmp_path / "img"), validation_dir=str(tmp_path / "held"))
    config = TrainConfig(instance_prompt="x", caption_wildcards=True, **folder)
    with pytest.raises(ConfigError, match=r"h\.png has '\{2"):
        hold_out(config, instance_images(config))


def test_subfolders_of_held_out_images_are_refused_with_their_option(tmp_path):
    draw(tmp_path / "img", "a.png")
    draw(tmp_path / "held" / "dogs", "h.png")
    folder = dict(instance_data_dir=str(tmp_path / "img"), validation_dir=str(tmp_path / "held"))
    config = TrainConfig(instance_prompt="x", **folder)
    with pytest.raises(ConfigError, match="held holds no images itself, only 1 subfolder") as caught:
        hold_out(config, instance_images(config))
    assert caught.value.option == "validation_dir"


def test_the_masks_of_held_out_images_are_counted(tmp_path, capsys):
    draw(tmp_path / "img", "a.png", "a_mask.png")
    draw(tmp_path / "held", "h.png", "i.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "held" / "i_mask.png")
    folder = dict(instance_data_dir=str(tmp_path / "img"), validation_dir=str(tmp_path / "held"))
    config = TrainConfig(instance_prompt="x", masked_loss=True, **folder)
    hold_out(config, instance_images(config))
    assert "masks for 1 of 2 images of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["a {trigger} dog", "%name% dog", "a dog ||| red", "a dog;;; red", "[class_token]"]
)
def test_what_other_programs_replace_is_named(tmp_path, capsys, text):
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text(text)
    images_of(tmp_path)
    assert "is trained on as text in 1 caption: a.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"folder": "img", "class_folder": "reg"}, "entry 1 of .*: it has class_folder without class_prompt"),
        ({"folder": "img", "is_reg": True}, "it has is_reg, and class images have no entry of their own"),
        (
            {"id": "x", "caption_strategy": "textfile"},
            "it is a dataset of SimpleTuner, whose keys are others",
        ),
        ({"folder": "img"}, r"entry 1 of .*img has no caption for any of its images: give prompt, or"),
    ],
)
def test_an_entry_is_named_with_its_own_keys(tmp_path, entry, words):
    draw(tmp_path / "img", "a.png")
    draw(tmp_path / "reg", "r.png")
    (tmp_path / "concepts.json").write_text(json.dumps([entry]))
    config = TrainConfig(
        concepts=str(tmp_path / "concepts.json"), with_prior_preservation="class_folder" in entry
    )
    with pytest.raises(ConfigError, match=words) as caught:
        instance_images(config)
    assert "--instance" not in str(caught.value)
