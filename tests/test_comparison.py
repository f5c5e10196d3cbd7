"""What a sweep found: intervals, the choice of the learning rate, differences, the table and the plots."""

import statistics

import pytest
from PIL import Image

from gralora_diffusion.comparison import differences
from gralora_diffusion.comparison_plots import plot
from gralora_diffusion.comparison_tables import summary
from gralora_diffusion.students import t_interval


def finished(method, lr, seed, value, part="validation", rank=4, k=None):
    run = dict(method=method, rank=rank, size=rank, k=k, lr=lr, seed=seed, steps=3, part=part)
    costs = dict(parameters=1000 * rank, seconds_per_step=0.1, memory=2**20, file_bytes=4000, losses=[1.0, 0.5, value])
    return dict(run=run, name=f"{method}-{seed}", scores={"paired, X": [value - 0.1, value + 0.1], "held-out loss": [1 - value]}) | costs


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (30, 2.0452)])
def test_students_interval(n, t):
    """Against the printed tables of Student's t at 97.5 %."""
    values = [float(i % 4) for i in range(n)]
    half = t * statistics.stdev(values) / n**0.5
    assert t_interval(values) == pytest.approx((statistics.mean(values) - half, statistics.mean(values) + half), rel=1e-3)
    assert t_interval([1.0]) is None


DONE = [
    *(finished("lora", lr, seed, value + 0.01 * seed) for lr, value in ((1e-3, 0.5), (1e-2, 0.6)) for seed in (0, 1)),
    *(finished("gralora", lr, seed, value + 0.02 * seed, k=2) for lr, value in ((1e-3, 0.8), (1e-2, 0.4)) for seed in (0, 1)),
    *(finished("lora", lr, seed, value, "test") for lr, value in ((1e-3, 0.95), (1e-2, 0.55)) for seed in (0, 1)),
    *(finished("gralora", lr, seed, value + 0.02 * seed, "test", k=2) for lr, value in ((1e-3, 0.7), (1e-2, 0.99)) for seed in (0, 1)),
]


def test_rates_are_chosen_by_validation_and_differences_taken_seed_by_seed():
    validation, test = sorted(differences(DONE, "paired, X", "lora"), key=lambda d: d["part"] == "test")
    assert (validation["lr"], test["lr"]) == (1e-3, 1e-3)  # the test runs' best rate would have been 1e-2
    assert validation["mean"] == pytest.approx(0.205)  # 0.8 - 0.6, 0.82 - 0.61
    assert test["mean"] == pytest.approx(0.16)  # 0.7 - 0.55, 0.72 - 0.55: not the 0.95 of a rate that validation did not choose
    assert test["interval"] == pytest.approx(t_interval([0.15, 0.17]))
    assert test["n"] == 2


def test_a_loss_is_better_when_it_is_lower():
    (found,) = [d for d in differences(DONE, "held-out loss", "lora") if d["part"] == "validation"]
    assert found["mean"] == pytest.approx(-0.205)


def test_the_table_says_everything():
    failed = dict(run=finished("mora", 1.0, 0, 0)["run"], name="mora-0", parameters=7, failed="the loss of step 2 is not finite")
    text = summary([*DONE, failed], "paired, X", ["lora"])
    assert "- mora-0 failed: the loss of step 2 is not finite" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| test") and "+0.1600" in line]
    assert "gralora k2" in line
    assert "the best rate is at the end of those tried: gralora k2 at rank 4 (0.001), lora at rank 4 (0.01)" in text


def test_plots(tmp_path):
    done = [*DONE, *(finished("lora", 1e-2, seed, 0.7, rank=8) for seed in (0, 1))]
    paths = plot(done, "paired, X", tmp_path)
    assert [p.name for p in paths] == ["score-rank.png", "score-parameters.png", "loss.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.convert("L").getextrema() != (255, 255)
