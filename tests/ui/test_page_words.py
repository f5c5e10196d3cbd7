"""The trainer's sentences in the words of the page, and the labels of its fields."""

import ast
import re
from pathlib import Path

import pytest

import gralora_diffusion
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import options_of
from gralora_diffusion.ui.config_form import FIELDS
from gralora_diffusion.ui.page_words import FLAG, OPTIONS, page_words

PACKAGE = Path(gralora_diffusion.__file__).parent
WORDS = {
    "--rank is 0; it must be at least 1": "“Rank” is 0; it must be at least 1",
    "drop --compile, or --offload_unet": "clear “Compile the UNet”, or “Offload the UNet to RAM”",
    "keeps them: drop --no-cache_latents": "keeps them: turn on “Keep the latent cache”",
    "free some space, or use --no-cache_latents": "free some space, or clear “Keep the latent cache”",
    "it needs --optimizer AdamW or Prodigy": "it needs “Optimizer: AdamW or Prodigy”",
    "use --adapter gralora": "use “Method: gralora”",
    "give --validation_split 0.1 or --validation_dir": (
        "fill in “Validation split (share): 0.1” or “Validation dataset”"
    ),
    "--max_train_steps and --num_train_epochs both set the length of the run: give one of them": (
        "“Steps” and “Epochs” both set the length of the run: fill in only one of them"
    ),
    "not here; either run once with a network, which caches a/b from the Hugging Face hub, or copy c.json "
    "from a/b into a folder and use --score_encoders dinov2:FOLDER; images of the embedded base can be "
    "scored without either: --score_encoders imagenet,embedded": (
        "not here; run once with a network, which caches a/b from the Hugging Face hub; images of the "
        "embedded base can be scored without it: “Score sample images with” imagenet,embedded"
    ),
    "'--push_to_hub' is no name": "'--push_to_hub' is no name",
    "option 'rank' is 'x'; it must be a whole number": "“Rank” is 'x'; it must be a whole number",
    "choose another --output_dir": "choose another “Name of the run”",
    "{images}/mine/a.png is damaged": "mine/a.png is damaged",
    "images/mine/a.png is damaged": "mine/a.png is damaged",
    "runs/a/allocation.json does not fit": "a/allocation.json does not fit",
    "{home}/.cache/x/y.json cannot be read": "y.json cannot be read",
    "/usr/lib/x/y.so cannot be read": "y.so cannot be read",
    "stopped at step 31 of 90; run the same command to resume from {home}/runs/a/checkpoint-31": (
        "stopped at step 31 of 90; press “Resume” to continue from step 31"
    ),
    "out of memory: run the same command to resume from the newest checkpoint": (
        "out of memory: press “Resume” to continue from the newest checkpoint"
    ),
    "nothing is lost: run the same command to start again": (
        "nothing is lost: press “Resume” to start again"
    ),
    "a hub id such as a/b or 1/2": "a hub id such as a/b or 1/2",
}


@pytest.mark.parametrize("text", WORDS)
def test_words(text, workspace):
    given = text.format(images=workspace.images, home=Path.home())
    assert page_words(given, workspace) == WORDS[text]


def flags_in_messages() -> set[str]:
    """Every flag that is written out in a sentence of the wings that a run goes through."""
    files = [PACKAGE / "checks.py", PACKAGE / "options.py"]
    for wing in ("config", "adapters", "sdxl", "data", "training"):
        files += (PACKAGE / wing).glob("*.py")
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(FLAG.findall(node.value))
    return found


def test_every_flag_in_a_message_has_a_label():
    """But for those of other commands, and of the command line itself."""
    others = {"sheet", "size", "model", "scheduler", "threshold", "to", "upgrade"}
    itself = {"preset", "num_processes", "help", "option", "no"}
    found = {flag for flag in flags_in_messages() if len(flag) > 1}  # --a and --b stand for any
    assert len(found) > 60
    assert found - OPTIONS.keys() <= others | itself


def test_labels_and_hints_are_the_pages_own():
    labels = [option.label for option in options_of(TrainConfig).values()]
    assert len(set(labels)) == len(labels)
    for option in FIELDS.values():
        assert not re.search(r"_|\b(lr|dir|num|max|min|pretrained|picture|learnt)\b", option.label), (
            option.label
        )
        assert not FLAG.search(option.hint), option.hint
        assert "embedded" not in option.hint
