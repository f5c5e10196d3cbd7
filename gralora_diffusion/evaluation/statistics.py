"""Means with their intervals, and tests of a mean against zero."""

import math
import statistics

import numpy as np
import scipy  # whose parts are imported when they are first used: scipy.stats takes half a second
import torch

PART = 500  # resamples computed at once


def mean_and_interval(
    values: torch.Tensor,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 10_000,
    clusters: list[str] | None = None,
) -> dict:
    """n, mean, sample standard deviation, and the interval of the mean by scipy's BCa bootstrap.

    clusters: of each value; those of one cluster are resampled together.  units: what is resampled, the
    clusters or the values.  sd is None for n = 1, low and high for one unit.
    """
    values = values.double().numpy()
    n = len(values)
    if n == 1:
        return dict(n=1, units=1, mean=float(values[0]), sd=None, low=None, high=None)
    places = np.unique(clusters, return_inverse=True)[1] if clusters else np.arange(n)
    sums, counts = np.bincount(places, values), np.bincount(places)
    found = dict(n=n, units=len(sums), mean=float(values.mean()), sd=float(values.std(ddof=1)))
    if len(sums) == 1:
        return found | dict(low=None, high=None)
    means = sums / counts
    if np.ptp(means) == 0:  # where BCa is not defined
        return found | dict(low=found["mean"], high=found["mean"])
    interval = scipy.stats.bootstrap(
        (sums, counts),
        ratio_of_sums,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=PART,
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found | dict(low=float(interval.low), high=float(interval.high))


def ratio_of_sums(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """The mean over all values, from the sums and counts of their clusters."""
    return sums.sum(axis) / counts.sum(axis)


def rate_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of the rate of `hits` in n independent trials."""
    interval = scipy.stats.binomtest(hits, n).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def t_interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean; None for one value."""
    n = len(values)
    if n < 2:
        return None
    mean = statistics.mean(values)
    half = float(scipy.stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


def p_value(values: list[float]) -> float | None:
    """Student's two-sided p for a mean of zero; None for one value."""
    n = len(values)
    if n < 2:
        return None
    mean = statistics.mean(values)
    spread = statistics.stdev(values)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(scipy.stats.t.sf(abs(mean) / spread * math.sqrt(n), n - 1))


def holm(ps: list[float]) -> list[float]:
    """Holm's corrected p of each.

    The smallest is multiplied by their number, the next by one less, and none is below an earlier one.
    """
    corrected = [0.0] * len(ps)
    highest = 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, ps[i] * (len(ps) - place)))
        corrected[i] = highest
    return corrected
