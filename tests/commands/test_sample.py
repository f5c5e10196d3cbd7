"""`gralora sample`: its options, its files, its mistakes."""

import json
import re

import numpy as np
import pytest
import torch
from image_texts import read_as_a1111, read_as_comfyui
from PIL import Image

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl, train
from gralora_diffusion.cli import sample
from gralora_diffusion.cli.prompt_file import Line, read_prompts
from gralora_diffusion.cli.sample import parse, seeds_of
from gralora_diffusion.files import sha256
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.schedulers import SCHEDULERS

FAST = ["--num_inference_steps", "2", "--num_images", "1"]


def draw(folder, *words, name="out"):
    """{file name: image} of a command line."""
    sample.main([*map(str, words), "--output", str(folder / f"{name}.png")])
    return {path.name: Image.open(path) for path in sorted((folder / name).glob("*.png"))}


def values_of(image):
    return read_as_a1111(image.text["parameters"])[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my_robot"
    options = dict(max_train_steps=1, num_inference_steps=2, validation_prompt="a robot", train_batch_size=1)
    sizes = dict(validation_size="96x64", validation_scheduler="ddim", validation_negative_prompt="red")
    train(TrainConfig(output_dir=str(folder), adapter=AdapterConfig(rank=8, k=2), **options, **sizes))
    return folder


def test_seeds_sizes_schedulers_and_negatives_are_in_the_files(tmp_path):
    images = draw(
        tmp_path,
        *("--prompt", "a dog|a red heart", "--seed", "3,7-8", "--size", "96x64", "--scheduler", "DPM++ 2M"),
        *("--negative_prompt", "blurry, dark", "--num_inference_steps", "2", "--no-grid"),
    )
    assert list(images) == [f"base-{n:03d}.png" for n in range(6)]
    assert not (tmp_path / "out.png").exists()
    for n, image in enumerate(images.values()):
        assert image.size == (96, 64)
        for read in (read_as_a1111, read_as_comfyui):
            prompt, negative, _ = read(image.text["parameters"])
            assert (prompt, negative) == (["a dog", "a red heart"][n // 3], "blurry, dark")
        values = values_of(image)
        assert (values["Seed"], values["Sampler"]) == ("378"[n % 3], "DPM++ 2M")


def test_an_image_is_made_again_from_its_text(tmp_path, run):
    words = ["--adapter", run, "--strength", 0.7, "--prompt", "a robot", "--scheduler", "euler_a", *FAST]
    (image,) = draw(tmp_path, *words, "--seed", 5).values()
    facts = json.loads(image.text["gralora"])
    (adapter,) = facts["adapters"]
    assert adapter["name"] == "my_robot"
    assert adapter["sha256"] == sha256(run / "adapter.safetensors")
    again = ["--adapter", run, "--strength", adapter["strength"], "--prompt", facts["prompt"]]
    again += ["--scheduler", facts["scheduler"], "--size", facts["size"], "--seed", facts["seed"]]
    again += ["--guidance_scale", facts["guidance_scale"]]
    again += ["--num_inference_steps", facts["num_inference_steps"], "--num_images", 1]
    (second,) = draw(tmp_path, *again, name="again").values()
    assert np.array_equal(np.asarray(image), np.asarray(second))
    assert str(run.parent) not in str(image.text)


def test_the_lora_hash_is_that_of_the_file_for_other_tools(tmp_path, run):
    """A1111 computes it from the file; the header of ours has it too."""
    from safetensors import safe_open

    with safe_open(run / "my_robot.safetensors", "pt") as file:
        expected = file.metadata()["sshs_model_hash"]
    (image,) = draw(tmp_path, "--adapter", run, "--prompt", "a robot", *FAST).values()
    assert values_of(image)["Lora hashes"] == f"my_robot: {expected[:12]}"
    assert read_as_a1111(image.text["parameters"])[0] == "a robot <lora:my_robot:1>"


def test_a_runs_sample_images_follow_its_options(run):
    for step, adapter in ((0, []), (1, ["my_robot"])):
        with Image.open(run / "samples" / f"step-{step:05d}" / "00.png") as image:
            assert image.size == (96, 64)
            facts = json.loads(image.text["gralora"])
        assert (facts["scheduler"], facts["negative_prompt"], facts["step"]) == ("ddim", "red", step)
        assert [own["name"] for own in facts["adapters"]] == adapter


def test_a_file_of_prompts_has_settings_of_its_own(tmp_path):
    text = "# a comment\n\na dog --n blurry --d 4 --w 96 --h 64\r\na caf\u00e9 --s 3 --l 1.5\na heart"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "prompts.txt").write_bytes(text.encode(encoding))
        images = draw(tmp_path, "--prompt_file", tmp_path / "prompts.txt", *FAST, "--seed", 9)
        first, second, third = (values_of(image) for image in images.values())
        assert (first["Seed"], first["Size"], first["Steps"]) == ("4", "96x64", "2")
        assert (second["Seed"], second["Size"], second["Steps"]) == ("9", "64x64", "3")
        assert (second["CFG scale"], third["CFG scale"]) == ("1.5", "3")
        prompts = [read_as_a1111(image.text["parameters"])[:2] for image in images.values()]
        assert prompts == [("a dog", "blurry"), ("a caf\u00e9", ""), ("a heart", "")]


def test_words_with_two_dashes_in_a_line_are_no_flags(tmp_path):
    (tmp_path / "p.txt").write_text("a well--known dog -- sitting")
    assert read_prompts(tmp_path / "p.txt") == [Line("a well--known dog -- sitting")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a dog --w 100 --h 64", "line 1 of p.txt: the width is 100; it must be divisible by 8"),
        ("\na dog --w 64", "line 2 of p.txt has one of --w and --h: give both"),
        ("a dog --x 3", "line 1 of p.txt has --x, which is not one of --n (negative prompt)"),
        ("a dog --s many", "--s, the steps, is 'many'; it must be a whole number from 1"),
        ("a dog --l nan", "--l, the guidance scale, is 'nan'; it must be a number from 0"),
        ("# nothing\n", "holds no prompts: write one per line"),
        ("a dog\n" * 1001, "holds 1,001 prompts; the limit is 1,000"),
        ("a" * 2**21, "p.txt is longer than 1,048,576 bytes"),
    ],
)
def test_mistakes_in_a_file_of_prompts_name_the_line(tmp_path, text, words):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--size", "100x64"], "--size has a width of 100; it must be divisible by 8, such as 96 or 104"),
        (["--size", "832"], "--size is '832'; it must be WIDTHxHEIGHT, such as 832x1216"),
        (["--size", "64x8"], "--size has a height of 8; it must be from 64 to 8192 pixels"),
        (["--width", "64"], "--height is missing: give both --width and --height"),
        (["--width", "64", "--height", "68"], "--height is 68; it must be divisible by 8, such as 64 or 72"),
        (["--size", "64x64", "--width", "64"], "--size and --width or --height both set the size"),
        (["--scheduler", "eular"], "--scheduler is 'eular'; it must be one of euler, "),
        (["--seed", "1,x"], "--seed is '1,x'; it must be whole numbers from 0, such as 7, or 1,2,3, or"),
        (["--seed", "5-"], "--seed is '5-'; it must be whole numbers"),
        (["--seed", "-1"], "--seed is '-1'; it must be whole numbers"),
        (["--seed", "0-1000000"], "at most 1,000 seeds"),
        (["--seed", "1,2", "--num_images", "3"], "--seed names 2 seeds, but --num_images is 3: drop one"),
        (["--strength", "500"], "--strength is '500'; it must be one number from -100 to 100"),
        (["--guidance_scale", "-1"], "--guidance_scale is -1.0; it must be from 0 to 1000"),
        (["--prompt_file", "x.txt"], "--prompt and --prompt_file both name the prompts: give one of them"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--prompt", "a dog", *words])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_seeds():
    assert seeds_of("5", 3) == [5, 6, 7]
    assert seeds_of("5", None) == [5, 6, 7, 8]
    assert seeds_of("5,5, 1", None) == [5, 5, 1]
    assert seeds_of("2-4", 3) == [2, 3, 4]


def test_help_says_what_few_step_models_need(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in SCHEDULERS)
    assert all(word in text for word in ("Lightning", "LCM", "Turbo", "guidance 1"))


def test_a_broken_base_is_exit_code_1_and_no_image(tmp_path, monkeypatch, capsys):
    broken = load_sdxl()
    next(broken.unet.parameters()).data.fill_(float("nan"))
    monkeypatch.setattr("gralora_diffusion.cli.sample_images.load_sdxl", lambda *_, **__: broken)
    with pytest.raises(SystemExit) as stop:
        draw(tmp_path, "--prompt", "a dog", *FAST)
    assert stop.value.code == 1
    assert "the UNet gave numbers that are not finite in step 1 of 2" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


def test_a_runs_images_that_are_not_finite_are_left_out_and_it_goes_on(tmp_path, monkeypatch):
    from gralora_diffusion.sdxl import sampling

    whole, calls = sampling.denoise, []

    def denoise(*args, **kwargs):
        calls.append(1)
        latents = whole(*args, **kwargs)
        return latents if len(calls) < 2 else latents * float("nan")

    monkeypatch.setattr(sampling, "denoise", denoise)
    config = TrainConfig(
        output_dir=str(tmp_path / "run"),
        adapter=AdapterConfig(rank=8, k=2),
        max_train_steps=1,
        num_inference_steps=2,
        validation_prompt="a robot",
        train_batch_size=1,
    )
    with pytest.warns(UserWarning, match="sample images of step 1: image 1 .* it is left out, and training"):
        run = train(config)
    assert [len(list((run / "samples" / name).iterdir())) for name in ("step-00000", "step-00001")] == [1, 0]
    assert json.loads((run / "status.json").read_text())["state"] == "done"


def test_a_scheduler_that_does_not_fit_the_adapter_is_refused_first(tmp_path, run, capsys):
    from gralora_diffusion.formats.load import load_adapter

    facts = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True)

    def trained_with_zero_snr(*args, **kwargs):
        return load_adapter(*args, **kwargs) | dict(objective=facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gralora_diffusion.cli.sample_images.load_adapter", trained_with_zero_snr)
        with pytest.raises(SystemExit) as stop:
            draw(tmp_path, "--adapter", run, "--prompt", "x", "--scheduler", "heun", *FAST)
    assert stop.value.code == 2
    assert "--scheduler heun cannot sample a base with zero terminal SNR" in capsys.readouterr().err


def test_precisions(tmp_path, capsys):
    images = {}
    for precision in ("no", "bf16"):
        words = ["--prompt", "a dog", "--mixed_precision", precision, *FAST]
        (images[precision],) = draw(tmp_path, *words, name=precision).values()
    difference = np.abs(np.asarray(images["no"], int) - np.asarray(images["bf16"], int))
    assert 0 < difference.mean() < 8
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            draw(tmp_path, "--prompt", "a dog", "--mixed_precision", "fp16", *FAST)
        assert "--mixed_precision fp16 needs a GPU" in capsys.readouterr().err
