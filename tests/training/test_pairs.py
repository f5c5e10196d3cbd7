"""Every pair of the options about data, objective and stopping, in a few runs that cover all of them."""

import itertools
import json
import random
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.training.run_folder import read_metrics
from gralora_diffusion.training.train import train

LONG = "a photo of sks robot, " + "with a great many words about it, " * 14
EVERY = dict(validation_steps=1)
CHOICES = {  # {what: {choice: its options}}
    "adapter": {
        "GraLoRA": dict(adapter=AdapterConfig(rank=8, k=2)),
        "LoRA": dict(adapter=AdapterConfig(method="lora", rank=4, dropout=0.1)),
        "T-LoRA": dict(adapter=AdapterConfig(method="lora", rank=4, tlora=True, orthogonal_start="base")),
    },
    "objective": {
        "epsilon": {},
        "flow": dict(prediction_type="flow", flow_shift=2.0),
        "v": dict(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    },
    "masks": {"none": {}, "masked": dict(masked_loss=True, mask_background_weight=0.2)},
    "prior": {"none": {}, "by prediction": dict(prior_by_prediction=True, class_prompt="a photo of a robot")},
    "stop": {
        "at the end": {},
        "loss": EVERY | dict(validation_split=0.3, keep_best="loss", patience=9),
        "score": EVERY | dict(keep_best="score"),
    },
    "noise": {"plain": {}, "pyramid": dict(multires_noise_iterations=4), "offset": dict(noise_offset=0.1)},
    "timesteps": {
        "all": {},
        "some": dict(min_timestep=100, max_timestep=900),
        "dense": dict(timestep_density="logit_normal", logit_mean=0.5),
    },
    "captions": {
        "plain": {},
        "weighted": dict(weighted_captions=True, clip_skip=1),
        "varied": dict(caption_wildcards=True, shuffle_captions=True, caption_dropout=0.3),
    },
    "text encoders": {"frozen": {}, "trained": dict(train_text_encoder=True)},
    "rates": {"one": {}, "by layer": dict(lr_pattern={"attn2": 0.5})},
    "images": {"square": {}, "buckets": dict(use_aspect_ratio_buckets=True, random_flip=True)},
}
Row = dict[str, str]


def pairs_of(row: Row) -> set:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def covering(choices: dict[str, dict]) -> list[Row]:
    """Rows of one choice for each key, so that every two choices of different keys meet in some row."""
    draw = random.Random(0)
    keys = list(choices)
    left = set()
    for one, other in itertools.combinations(keys, 2):
        for pair in itertools.product(choices[one], choices[other]):
            left.add(frozenset(zip((one, other), pair, strict=True)))
    rows = []
    while left:
        tried = []
        for _ in range(200):
            row = dict(draw.choice(sorted(map(sorted, left))))
            for key in keys:
                row.setdefault(key, draw.choice(list(choices[key])))
            tried.append(row)
        best = max(tried, key=lambda row: len(pairs_of(row) & left))
        rows.append(best)
        left -= pairs_of(best)
    return rows


ROWS = covering(CHOICES)


def test_the_rows_cover_all_pairs():
    covered = set().union(*map(pairs_of, ROWS))
    for one, other in itertools.combinations(CHOICES, 2):
        for pair in itertools.product(CHOICES[one], CHOICES[other]):
            assert frozenset(zip((one, other), pair, strict=True)) in covered
    assert len(ROWS) < 30


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images with masks in their alpha channels, and captions of all sorts."""
    folder = tmp_path_factory.mktemp("photos")
    captions = ("a (red:1.3) robot, sks", "{a|one} robot, sks, toy", LONG, "sks robot, [grey]")
    for number, caption in enumerate(captions):
        image = Image.open(EXAMPLE / f"0{number}.png").convert("RGBA").resize((96, 64))
        mask = Image.new("L", image.size)
        mask.paste(255, (20, 10, 70, 60))
        image.putalpha(mask)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_trains_and_resumes_exactly(number, photos, tmp_path):
    options = dict(
        max_train_steps=2,
        train_batch_size=2,
        checkpointing_steps=1,
        num_inference_steps=1,
        validation_prompt="a (robot:1.2)",
        instance_data_dir=str(photos),
        latent_cache_dir=str(photos.parent / f"{photos.name}-cache"),
        output_dir=str(tmp_path / "run"),
    )
    for key, choice in ROWS[number].items():
        options |= CHOICES[key][choice]
    config = TrainConfig(**options)
    run = train(config)
    adapter, losses = load_file(run / "adapter.safetensors"), [line["loss"] for line in read_metrics(run)]
    assert len(losses) == 2
    assert all(tensor.isfinite().all() for tensor in adapter.values())
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-best", ignore_errors=True)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | dict(state="stopped")))
    train(config)
    again = load_file(run / "adapter.safetensors")
    assert [line["loss"] for line in read_metrics(run)] == losses
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)
