"""scripts/tasks.py: images of another task for training alone, its criterion, and what a test can detect."""

import sys

import numpy as np
import pytest
from helpers import SCRIPTS
from PIL import Image
from scipy import stats

from gralora_diffusion.experiments.plan import split
from gralora_diffusion.experiments.results import RESULTS, line_of

sys.path.insert(0, str(SCRIPTS))

import tasks


def test_a_mix_holds_out_the_right_images_and_trains_on_the_wrong(tmp_path):
    for folder, color in (("right", "red"), ("wrong", "blue")):
        (tmp_path / folder).mkdir()
        for number in range(20):
            Image.new("RGB", (64, 64), color).save(tmp_path / folder / f"{number}.png")
            (tmp_path / folder / f"{number}.txt").write_text(f"{color}, number {number}")
    mixed = tasks.mix(tmp_path / "right", tmp_path / "wrong", tmp_path / "state")
    images = tasks.images_of(mixed)
    for part in ("validation", "test"):
        training, held_out = split(images, part)
        assert {image.caption.partition(",")[0] for image in training} == {"blue"}
        assert {image.caption.partition(",")[0] for image in held_out} == {"red"}
        assert {image.open().getpixel((0, 0)) for image in held_out} == {(255, 0, 0)}
    again = [tmp_path / "right", tmp_path / "wrong", tmp_path / "state"]
    assert tasks.mix(*again) == mixed
    Image.new("RGB", (64, 64), "green").save(tmp_path / "wrong" / "0.png")
    assert tasks.mix(*again) != mixed


def entries(task: str, full: float, wrong: float, lora: float = 0.09) -> list[dict]:
    """Made up: a base of .1, and losses of five seeds with a standard deviation of .00158."""
    found = []
    for method, images, loss in (
        ("full", "right", full),
        ("our-lora", "right", lora),
        ("our-lora", "wrong", wrong),
    ):
        for seed in range(2, 7):
            run = dict(part="test", method=method, k=None, rank=16, lr=1e-3, seed=seed, steps=300)
            curve = [[0, 0.1], [300, loss + 0.001 * (seed - 4)]]
            found.append(dict(run=run, curve=curve, task=task, images=images, scores={}))
    return found


@pytest.mark.parametrize(
    ("full", "lora", "wrong", "verdicts"),
    [
        (0.09, 0.09, 0.1, ["yes", "yes"]),
        (0.093, 0.09, 0.1, ["no", "no"]),
        (0.09, 0.09, 0.091, ["no", "no"]),
        (0.08, 0.08, 0.09, ["no", "yes"]),
        (0.08, 0.095, 0.1, ["yes", "no"]),
    ],
)
def test_a_task_must_gain_five_deviations_by_the_right_images_alone_or_more(
    tmp_path, monkeypatch, full, lora, wrong, verdicts
):
    monkeypatch.setattr(tasks, "KEPT", tmp_path)
    lines = map(line_of, entries(tasks.STYLES[0], full, wrong, lora))
    (tmp_path / RESULTS).write_text("".join(lines))
    row = next(line for line in tasks.report().splitlines() if line.startswith(f"| {tasks.STYLES[0]}"))
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == verdicts
    assert f"{1000 * (0.1 - full):.2f}" in row
    assert tasks.learned_styles() == ([tasks.STYLES[0]] if verdicts[1] == "yes" else [])


def test_a_task_without_all_seeds_has_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "KEPT", tmp_path)
    lines = [line_of(entry) for entry in entries(tasks.STYLES[0], 0.09, 0.1)]
    (tmp_path / RESULTS).write_text("".join(lines[1:]))
    assert "| incomplete |" in " ".join(tasks.report().split())


def test_the_detectable_difference_is_detected_with_that_power():
    n = 5
    random = np.random.default_rng(0).normal(tasks.detectable(n), 1, (20_000, n))
    found = stats.ttest_1samp(random, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(tasks.POWER, abs=0.01)
