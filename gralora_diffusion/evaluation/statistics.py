"""Means with their intervals, and tests of a mean against zero."""

import math
import statistics

import torch
from scipy import stats

from gralora_diffusion.seeding import generator

PART = 500  # resamples computed at once


def mean_and_interval(
    values: torch.Tensor, seed: int = 0, level: float = 0.95, resamples: int = 10_000
) -> dict:
    """n, mean, sample standard deviation, and the percentile bootstrap's interval of the mean.

    sd, low, high are None for n = 1.  Resampled here and not by scipy.stats.bootstrap, whose generator gives
    other intervals than those that have been published with this seed.
    """
    values = values.double()
    n = len(values)
    if n == 1:
        return dict(n=1, mean=values.item(), sd=None, low=None, high=None)
    random = generator(seed, 101)
    parts = []
    for start in range(0, resamples, PART):
        index = torch.randint(n, (min(PART, resamples - start), n), generator=random)
        parts.append(values[index].mean(1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(parts).quantile(ends).tolist()
    return dict(n=n, mean=values.mean().item(), sd=values.std().item(), low=low, high=high)


def rate_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of the rate of `hits` in n independent trials."""
    interval = stats.binomtest(hits, n).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def t_interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean; None for one value."""
    n = len(values)
    if n < 2:
        return None
    mean = statistics.mean(values)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
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
    return 2 * float(stats.t.sf(abs(mean) / spread * math.sqrt(n), n - 1))


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
