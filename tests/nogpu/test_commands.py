"""Every command and every way of training on a CUDA device: devices and dtypes of all tensors agree.

The embedded base, all commands in one process.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest
from budgets import RUNS as BUDGETS
from budgets import problems
from PIL import Image

from gralora_diffusion.config import OPTIMIZERS
from gralora_diffusion.data.dataset import EXAMPLE

BF16 = ("--mixed_precision", "bf16")
FP16 = ("--mixed_precision", "fp16")
NO_IMAGES = ("--skip_final_inference",)
CLASS = ("--with_prior_preservation", "--class_prompt", "a robot", "--num_class_images", "2")
STEPS = "3"
RUNS = {  # {run: options of `gralora train`}
    "bf16": (*BF16, "--validation_steps", "1", "--ema_decay", "0.9", "--lora_dropout", "0.1"),
    "fp32": ("--mixed_precision", "no", "--allow_tf32", *NO_IMAGES, "--loraplus_lr_ratio", "4"),
    "fp16, text encoders": (
        *(*FP16, "--gradient_checkpointing", "--train_text_encoder", "--train_batch_size", "2"),
        *("--gradient_accumulation_steps", "2", "--caption_dropout", "0.5"),
    ),
    "bf16, text encoders": (*BF16, "--train_text_encoder", "--rslora", "--targets", "all-linear", *NO_IMAGES),
    "T-LoRA": (*BF16, "--adapter", "lora", "--tlora", "--lora_dropout", "0.1", "--train_batch_size", "2"),
    "hybrid": (
        *(*FP16, "--rank", "16", "--gralora_k", "2", "--hybrid_rank", "8", "--tlora", "--ema_decay", "0.9"),
        *("--use_aspect_ratio_buckets", "--random_flip", *NO_IMAGES),
    ),
    "GoRA": (*BF16, "--adapter", "gora", "--gora_batches", "8", *NO_IMAGES),
    "GoRA, fp16": (*FP16, "--adapter", "gora", "--gora_batches", "8", "--gora_memory", "0.001", *NO_IMAGES),
    "energy, svd": (*BF16, "--allocate", "energy", "--gora_batches", "8", "--gora_init", "svd", *NO_IMAGES),
    "ralora": (*BF16, "--allocate", "ralora", "--gora_batches", "8", *NO_IMAGES),
    "class images, fp16": (*FP16, *CLASS, "--prior_generation_precision", "fp32", "--sample_batch_size", "2"),
    "class images, bf16": (*BF16, *CLASS, "--prior_generation_precision", "fp16", *NO_IMAGES),
    "losses": (
        *(*BF16, "--prediction_type", "v_prediction", "--rescale_betas_zero_snr", "--snr_gamma", "5"),
        *("--noise_offset", "0.1", "--loss_type", "huber"),
    ),
    "int8": (*BF16, "--base_model_precision", "int8-torchao"),
    "nf4": (*BF16, "--base_model_precision", "nf4-torchao"),
    "AdamW, fp16": (*FP16, *NO_IMAGES),
    "AdamW, 8 bit": (*BF16, "--use_8bit_adam", *NO_IMAGES),
    "masks": (*BF16, *NO_IMAGES, "--masked_loss"),
    "streams": (*BF16, "--no-cache_latents", "--dataloader_num_workers", "2", *NO_IMAGES),
}
NEEDS = {"int8": "torchao", "nf4": "torchao", "AdamW, 8 bit": "bitsandbytes"}
OF_OPTIMIZER = {"Prodigy": "prodigyopt", "AdamWScheduleFree": "schedulefree"}  # the package that it needs
DRAWN = ("bf16", "T-LoRA", "GoRA")  # runs whose adapters draw


def installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None


def all_cases(home: Path) -> dict:
    """{name: case of cases.py}: the runs, one for each optimizer, and commands that use their adapters."""
    cases = {}
    for name, options in RUNS.items():
        if installed(NEEDS.get(name)):
            cases[name] = dict(commands=[training(home, name, options)])
    for optimizer in OPTIMIZERS:
        if installed(OF_OPTIMIZER.get(optimizer)):
            options = (*BF16, *NO_IMAGES, "--optimizer", optimizer)
            cases[optimizer] = dict(commands=[training(home, optimizer, options)], reads=1.0)
    cases["late"] = dict(commands=[training(home, "late", (*BF16, *NO_IMAGES))], late=True)
    adapter = str(home / "runs" / run_name("bf16"))
    images = ("--prompt", "a robot|a robot in the snow", "--num_images", "2", "--num_inference_steps", "2")
    for name in DRAWN:
        run = run_name(name)
        output = str(home / f"{run}.png")
        sampling = ["sample", "--adapter", str(home / "runs" / run), *images, "--compare", "--output", output]
        cases[f"sample {name}"] = dict(commands=[sampling])
        cases[f"page {name}"] = dict(commands=[["page", str(home), run]])
    cases["sample the base"] = dict(commands=[["sample", *images, "--output", str(home / "base.png")]])
    features = ["--cache", str(home / "features")]
    cases["evaluate a run"] = dict(commands=[["evaluate", "--run", adapter, *features]])
    folders = ["--generated", str(EXAMPLE), "--reference", str(EXAMPLE), "--output", str(home / "evaluation")]
    encoder = ["--encoder", "imagenet", "--dtype", "bfloat16"]
    cases["evaluate folders"] = dict(commands=[["evaluate", *folders, *encoder, *features]])
    merged = ["convert", adapter, str(home / "merged.safetensors"), "--to", "merged"]
    small = ["convert", adapter, str(home / "small.safetensors"), "--to", "comfyui", "--rank", "4"]
    cases["convert"] = dict(commands=[merged, small])
    cases["dry run"] = dict(commands=[training(home, "dry", (*BF16, "--dry_run"))])
    cases["env"] = dict(commands=[["env"]])
    measured = ["--output", str(home / "entanglement"), "--ranks", "8", "--ks", "1", "2", "--batches", "1"]
    cases["entanglement"] = dict(commands=[["entanglement", *measured, *BF16]])
    prompts = home / "prompts.txt"
    prompts.write_text("a photo of sks robot\n")
    sweep = ["--output", str(home / "sweep"), "--methods", "lora", "gralora", "gora", "t-lora"]
    short = ["--steps", "2", "--num_inference_steps", "2", "--prompts", str(prompts), "--encoder", "embedded"]
    cases["compare"] = dict(commands=[["compare", *sweep, *short, *BF16]])
    return cases


def run_name(name: str) -> str:
    """A run folder's name."""
    return name.replace(",", "").replace(" ", "-")


def training(home: Path, name: str, options: tuple[str, ...]) -> list[str]:
    """`gralora train` into HOME/runs/NAME."""
    run = home / "runs" / run_name(name)
    places = ["--output_dir", str(run)]
    if "--masked_loss" in options:
        places += ["--instance_data_dir", str(with_masks(home)), "--instance_prompt", "a photo of sks robot"]
    if "--no-cache_latents" not in options:
        places += ["--latent_cache_dir", str(home / "cache")]
    if "--class_prompt" in options:
        places += ["--class_data_dir", str(home / "class" / run.name)]
    steps = ["--max_train_steps", STEPS, "--num_inference_steps", "2", "--num_validation_images", "1"]
    return ["train", *options, *places, *steps]


def with_masks(home: Path) -> Path:
    """The bundled images, one of them with a mask."""
    folder = home / "masked"
    if not folder.exists():
        shutil.copytree(EXAMPLE, folder)
        mask = Image.new("L", (64, 64))
        mask.paste(255, (8, 8, 56, 56))
        mask.save(folder / "00-masklabel.png")
    return folder


@pytest.fixture(scope="module")
def found(run_cases, home):
    return run_cases(all_cases(home))


def last_step(case: dict) -> dict:
    (line,) = [line for line in case["phases"] if line["phase"] == f"step {STEPS}"]
    return line


COMMANDS = [
    *(f"{command} {name}" for name in DRAWN for command in ("sample", "page")),
    *("sample the base", "evaluate a run", "evaluate folders", "convert", "dry run", "env", "entanglement"),
    "compare",
]


@pytest.mark.parametrize("name", [*RUNS, *OPTIMIZERS])
def test_a_run_is_done(found, name):
    needed = NEEDS.get(name) or OF_OPTIMIZER.get(name)
    if not installed(needed):
        pytest.skip(f"{needed} is not installed")
    case = found[name]
    assert case["code"] == 0, case["traceback"] or case["said"]
    assert case["status"]["state"] == "done"
    steps = [line for line in case["phases"] if line["phase"].startswith("step ")]
    assert len(steps) == int(STEPS)
    assert all(line["launches"] > 100 for line in steps), "the steps were not on the card"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_succeeds(found, name):
    case = found[name]
    assert case["code"] == 0, case["traceback"] or case["said"]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_launches_waits_and_copies_no_more_than_its_budget(found, name):
    if not installed(OF_OPTIMIZER.get(name)):
        pytest.skip(f"{OF_OPTIMIZER[name]} is not installed")
    assert problems(last_step(found[name]), BUDGETS[name]) == []


@pytest.mark.parametrize("name", ["AdamW, fp16", "Prodigy", "Adafactor", "AdamWScheduleFree", "SGD"])
def test_an_optimizer_takes_little_more_than_adamw(found, name):
    if not installed(OF_OPTIMIZER.get(name)):
        pytest.skip(f"{OF_OPTIMIZER[name]} is not installed")
    own, least = last_step(found[name]), last_step(found["AdamW"])
    assert own["launches"] < 1.3 * least["launches"]
    assert own["syncs"] <= least["syncs"] + 2


def test_a_step_that_is_read_late_waits_for_an_event_of_the_step_before_and_for_nothing_else(found):
    case = found["late"]
    assert case["code"] == 0, case["traceback"] or case["said"]
    first, second, last = [line for line in case["phases"] if line["phase"].startswith("step ")]
    for line in (first, second, last):
        assert (line["syncs"], line["counters"]["event synchronizations"]) == (1, 1)
    assert first["launches"] > second["launches"] > 2 * last["launches"], "each is read after the next began"
