"""Means with their intervals, and tests of a mean against zero."""

import math
import statistics

import torch

from gralora_diffusion.seeding import generator


def summary(values: torch.Tensor, seed: int = 0, level: float = 0.95, resamples: int = 10_000) -> dict:
    """n, mean, sample standard deviation, and the percentile bootstrap's interval of the mean; sd, low, high are None for n = 1."""
    values, n = values.double(), len(values)
    if n == 1:
        return dict(n=1, mean=values.item(), sd=None, low=None, high=None)
    random = generator(seed, 101)
    means = torch.cat(
        [
            values[torch.randint(n, (min(500, resamples - i), n), generator=random)].mean(1)
            for i in range(0, resamples, 500)
        ]
    )
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return dict(n=n, mean=values.mean().item(), sd=values.std().item(), low=low, high=high)


def rate_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of the rate of `hits` in n independent trials (Biometrika 26, 1934): each tail has (1 - level) / 2."""

    def lower(hits: int) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            rate = torch.tensor((low + high) / 2, dtype=torch.float64)
            tail = (
                torch.distributions.Binomial(n, rate)
                .log_prob(torch.arange(hits, n + 1, dtype=torch.float64))
                .exp()
                .sum()
            )
            low, high = (rate.item(), high) if tail < (1 - level) / 2 else (low, rate.item())
        return low

    return lower(hits), 1 - lower(n - hits)


def area(nu: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, P(|T| <= tan x)) for T with nu degrees of freedom: after t = sqrt(nu) tan x the density is cos^(nu - 1) x."""
    x = torch.linspace(0, math.pi / 2, 200_001, dtype=torch.float64)
    summed = torch.cumulative_trapezoid(x.cos() ** (nu - 1), x)
    return x[1:], summed / summed[-1]


def t_interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """The interval of the mean; None for one value."""
    n = len(values)
    if n < 2:
        return None
    x, inside = area(n - 1)
    t = math.sqrt(n - 1) * math.tan(x[int(torch.searchsorted(inside, level))].item())
    half = t * statistics.stdev(values) / math.sqrt(n)
    return statistics.mean(values) - half, statistics.mean(values) + half


def p_value(values: list[float]) -> float | None:
    """Two-sided, for a mean of zero; None for one value."""
    n = len(values)
    if n < 2:
        return None
    spread = statistics.stdev(values)
    if spread == 0:
        return 1.0 if statistics.mean(values) == 0 else 0.0
    x, inside = area(n - 1)
    angle = math.atan(abs(statistics.mean(values)) / (spread / math.sqrt(n)) / math.sqrt(n - 1))
    return 1 - inside[min(int(torch.searchsorted(x, angle)), len(x) - 1)].item()


def holm(ps: list[float]) -> list[float]:
    """Holm's corrected p of each: the smallest is multiplied by their number, the next by one less, and none is below an earlier one."""
    order, corrected, most = sorted(range(len(ps)), key=ps.__getitem__), [0.0] * len(ps), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, ps[i] * (len(ps) - place)))
        corrected[i] = most
    return corrected
