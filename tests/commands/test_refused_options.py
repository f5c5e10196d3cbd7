"""Options that cannot be used, alone or together."""

import pytest
from helpers import gora
from refusals import assert_refused, train_with

from gralora_diffusion import AdapterConfig
from gralora_diffusion.evaluation.encoders import load_encoder


def train_with_adapter(**options):
    return train_with(adapter=AdapterConfig(**dict(rank=8) | options))


def two_precisions(tmp, _):
    train_with(output_dir="{tmp}/first", max_train_steps=1)(tmp, None)
    train_with(mixed_precision="bf16")(tmp, None)


ROWS = {
    "rank above the layers": (train_with_adapter(rank=65536), "rank is 65536; for this layer"),
    "rank that k does not divide": (
        train_with_adapter(rank=63, k=4),
        "63 is not divisible by k 4; the nearest ranks that fit are 60 and 64",
    ),
    "rank below k": (
        train_with_adapter(rank=2, k=4),
        "2 is not divisible by k 4; the nearest rank that fits is 4, or choose another k",
    ),
    "unknown targets": (
        train_with_adapter(targets="to_nowhere"),
        r"matches no linear layer; layers have names such as attn1\.to_q, attn1\.to_k.*ff\.net\.0\.proj",
    ),
    "targets that are no expression": (train_with_adapter(targets="("), "not a regular expression"),
    "pattern that matches nothing": (train_with_adapter(rank_pattern={"atn2": 8}), "'atn2' matches none"),
    "GoRA's rank below its range": (
        train_with(**gora(8), gora_min_rank=9),
        "--allocate gora cannot meet --rank",
    ),
    "GoRA's rank above its range": (
        train_with(**gora(8), gora_max_rank=4),
        "ranks go from 4 to 4",
    ),
    "GoRA's rank above the layers": (
        train_with(**gora(500)),
        "rank is 500|cannot meet --rank",
    ),
    "ranks off the grid": (
        train_with(adapter=AdapterConfig(rank=8, k=2), allocate="gora", gora_min_rank=9, gora_max_rank=9),
        "in steps of 2",
    ),
    "limits of given ranks": (
        train_with(allocate="uniform", gora_max_rank=9),
        "--gora_max_rank has no effect",
    ),
    "gradients of a quantized base": (
        train_with(base_model_precision="int8-torchao", allocate="gora"),
        "no weights whose gradients can be taken",
    ),
    "fp16 without a GPU": (train_with(mixed_precision="fp16"), "fp16 needs a GPU"),
    "two precisions in one process": (
        two_precisions,
        "used --mixed_precision no before, .* train with bf16 in another process",
    ),
    "a schedule longer than the run": (
        train_with(lr_scheduler="cosine", lr_warmup_steps=9),
        "the run ends after 2 steps",
    ),
    "a folder's name that is none on the hub": (
        train_with(output_dir="{tmp}/out/my dog!", push_to_hub=True),
        "name 'my dog!' cannot be",
    ),
    "a repository's name that is none": (
        train_with(hub_model_id="a/b/c", push_to_hub=True),
        "--hub_model_id 'a/b/c' cannot be",
    ),
    "a token that is none": (
        train_with(hub_token="hf_ x", push_to_hub=True),
        "holds a space, a line break or another character",
    ),
    "unknown encoder": (lambda *_: load_encoder("embeded"), "did you mean 'embedded'"),
}
WRITES = "two precisions in one process"  # its first run is a good one


@pytest.mark.parametrize("name", ROWS)
def test_bad_options_are_refused(name, tmp_path, finished_run):
    assert_refused(ROWS[name], tmp_path, finished_run, writes=name == WRITES)
