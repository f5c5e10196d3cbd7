"""Means, intervals and p values against printed tables, exact sums, and published numbers."""

import math
import statistics

import numpy as np
import pytest
import torch
from scipy import stats

from gralora_diffusion.evaluation.statistics import (
    holm,
    mean_and_interval,
    p_value,
    rate_interval,
    t_interval,
)
from gralora_diffusion.seeding import generator


def test_the_interval_is_scipys_bca_bootstrap():
    values = torch.rand(17, generator=generator(1), dtype=torch.float64)
    found = mean_and_interval(values, seed=5)
    how = dict(method="BCa", n_resamples=10_000, batch=500, rng=np.random.default_rng(5))
    interval = stats.bootstrap((values.numpy(),), np.mean, **how).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert (found["n"], found["mean"], found["sd"]) == (
        17,
        pytest.approx(values.mean().item()),
        pytest.approx(np.std(values.numpy(), ddof=1)),
    )
    assert mean_and_interval(values, seed=5) == found != mean_and_interval(values, seed=6)
    assert mean_and_interval(values[:1]) == dict(n=1, mean=values[0].item(), sd=None, low=None, high=None)


def test_equal_values_have_an_interval_without_width():
    found = mean_and_interval(torch.full((5,), 0.25))
    assert found == dict(n=5, mean=0.25, sd=0.0, low=0.25, high=0.25)


def test_values_of_a_cluster_are_resampled_together():
    """Ten copies of each value say no more than the value."""
    values = torch.rand(12, generator=generator(3), dtype=torch.float64)
    once = mean_and_interval(values)
    names = [f"prompt {number:02d}" for number in range(12) for _ in range(10)]
    copied = mean_and_interval(values.repeat_interleave(10), clusters=names)
    assert copied["n"] == 120
    assert (copied["low"], copied["high"]) == pytest.approx((once["low"], once["high"]), abs=1e-3)
    apart = mean_and_interval(values.repeat_interleave(10))
    assert apart["high"] - apart["low"] < 0.5 * (once["high"] - once["low"])
    one = mean_and_interval(values, clusters=["the same"] * 12)
    assert (one["low"], one["high"]) == (None, None)


def test_clusters_of_different_sizes_keep_the_mean_of_all_values():
    values = torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = mean_and_interval(values, clusters=["a", "a", "a", "b"])
    assert found["mean"] == 0.75
    assert 0 <= found["low"] <= 0.75 <= found["high"] <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    normal = torch.randn(300, 40, generator=generator(2), dtype=torch.float64)
    held = [s["low"] < 0 < s["high"] for row in normal if (s := mean_and_interval(row, resamples=1000))]
    assert (
        0.90 < sum(held) / 300 < 0.98
    )  # 95 %, less the bootstrap's own narrowness at n = 40; the standard error is 1.3 %
    widths = [s["high"] - s["low"] for row in normal[:50] if (s := mean_and_interval(row, resamples=1000))]
    assert sum(widths) / 50 == pytest.approx(2 * 1.96 / math.sqrt(40), rel=0.1)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(42, 42, 0.916, 1), (28, 42, 0.505, 0.804), (0, 42, 0, 0.084), (2900, 3000, 0.960, 0.973)],
)
def test_the_interval_of_a_rate_is_clopper_and_pearsons(hits, n, low, high):
    """Known values, and the binomial summed with exact coefficients: each tail has 2.5 % at its end."""
    found = rate_interval(hits, n)
    assert found == pytest.approx((low, high), abs=5e-4)
    for rate, tail in zip(found, (range(hits, n + 1), range(hits + 1)), strict=True):
        if 0 < rate < 1:
            chances = [
                math.exp(math.log(math.comb(n, k)) + k * math.log(rate) + (n - k) * math.log(1 - rate))
                for k in tail
            ]
            assert math.fsum(chances) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (30, 2.0452)])
def test_students_interval(n, t):
    """Against the printed tables of Student's t at 97.5 %."""
    values = [float(i % 4) for i in range(n)]
    half = t * statistics.stdev(values) / n**0.5
    assert t_interval(values) == pytest.approx(
        (statistics.mean(values) - half, statistics.mean(values) + half), rel=1e-3
    )
    assert t_interval([1.0]) is None


@pytest.mark.parametrize(
    ("t", "n", "p"),
    [(12.7062, 2, 0.05), (2.7764, 5, 0.05), (4.6041, 5, 0.01), (1.5332, 5, 0.2), (1.895, 8, 0.1)],
)
def test_students_p(t, n, p):
    """Against the same tables: values with this t."""
    spread = [(-1) ** i for i in range(n)]
    shift = t * statistics.stdev(spread) / n**0.5 - statistics.mean(spread)
    assert p_value([x + shift for x in spread]) == pytest.approx(p, rel=1e-3)
    assert (p_value([1.0]), p_value([0.0, 0.0]), p_value([1.0, 1.0])) == (None, 1.0, 0.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]


PUBLISHED = [  # values, Student's interval and p as this package computed them before it used scipy
    ([0.1, 0.4], (-1.6559307104, 2.1559307104), 0.34404),
    ([0.02, 0.01, 0.05], (-0.0250448514, 0.0783781848), 0.1567257948),
    ([0.3, -0.1, 0.2, 0.05, 0.11], (-0.0761849987, 0.3001849987), 0.1737911459),
    (
        [1.5, 1.2, -0.3, 0.4, 2.2, 0.9, -1.1, 0.6, 0.7, 0.2],
        (-0.0325833980, 1.2925833980),
        0.0599430856,
    ),
]
RATES = [  # hits, n, Clopper and Pearson's interval, likewise
    (42, 42, 0.9159161450596445, 1.0),
    (28, 42, 0.5045125357367688, 0.8043319519634817),
    (0, 42, 0.0, 0.08408385494035553),
    (2900, 3000, 0.959604712722677, 0.9727980976414018),
    (1, 3, 0.00840375865961196, 0.9057006759497543),
]


@pytest.mark.parametrize(("values", "interval", "p"), PUBLISHED)
def test_students_numbers_are_the_published_ones(values, interval, p):
    """But for the grid of 1e-5 on which they were looked up."""
    assert t_interval(values) == pytest.approx(interval, abs=5e-6)
    assert p_value(values) == pytest.approx(p, abs=5e-6)


@pytest.mark.parametrize(("hits", "n", "low", "high"), RATES)
def test_intervals_of_rates_are_the_published_ones(hits, n, low, high):
    assert rate_interval(hits, n) == pytest.approx((low, high), abs=1e-9)
