"""Student's t for the few seeds or subjects of a sweep, where a bootstrap is too narrow."""

import math
import statistics

import torch


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
