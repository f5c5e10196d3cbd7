"""Several concepts in one run: kohya's folders and files of --concepts, masks, sample prompts, resuming."""

import collections
import dataclasses
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.data.batches import examples_at, plan_batches
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.class_folders import check_class_folders
from gralora_diffusion.data.class_images import class_images
from gralora_diffusion.data.dataset import epoch_length, instance_images
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.masks import masks_of
from gralora_diffusion.data.sample_prompts import SCENES, sample_prompts, shared, shared_words
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.train import train

COLORS = ["red", "green", "blue", "yellow", "black", "white"]
NO_BASE = dict(path="nowhere", dtype=torch.float32)  # from which nothing can be generated


def draw(folder, count, first=0, size=(64, 64)):
    """`count` images that can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        image = Image.effect_mandelbrot(size, (-2 + number / 9, -1.5, 1, 1.5), 60).convert("RGB")
        image.paste(COLORS[number % 6], (8, 8, 24, 24))
        image.save(folder / f"{number}.png")
    return folder


@pytest.fixture
def kohya(tmp_path):
    """img/ with two concepts, reg/ with class images."""
    draw(tmp_path / "img" / "3_sks dog", 2)
    draw(tmp_path / "img" / "1_tok cat", 3, first=2)
    (tmp_path / "img" / "1_tok cat" / "2.txt").write_text("a tok cat on a mat")
    draw(tmp_path / "reg" / "2_dog", 1, first=5)
    draw(tmp_path / "reg" / "1_cat", 1, first=6)
    return tmp_path


def config_of(folder, **options):
    return TrainConfig(instance_data_dir=str(folder), train_batch_size=1, resolution=64, **options)


def test_kohyas_folders_have_repeats_and_captions(kohya, capsys):
    (kohya / "img" / "drafts").mkdir()
    (kohya / "img" / "0_off").mkdir()
    (kohya / "img" / "4_loop").symlink_to(kohya / "img")
    images = instance_images(config_of(kohya / "img"))
    assert [(p.path.name, p.caption, p.repeats, p.concept) for p in images] == [
        ("2.png", "a tok cat on a mat", 1, 0),
        ("3.png", "tok cat", 1, 0),
        ("4.png", "tok cat", 1, 0),
        ("0.png", "sks dog", 3, 1),
        ("1.png", "sks dog", 3, 1),
    ]
    assert epoch_length(config_of(kohya / "img"), images) == 9
    assert epoch_length(config_of(kohya / "img", repeats=2), images) == 18
    noted = capsys.readouterr().err
    assert "2 subfolders left out, whose names do not begin with repeats such as 10_: 0_off, dra" in noted
    assert "loop" not in noted


def test_a_folder_with_images_is_read_as_before(kohya, capsys):
    draw(kohya / "img", 1)
    assert [p.path.name for p in instance_images(config_of(kohya / "img", instance_prompt="x"))] == ["0.png"]
    assert "repeats are not read as concepts: 1_tok cat, 3_sks dog" in capsys.readouterr().err


def test_subfolders_without_repeats_are_no_concepts(tmp_path):
    draw(tmp_path / "img" / "dog", 1)
    words = r"holds no images itself, only 1 subfolder with images \(dog\): .* '10_dog'"
    with pytest.raises(ConfigError, match=words):
        instance_images(config_of(tmp_path / "img"))


@pytest.mark.parametrize("name", ["10 sks dog", "10-sks dog", "sks dog", "1.5_sks dog", "20240501_sks dog"])
def test_another_separator_is_answered_by_a_name_that_works(tmp_path, name):
    draw(tmp_path / "img" / name, 1)
    with pytest.raises(ConfigError, match="such as '10_sks dog'"):
        instance_images(config_of(tmp_path / "img"))


def test_a_date_is_no_number_of_repeats(kohya, capsys):
    draw(kohya / "img" / "20240501_beach", 1, first=7)
    assert len(instance_images(config_of(kohya / "img"))) == 5
    assert "do not begin with repeats such as 10_: 20240501_beach" in capsys.readouterr().err


def test_the_folder_above_kohyas_folders_names_the_right_one(tmp_path):
    """The page of kohya_ss makes img, reg, log and model in one folder."""
    draw(tmp_path / "dog" / "img" / "10_sks dog", 1)
    (tmp_path / "dog" / "log").mkdir()
    with pytest.raises(ConfigError, match=r"its subfolder img holds .* --instance_data_dir .*dog/img$"):
        instance_images(config_of(tmp_path / "dog"))


def series(config, images, of_class, cache):
    pipeline = load_sdxl()
    return plan_batches(images, of_class, pipeline.vae, config, Cache(cache), Accelerator(cpu=True))


@pytest.mark.parametrize("buckets", [False, True])
def test_every_image_comes_as_often_as_it_repeats(kohya, buckets):
    draw(kohya / "img" / "3_sks dog", 1, first=7, size=(96, 48))
    config = config_of(kohya / "img", use_aspect_ratio_buckets=buckets)
    images = instance_images(config)
    found = examples_at(series(config, images, [], kohya / "cache"), range(24))
    counts = collections.Counter(record.path.name for record in found)
    assert counts == {name: 6 if name in ("0.png", "1.png", "7.png") else 2 for name in counts}
    assert len(counts) == 6


def test_a_class_folder_with_subfolders_is_read_and_nothing_is_generated(kohya, capsys):
    config = config_of(kohya / "img", with_prior_preservation=True, class_data_dir=str(kohya / "reg"))
    check_class_folders(config)
    assert plan(config).summary()["class images"] == "2 files in subfolders of reg, none left out"
    draw(kohya / "reg" / "more", 1, first=8)
    draw(kohya / "reg" / "0_off", 1, first=9)
    text = "2 files in subfolders of reg, 2 subfolders without repeats in the name left out (0_off, more)"
    assert plan(config).summary()["class images"] == text
    shutil.rmtree(kohya / "reg" / "more")
    shutil.rmtree(kohya / "reg" / "0_off")
    images = instance_images(config)
    found = class_images(config, images, NO_BASE, Accelerator(cpu=True))
    assert [(p.path.name, p.caption, p.repeats) for p in found] == [("6.png", "cat", 1), ("5.png", "dog", 2)]
    assert "holds 2 class images in subfolders with repeats: nothing is left out, and nothing is" in (
        capsys.readouterr().err
    )
    records = examples_at(series(config, images, found, kohya / "cache"), range(9))
    counts = collections.Counter(record.caption for record in records[9:])
    assert counts == {"dog": 6, "cat": 3}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("reg/more.png", r"holds both an image \(more.png\) and a subfolder with repeats \(1_cat\)"),
        ("other/dog/1.png", r"only in 1 subfolder \(dog\): .* such as '1_dog'"),
        ("other/reg/1_dog/1.png", r"only in 1 subfolder \(reg\): name a subfolder"),
    ],
)
def test_class_images_that_would_be_ignored_stop_the_run(kohya, entry, words):
    path = kohya / entry
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(path)
    folder = kohya / entry.split("/")[0]
    config = config_of(
        kohya / "img", with_prior_preservation=True, class_data_dir=str(folder), class_prompt="x"
    )
    with pytest.raises(ConfigError, match=words):
        plan(config)
    assert not list(kohya.rglob("class-*"))


def test_a_class_folder_whose_subfolders_are_empty_stops_the_plan(kohya):
    (kohya / "other" / "1_dog" / "sub").mkdir(parents=True)
    config = config_of(
        kohya / "img", with_prior_preservation=True, class_data_dir=str(kohya / "other"), class_prompt="x"
    )
    with pytest.raises(ConfigError, match=r"no subfolder with repeats of .*other holds an image"):
        plan(config)


def test_the_plan_notes_class_images_that_are_not_used(kohya, capsys):
    plan(config_of(kohya / "img", class_data_dir=str(kohya / "reg")))
    assert "--class_data_dir and --class_prompt have no effect without --with" in capsys.readouterr().err


def test_the_plan_counts_class_images_of_ones_own_and_those_to_generate(kohya):
    folder = kohya / "reg" / "1_cat"
    options = dict(with_prior_preservation=True, class_data_dir=str(folder), class_prompt="x")
    facts = plan(config_of(kohya / "img", **options, num_class_images=5)).summary()
    assert facts["class images"] == "1 of your own in 1_cat, at most 4 to generate"
    assert "class images" not in plan(config_of(kohya / "img")).summary()


def test_class_images_are_no_training_images(kohya):
    folder = str(draw(kohya / "same", 1))
    config = config_of(
        folder,
        instance_prompt="x",
        with_prior_preservation=True,
        class_data_dir=folder,
        class_prompt="x",
    )
    with pytest.raises(ConfigError, match="class images need another folder"):
        plan(config)


def test_class_images_are_not_the_subfolders_that_are_trained_on(kohya):
    folder = str(kohya / "img")
    config = config_of(folder, with_prior_preservation=True, class_data_dir=folder)
    with pytest.raises(ConfigError, match="class images need another folder"):
        plan(config)


def write_concepts(folder, *entries, name="concepts.json"):
    path = folder / name
    path.write_text(json.dumps(list(entries)))
    return TrainConfig(concepts=str(path), train_batch_size=1, resolution=64)


def test_a_file_of_concepts_in_json_and_toml(kohya):
    config = write_concepts(
        kohya,
        dict(folder="img/3_sks dog", prompt="sks dog", repeats=4),
        dict(folder="img/1_tok cat", prompt="tok", caption_wildcards=True, caption_dropout=0.5),
        dict(folder="img"),
    )
    found = instance_images(config)
    assert collections.Counter((p.concept, p.repeats, p.caption) for p in found) == {
        (0, 4, "sks dog"): 2,
        (1, 1, "a tok cat on a mat"): 1,
        (1, 1, "tok"): 2,
        (2, 1, "a tok cat on a mat"): 1,
        (2, 1, "tok cat"): 2,
        (3, 3, "sks dog"): 2,
    }
    assert [p.variation.caption_dropout for p in found if p.concept == 1] == [0.5] * 3
    assert not any(p.variation.caption_wildcards for p in found if p.concept != 1)
    toml = kohya / "concepts.toml"
    toml.write_text('[[concepts]]\nfolder = "img/3_sks dog"\nprompt = "sks dog"\nrepeats = 4\n')
    (only, _) = instance_images(TrainConfig(concepts=str(toml)))
    assert (only.caption, only.repeats) == ("sks dog", 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "the file of --concepts is not JSON"),
        ("[]", "must be a list of entries"),
        ('{"concepts": 5}', "must be a list of entries"),
        ('{"concepts": [{"folder": "img"}], "repeats": 5}', "has the key 'repeats' beside its entries"),
        ("[5]", "entry 1 of .*: it is a number, not an object with a folder"),
        ('[{"prompt": "x"}]', "entry 1 of .*: it has no folder"),
        ('[{"folder": ""}]', "entry 1 of .*: folder is ''; it must be text"),
        ('[{"folder": "a"}, {"folder": "gone"}]', "entry 2 of .*: its folder .*gone is not a folder"),
        ('[{"folder": "a", "repeat": 5}]', "entry 1 of .*: unknown key 'repeat'; 'repeats' is its"),
        ('[{"folder": "a", "repeets": 5}]', "entry 1 of .*: unknown key 'repeets'; did you mean 'repeats'"),
        ('[{"image_dir": "a"}]', "entry 1 of .*: unknown key 'image_dir'; 'folder' is its name here"),
        ('[{"__version": 2, "path": "a"}]', "entry 1 of .*: it is a concept of OneTrainer, whose keys"),
        (
            '{"datasets": [{"subsets": []}]}',
            "is a dataset config of sd-scripts: write each of its subsets",
        ),
        ('[{"folder": "a", "repeats": 0}]', "entry 1 of .*: repeats is 0; it must be at least 1"),
        (
            '[{"folder": "a", "repeats": "5"}]',
            "entry 1 of .*: option 'repeats' is '5'; it must be a whole number",
        ),
        ('[{"folder": "a", "keep_tokens": "x"}]', "entry 1 of .*: option 'keep_tokens' is 'x'"),
        ('[{"folder": "a", "keep_tokens": 1}]', "entry 1 of .*: keep_tokens has no effect here"),
        ('[{"folder": "a", "caption_dropout": 2}]', "entry 1 of .*: caption_dropout is 2; it must be at"),
        ('[{"folder": "a", "class_prompt": "x"}]', "entry 1 of .*: it has class_prompt, which needs --with_"),
        ('[{"folder": "a\\u0000b"}]', "entry 1 of .*: a path has a NUL character"),
    ],
)
def test_a_mistake_in_a_file_of_concepts_is_one_sentence(tmp_path, content, words):
    draw(tmp_path / "a", 1)
    (tmp_path / "concepts.json").write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        instance_images(TrainConfig(concepts=str(tmp_path / "concepts.json"), instance_prompt="x"))
    assert "\n" not in str(caught.value)
    assert caught.value.option == "concepts"


def test_a_file_of_concepts_in_yaml_is_refused(tmp_path):
    (tmp_path / "concepts.yaml").write_text("- folder: a\n")
    with pytest.raises(ConfigError, match=r"names a JSON or TOML file, and .*concepts\.yaml is YAML"):
        instance_images(TrainConfig(concepts=str(tmp_path / "concepts.yaml")))


def test_a_file_of_concepts_that_is_not_there():
    with pytest.raises(ConfigError, match="the file of --concepts cannot be read"):
        instance_images(TrainConfig(concepts="nowhere.json"))


def test_each_concept_has_class_images_of_its_own(kohya):
    config = write_concepts(
        kohya,
        dict(folder="img/3_sks dog", prompt="sks dog", class_folder="reg/2_dog", class_prompt="a dog"),
        dict(folder="img/1_tok cat", prompt="tok", class_folder="reg/1_cat", class_prompt="a cat"),
        dict(folder="img/1_tok cat", prompt="no class"),
    )
    with pytest.raises(ConfigError, match=r"entry 1 of .*: it has class_folder, which needs --with_prior"):
        instance_images(config)
    entries = json.loads((kohya / "concepts.json").read_text())
    for entry in entries[:2]:
        entry["num_class_images"] = 1
    config = write_concepts(kohya, *entries)
    config = dataclasses.replace(config, with_prior_preservation=True)
    images = instance_images(config)
    found = class_images(config, images, NO_BASE, Accelerator(cpu=True))
    assert [(p.caption, p.class_set) for p in found] == [("a dog", 0), ("a cat", 1)]
    batches = series(config, images, found, kohya / "cache")
    pairs = set()
    for position in range(16):
        instance, *of_class = examples_at(batches, [position])
        pairs.add((instance.caption, *(record.caption for record in of_class)))
    assert pairs == {
        ("sks dog", "a dog"),
        ("tok", "a cat"),
        ("a tok cat on a mat", "a cat"),
        ("no class",),
        ("a tok cat on a mat",),
    }
    assert {caption for pair in pairs for caption in pair} == set(batches.captions())


def test_masks_are_no_images(tmp_path, capsys):
    for name in ("a.png", "a-masklabel.png", "a-condlabel.png", "b.jpg", "b_mask.png", "gas_mask.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    (tmp_path / "b_mask.txt").write_text("made by a tagger")
    assert [p.path.name for p in find_images(tmp_path, "x")] == ["a.png", "b.jpg", "gas_mask.png"]
    assert "holds 3 masks beside the images, not trained on: a-condlabel.png and others" in (
        capsys.readouterr().err
    )
    masks = masks_of(sorted(tmp_path.glob("*.*g")))
    assert {image.name: mask.name for image, mask in masks.items()} == {
        "a.png": "a-masklabel.png",
        "b.jpg": "b_mask.png",
    }


def test_captions_that_share_a_photo_alone_have_a_trigger_for_each_subject():
    dogs, cats = ["a photo of zwx dog, in a park"] * 2, ["a photo of kwq cat", "a photo of kwq cat, asleep"]
    assert shared(dogs + cats) == ["a photo of zwx dog, in a park", "a photo of kwq cat"]
    assert shared(dogs) == dogs[:1]
    assert shared(["a drawing of a cat", "a drawing of a dog"]) == ["a drawing"]  # of a style, it may be
    assert shared(["a photo of sks dog on the beach", "a photo of sks dog at home"]) == ["a photo of sks dog"]
    assert shared([]) == shared(["one", "two"]) == [""]


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["sks dog, grass, sun", "sks dog, sofa", "sofa, sks dog"], "sks dog"),
        (["1girl, sks, red", "blue, sks, 1girl"], "1girl, sks"),
        (["a photo of sks dog on the beach", "a photo of sks dog on a sofa"], "a photo of sks dog"),
        (["a dog"] * 3, "a dog"),
        (["one", "two"], ""),
        (["a dog", "a cat"], ""),
    ],
)
def test_the_trigger_is_what_all_captions_share(captions, words):
    assert shared_words(captions) == words


def test_sample_prompts_name_the_concepts_and_are_in_the_plan(kohya, tmp_path):
    config = config_of(kohya / "img")
    prompts = sample_prompts(config, instance_images(config))
    assert prompts == ["tok cat", "tok cat on a blue background", "sks dog", "sks dog on a blue background"]
    for image in (kohya / "img").rglob("*.png"):  # the words of the folder come first, whatever captions say
        image.with_suffix(".txt").write_text("a blue thing, outdoors")
    with_captions = dataclasses.replace(config, instance_prompt="a photo of xyz")
    assert sample_prompts(with_captions, instance_images(with_captions)) == prompts
    for image in (kohya / "img").rglob("*.png"):
        image.with_suffix(".txt").unlink()
    text = plan(config).text()
    assert f"sample prompts: {' | '.join(prompts)}\n" in text
    assert "captions: 5 from folder names\n" in text
    assert (
        "concepts: 1_tok cat: 3 images x 1, 'tok cat' where there is no caption; 3_sks dog: 2 images" in text
    )
    for number, caption in enumerate(["a sks dog, sofa", "a sks dog, beach"]):
        draw(tmp_path / "tagged", 1, first=number)
        (tmp_path / "tagged" / f"{number}.txt").write_text(caption)
    config = config_of(tmp_path / "tagged")
    assert sample_prompts(config, instance_images(config)) == ["a sks dog" + scene for scene in SCENES]
    (tmp_path / "tagged" / "0.txt").write_text("one")
    assert sample_prompts(config, instance_images(config)) == ["one", "a sks dog, beach"]
    given = dataclasses.replace(config, validation_prompt="x | y")
    assert sample_prompts(given, instance_images(config)) == ["x", "y"]


def test_a_run_with_two_concepts_and_a_reg_folder_resumes_bit_exactly_elsewhere(kohya, capsys):
    def run(folder, steps, root):
        config = config_of(
            root / "img",
            adapter=AdapterConfig(rank=8, k=2),
            with_prior_preservation=True,
            class_data_dir=str(root / "reg"),
            caption_dropout=0.2,
            caption_wildcards=True,
            max_train_steps=steps,
            output_dir=str(kohya / folder),
            skip_final_inference=True,
        )
        return load_file(train(config) / "adapter.safetensors")

    (kohya / "img" / "1_tok cat" / "3.txt").write_text("a {red|blue} tok cat")
    whole = run("whole", 4, kohya)
    assert "concept 3_sks dog: 2 images x 3, 'sks dog'" in capsys.readouterr().out
    run("parts", 2, kohya)
    (kohya / "moved").mkdir()
    for name in ("img", "reg"):
        shutil.move(kohya / name, kohya / "moved" / name)
    parts = run("parts", 4, kohya / "moved")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    (kohya / "moved" / "img" / "3_sks dog").rename(kohya / "moved" / "img" / "4_sks dog")
    with pytest.raises(
        ConfigError, match=r"different images or captions: .* --start_from .*parts/checkpoint-4 to continue"
    ):
        run("parts", 6, kohya / "moved")


def test_the_default_folder_is_found_by_the_images(tmp_path, monkeypatch):
    """The same images elsewhere resume; others of the same name get a folder of their own."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "a" / "dog", 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    draw(tmp_path / "c" / "dog", 3)
    common = dict(instance_prompt="x", adapter=AdapterConfig(rank=8, k=2), skip_final_inference=True)
    first = train(config_of(tmp_path / "a" / "dog", max_train_steps=1, **common))
    (first / "status.json").write_text('{"state": "stopped"}')
    assert plan(config_of(tmp_path / "b" / "dog", **common)).run == first
    assert plan(config_of(tmp_path / "c" / "dog", **common)).run.name == f"{first.name}-2"


def test_a_resumed_run_keeps_its_sample_prompts(tmp_path):
    """Older versions took others, and the images of one run are compared with each other."""
    draw(tmp_path / "p", 2)
    for number, caption in enumerate(["sks dog, grass", "sks dog, sofa"]):
        (tmp_path / "p" / f"{number}.txt").write_text(caption)
    config = config_of(tmp_path / "p", adapter=AdapterConfig(rank=8, k=2), num_inference_steps=1)
    config = dataclasses.replace(config, output_dir=str(tmp_path / "run"), max_train_steps=1)
    saved = json.loads((train(config) / "config.json").read_text())
    assert saved["validation_prompt"].split("|")[0] == saved["instance_prompt"] == "sks dog"
    older = saved | dict(validation_prompt="sks dog, grass", instance_prompt="sks dog, grass")
    for name in ("concepts", "caption_lines", "caption_wildcards"):
        del older[name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(older))
    longer = dataclasses.replace(config, max_train_steps=2)
    assert plan(longer).prompts == ["sks dog, grass"]
    train(longer)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["validation_prompt"] == "sks dog, grass"
    assert len(list((tmp_path / "run" / "samples" / "step-00002").iterdir())) == 1


def test_a_folder_of_kohyas_alone_says_where_its_name_counts(tmp_path):
    draw(tmp_path / "img" / "10_sks dog", 1)
    with pytest.raises(ConfigError, match=r"; --instance_data_dir \S*/img takes repeats and captions from"):
        instance_images(config_of(tmp_path / "img" / "10_sks dog"))


def test_the_page_has_no_file_of_concepts(tmp_path):
    from gralora_diffusion.ui.config_form import FIELDS, from_config
    from gralora_diffusion.ui.workspace import Workspace

    assert "concepts" not in FIELDS
    with pytest.raises(ConfigError, match="this config trains on several datasets"):
        from_config(TrainConfig(concepts="x.json"), Workspace(tmp_path))
