"""Out of memory, wherever it happens, is one sentence with exit code 1, and what was saved before stays.

The card is full during one call, see full_card.py; all commands run in one process.
"""

import json
import re
from pathlib import Path

import pytest

from gralora_diffusion.training import checkpoint

UNET = "diffusers:UNet2DConditionModel"
VAE = "diffusers:AutoencoderKL"
PIPELINE = "diffusers:StableDiffusionXLPipeline"
ACCELERATOR = "accelerate:Accelerator"
NO_IMAGES = ("--skip_final_inference",)
CLASS = ("--with_prior_preservation", "--class_prompt", "a robot", "--num_class_images", "2")
FORECAST = 3  # batches before the first step
SAMPLE = ("--prompt", "a robot", "--num_images", "1", "--num_inference_steps", "2")

TRAINING = {  # {phase: (options of `gralora train`, where the card is full)}
    "move the text encoders": ((), "transformers:CLIPTextModel.to@1"),
    "embed the prompts": ((), f"{PIPELINE}.encode_prompt@1"),
    "move the VAE": (NO_IMAGES, f"{VAE}.to@1"),
    "encode an image": (NO_IMAGES, f"{VAE}.encode@2"),
    "encode a caption": (NO_IMAGES, f"{PIPELINE}.encode_prompt@1"),
    "move the UNet": (NO_IMAGES, f"{UNET}.to@1"),
    "move the base for class images": (CLASS, f"{UNET}.to@1"),
    "denoise a class image": (CLASS, f"{UNET}.forward@1"),
    "decode a class image": (CLASS, f"{VAE}.decode@1"),
    "the gradient pass": (("--adapter", "gora", *NO_IMAGES), f"{UNET}.forward@2"),
    "the forecast": (NO_IMAGES, f"{UNET}.forward@1"),
    "a step's forward pass": (NO_IMAGES, f"{UNET}.forward@{FORECAST + 2}"),
    "a step's backward pass": (NO_IMAGES, f"{ACCELERATOR}.backward@{FORECAST + 2}"),
    "a step's clipping": (NO_IMAGES, f"{ACCELERATOR}.clip_grad_norm_@2"),
    "the optimizer's state": (NO_IMAGES, "torch.optim:AdamW.step@1"),
    "the export": (NO_IMAGES, "gralora_diffusion.training.train:export@1"),
}
IMAGES = {  # sample images are left out, and the run goes on
    "move the VAE for the first images": ((), f"{VAE}.to@3"),
    "denoise the first images": ((), f"{UNET}.forward@1"),
    "decode the first images": ((), f"{VAE}.decode@1"),
    "decode images in between": (("--validation_steps", "1"), f"{VAE}.decode@2"),
    "decode the last images": ((), f"{VAE}.decode@2"),
}
COMMANDS = {  # {what: (command, where the card is full)}; ADAPTER is a run
    "sample: move the base": (("sample", "--adapter", "ADAPTER", *SAMPLE), f"{UNET}.to@1"),
    "sample: load the adapter": (
        ("sample", "--adapter", "ADAPTER", *SAMPLE),
        "gralora_diffusion.cli.sample_images:load_adapter@1",
    ),
    "sample: merge the adapter": (
        ("sample", "--adapter", "ADAPTER", *SAMPLE),
        "gralora_diffusion.cli.sample_images:bake_in@1",
    ),
    "sample: denoise": (("sample", "--adapter", "ADAPTER", *SAMPLE), f"{UNET}.forward@1"),
    "sample: decode": (("sample", "--adapter", "ADAPTER", *SAMPLE), f"{VAE}.decode@1"),
    "evaluate: move an encoder": (("evaluate", "--run", "ADAPTER"), "torch.nn:Module.to@1"),
    "evaluate: encode": (
        ("evaluate", "--run", "ADAPTER", "--encoder", "imagenet"),
        "gralora_diffusion.evaluation.features:image_features@1",
    ),
    "page: move the base": (("page", "HOME", "base"), f"{UNET}.to@1"),
    "page: denoise": (("page", "HOME", "base"), f"{UNET}.forward@1"),
    "page: decode": (("page", "HOME", "base"), f"{VAE}.decode@1"),
    "entanglement": (("entanglement", "--output", "HOME/e", "--ranks", "8"), f"{UNET}.forward@2"),
}
STEP = ("a step's forward pass", "a step's backward pass", "a step's clipping")  # of step 2


def training(home: Path, name: str, options: tuple[str, ...]) -> list[str]:
    run = run_of(home, name)
    places = ["--output_dir", str(run), "--latent_cache_dir", str(home / "caches" / run.name)]
    if "--class_prompt" in options:
        places += ["--class_data_dir", str(home / "class" / run.name)]
    steps = ["--max_train_steps", "3", "--checkpointing_steps", "1", "--num_inference_steps", "2"]
    images = ["--validation_prompt", "a robot", "--num_validation_images", "1"]
    return ["train", "--mixed_precision", "bf16", *options, *places, *steps, *images]


def run_of(home: Path, name: str) -> Path:
    return home / "runs" / name.replace(" ", "-").replace("'", "")


def all_cases(home: Path) -> dict:
    cases = {"base": dict(commands=[training(home, "base", ())])}
    for name, (options, place) in (TRAINING | IMAGES).items():
        cases[name] = dict(commands=[training(home, name, options)], full=place)
    for name in STEP:
        cases[f"{name}, again"] = dict(commands=[training(home, name, TRAINING[name][0])])
    words = {"ADAPTER": str(run_of(home, "base")), "HOME": str(home), "HOME/e": str(home / "e")}
    for name, (command, place) in COMMANDS.items():
        command = [words.get(word, word) for word in command]
        if command[0] == "sample":
            command += ["--output", str(home / "sheet.png")]
        if command[0] == "evaluate":
            command += ["--cache", str(home / "features" / name), "--output", str(home / "evaluation")]
        cases[name] = dict(commands=[command], full=place)
    return cases


@pytest.fixture(scope="module")
def found(run_cases, home):
    return run_cases(all_cases(home))


def sentences(case: dict) -> list[str]:
    """What a command said as itself, also behind a progress bar; its notes are left out."""
    return re.findall(r"(?:gralora \w+|page): .*", case["said"])


def assert_one_sentence(case: dict) -> None:
    assert case["met"], "the card was never full"
    assert case["traceback"] == ""
    assert case["code"] == 1, case["said"]
    (sentence,) = sentences(case)
    assert "memory" in sentence


@pytest.mark.parametrize("name", TRAINING)
def test_a_run_ends_with_one_sentence(found, name):
    assert_one_sentence(found[name])
    if found[name]["status"]:
        assert found[name]["status"]["state"] == "failed"
        assert "memory" in found[name]["status"]["message"]


@pytest.mark.parametrize("name", STEP)
def test_the_last_checkpoint_stays_and_the_same_command_resumes(found, home, name):
    assert found[name]["met"]
    again = found[f"{name}, again"]
    assert again["code"] == 0, again["traceback"] or again["said"]
    assert "from step 1" in again["said"]
    assert checkpoint.damage_of(run_of(home, name) / "checkpoint-1") is None
    lines = (run_of(home, name) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("name", IMAGES)
def test_sample_images_are_left_out_and_the_run_goes_on(found, name):
    case = found[name]
    assert case["met"], "the card was never full"
    assert case["code"] == 0, case["traceback"] or case["said"]
    assert case["status"]["state"] == "done"
    (sentence,) = sentences(case)
    assert "out of memory for the sample images" in sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_with_one_sentence(found, name):
    assert_one_sentence(found[name])


def test_a_card_that_is_too_small_is_one_sentence(script, home):
    options = training(home, "too small", ())
    done = script("command.py", *options, gib=0.02)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "memory" in sentences(dict(said=done.stderr))[0]


def test_text_encoders_that_train_are_on_a_small_card_too(script, home):
    options = training(home, "small", ("--train_text_encoder", *NO_IMAGES))
    done = script("command.py", *options, gib=0.4)
    assert done.returncode == 0, done.stderr
