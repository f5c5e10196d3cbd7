"""Runs that must be refused: with one sentence, and before anything is written."""

import dataclasses
import re
from unittest import mock

import pytest

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.training.train import train

QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2), max_train_steps=2, train_batch_size=2, skip_final_inference=True
)


def train_with(**options):
    """A function of (folder, finished run) that trains with these options; {tmp} in a text is the folder."""

    def start(tmp, _):
        given = dict(output_dir=str(tmp / "out" / "run"))
        for name, value in options.items():
            given[name] = value.format(tmp=tmp) if isinstance(value, str) else value
        train(dataclasses.replace(QUICK, **given))

    return start


def assert_refused(row, tmp_path, finished_run, writes: bool = False) -> None:
    """row: (a function of a folder and a finished run, what its error must contain or match)."""
    action, words = row
    with (
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        pytest.raises((ConfigError, TrainingError)) as caught,
    ):
        action(tmp_path, finished_run)
    message = str(caught.value)
    assert re.search(words, message) or words in message, message
    assert message.isprintable()
    assert writes or not (tmp_path / "out").exists()
