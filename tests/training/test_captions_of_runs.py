"""Runs on long and weighted captions, and with another layer of the text encoders."""

import json

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import equal

from gralora_diffusion import AdapterConfig, TrainConfig, train
from gralora_diffusion.cli import sample
from gralora_diffusion.formats.used_adapter import clip_skip_of
from gralora_diffusion.options import ConfigError

LONG = "a photo of a red heart, " * 12
CAPTIONS = {"short": "a dog", "long": LONG, "weighted": "a (red:1.5) heart [here]"}


def folder_of(path, names):
    path.mkdir()
    for n, name in enumerate(names):
        Image.new("RGB", (64, 64), (40 * n, 90, 200)).save(path / f"{name}.png")
        (path / f"{name}.txt").write_text(CAPTIONS[name])
    return str(path)


def run(folder, name, images, steps=2, **options):
    config = TrainConfig(
        output_dir=str(folder / name),
        instance_data_dir=images,
        adapter=AdapterConfig(rank=8, k=2),
        max_train_steps=steps,
        train_batch_size=2,
        latent_cache_dir=str(folder / "cache"),
        **dict(skip_final_inference=True) | options,
    )
    return train(config)


def losses(path):
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("text_encoders", [False, True])
def test_long_captions_are_read_whole_and_a_run_resumes_exactly(tmp_path, text_encoders):
    images = folder_of(tmp_path / "images", ["short", "long"])
    options = dict(train_text_encoder=text_encoders)
    whole = run(tmp_path, "whole", images, **options)
    halves = run(tmp_path, "halves", images, steps=1, **options)
    assert run(tmp_path, "halves", images, **options) == halves
    for other in (halves, run(tmp_path, "again", images, **options)):  # the second from the cache
        one, two = (load_file(path / "adapter.safetensors") for path in (whole, other))
        assert one.keys() == two.keys()
        assert all(equal(one[name], two[name]) for name in one)
    cut = run(tmp_path, "cut", images, **options, max_token_length=75)
    assert losses(cut) != losses(whole)


def test_a_run_from_before_the_option_keeps_its_75_tokens(tmp_path):
    """Its config.json does not have max_token_length; another one that is given is a difference."""
    images = folder_of(tmp_path / "images", ["short", "long"])
    wanted = run(tmp_path, "wanted", images, max_token_length=75)
    old = run(tmp_path, "old", images, steps=1, max_token_length=75)
    config = json.loads((old / "config.json").read_text())
    del config["max_token_length"]
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="was started with --max_token_length 75, not 150"):
        run(tmp_path, "old", images, max_token_length=150)
    run(tmp_path, "old", images)
    one, two = (load_file(path / "adapter.safetensors") for path in (wanted, old))
    assert all(equal(one[name], two[name]) for name in one)
    assert "max_token_length" not in json.loads((old / "config.json").read_text())
    run(tmp_path, "old", images, steps=3)  # the same command resumes it again


def test_the_options_change_nothing_for_captions_that_they_do_not_concern(tmp_path):
    images = folder_of(tmp_path / "images", ["short"])
    plain = losses(run(tmp_path, "plain", images))
    assert losses(run(tmp_path, "cut", images, max_token_length=75)) == plain
    assert losses(run(tmp_path, "weighted", images, weighted_captions=True)) == plain
    assert losses(run(tmp_path, "layer", images, clip_skip=1)) != plain


def test_weights_count_where_they_are_asked_for(tmp_path):
    images = folder_of(tmp_path / "images", ["weighted"])
    plain, weighted = run(tmp_path, "a", images), run(tmp_path, "b", images, weighted_captions=True)
    assert losses(plain) != losses(weighted)
    assert losses(run(tmp_path, "c", images)) == losses(plain)  # not those of the other in the cache


def test_brackets_of_captions_are_plain_text_in_the_sample_prompts_made_of_them(tmp_path):
    images = folder_of(tmp_path / "images", ["weighted"])
    common = dict(skip_final_inference=False, num_inference_steps=1, steps=1)
    for name, weighted in (("a", False), ("b", True)):
        path = run(tmp_path, name, images, weighted_captions=weighted, **common)
        prompt = json.loads((path / "config.json").read_text())["validation_prompt"].split("|")[0]
        assert prompt == (CAPTIONS["weighted"] if weighted else r"a \(red:1.5\) heart \[here\]")


def test_clip_skip_is_in_the_header_and_sampling_follows_it(tmp_path):
    images = folder_of(tmp_path / "images", ["short"])
    path = run(tmp_path, "layer", images, clip_skip=1)
    with safe_open(path / "layer.safetensors", "pt") as file:
        header = file.metadata()
    assert (header["ss_clip_skip"], header["ss_max_token_length"]) == ("1", "225")
    words = ["--adapter", path, "--prompt", "a dog", "--num_images", 1, "--num_inference_steps", 1]
    found = {}
    for name, more in (("recorded", []), ("given", ["--clip_skip", 2])):
        sample.main([*map(str, words + more), "--output", str(tmp_path / f"{name}.png")])
        with Image.open(tmp_path / name / "strength-1-000.png") as image:
            found[name] = json.loads(image.text["gralora"])["clip_skip"]
    assert found == dict(recorded=1, given=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(validation_prompt="a|(dog:50)"), "--validation_prompt: the prompt gives 'dog' the weight 50"),
        (
            dict(validation_negative_prompt="dog " * 400),
            "--validation_negative_prompt: the prompt has 400 tok",
        ),
        (
            dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, validation_scheduler="heun"),
            "--validation_scheduler heun cannot sample a base with zero terminal SNR",
        ),
        (dict(clip_skip=12), "--clip_skip is 12; it must be from 1 to 2"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, options, words):
    images = folder_of(tmp_path / "images", ["short"])
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        run(tmp_path, "run", images, **dict(skip_final_inference=False) | options)
    assert not (tmp_path / "run").exists()


def test_a_token_length_that_is_no_multiple_of_75_is_refused():
    with pytest.raises(ConfigError, match="--max_token_length is 100; it must be 75, 150 or 225"):
        TrainConfig(max_token_length=100)


def test_every_file_of_a_run_names_its_layer_of_the_text_encoders(tmp_path):
    path = run(tmp_path, "first", folder_of(tmp_path / "images", ["short"]), steps=1, clip_skip=1)
    files = list(path.glob("*.safetensors"))
    assert len(files) == 3
    assert [clip_skip_of(file) for file in (path, *files)] == [1] * 4


def test_weights_of_a_class_prompt_are_checked_before_anything_is_written(tmp_path):
    images = folder_of(tmp_path / "images", ["short"])
    prior = dict(prior_by_prediction=True, weighted_captions=True, class_prompt="a (dog:30)")
    with pytest.raises(ConfigError) as error:
        run(tmp_path, "refused", images, steps=1, **prior)
    assert error.value.option == "class_prompt"
    assert not (tmp_path / "refused").exists()
