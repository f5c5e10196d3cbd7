"""Whole ranks for a given number of parameters, by importance or by the energy they capture."""

import math
from collections.abc import Mapping

from gralora_diffusion.console import counted


def allocate_ranks(
    importances,
    shapes,
    reference_rank: int,
    min_rank: int,
    max_rank: int,
    step: int = 1,
    rounding: str = "exact",
):
    """Ranks in proportion to importance, at the parameters that reference_rank everywhere would have.

    shapes are (M, N).  GoRA, eq. 6-8: r_i = clip(round(b a_i / sqrt(M_i + N_i))) with b = sum sqrt(M_i + N_i)
    reference_rank and a_i = I_i / sum I.  rounding "paper" stops there.  "exact" scales b until the clipped
    ranks need sum (M_i + N_i) reference_rank parameters, and rounds so that they need exactly these.  Ranks
    are multiples of `step`, and never above min(M, N). Raises ValueError when the reference rank is not in
    the range or on the grid, or an importance is negative or not finite.
    """
    if isinstance(importances, Mapping):
        names = list(importances)
        if set(names) != set(shapes):
            raise ValueError("importances and shapes name different layers")
        ranks = allocate_ranks(
            [importances[n] for n in names],
            [shapes[n] for n in names],
            reference_rank,
            min_rank,
            max_rank,
            step,
            rounding,
        )
        return dict(zip(names, ranks, strict=True))
    if not all(math.isfinite(i) and i >= 0 for i in importances):
        raise ValueError("an importance is negative or not finite")
    total = sum(importances)
    roots = [math.sqrt(m + n) for m, n in shapes]
    shares = [i / total if total else 1 / len(shapes) for i in importances]
    wanted = [sum(roots) * reference_rank * a / root for a, root in zip(shares, roots, strict=True)]
    low, high = bounds(shapes, reference_rank, min_rank, max_rank, step)
    if rounding == "paper":
        return [
            clip(step * round(w / step), least, most)
            for w, least, most in zip(wanted, low, high, strict=True)
        ]
    return exact_ranks(wanted, shapes, reference_rank, low, high, step)


def bounds(
    shapes, reference_rank: int, min_rank: int, max_rank: int, step: int
) -> tuple[list[int], list[int]]:
    """The lowest and the highest rank of each layer on the grid of `step`."""
    low = -(-min_rank // step) * step
    high = [min(max_rank, m, n) // step * step for m, n in shapes]
    if not 1 <= low <= reference_rank <= min(high) or reference_rank % step:
        need = f"must be a multiple of {step} from {max(low, 1)} to {min(high)}"
        limits = f"ranks go from {min_rank} to {max_rank}, in steps of {step}"
        narrowest = f"the narrowest layer has {counted(min(map(min, shapes)), 'channel')}"
        raise ValueError(f"the reference rank {reference_rank} {need}: {limits}, and {narrowest}")
    return [low] * len(shapes), high


def clip(value, least, most):
    return max(least, min(most, value))


def exact_ranks(wanted, shapes, reference_rank: int, low, high, step: int = 1) -> list[int]:
    """Whole ranks near a common multiple of `wanted`, within [low, high], that meet the budget exactly.

    The budget is sum (M + N) reference_rank parameters.
    """
    costs = [m + n for m, n in shapes]
    budget = reference_rank * sum(costs)
    layers = range(len(costs))
    floor = 1e-9 * max(wanted)  # a layer that asks for nothing can still take what all others cannot
    wanted = [max(w, floor) for w in wanted]

    def ranks_at(scale: float) -> list[float]:
        return [clip(scale * wanted[i], low[i], high[i]) for i in layers]

    def below_budget(scale: float) -> bool:
        return sum(c * r for c, r in zip(costs, ranks_at(scale), strict=True)) < budget

    # the scale at which the clipped ranks meet the budget, by bisection
    least, most = 0.0, 1.0
    while below_budget(most):
        least, most = most, 2 * most
    for _ in range(100):
        middle = (least + most) / 2
        if below_budget(middle):
            least = middle
        else:
            most = middle
    ideal = ranks_at(most)

    # whole numbers near them, first for all layers of one cost together
    ranks = [0] * len(costs)
    groups = {}
    for cost in sorted(set(costs), reverse=True):
        groups[cost] = [i for i in layers if costs[i] == cost]
    targets = {}
    for cost, mine in groups.items():
        ideal_sum = sum(ideal[i] for i in mine)
        low_sum = sum(low[i] for i in mine)
        high_sum = sum(high[i] for i in mine)
        targets[cost * step] = (ideal_sum / step, low_sum // step, high_sum // step)
    totals = exact_totals(targets, budget)
    for cost, mine in groups.items():
        for i in mine:
            ranks[i] = clip(int(ideal[i] // step) * step, low[i], high[i])
        spare = totals[cost * step] - sum(ranks[i] for i in mine) // step
        while spare:  # by largest remainder, then by what is wanted; once, unless the total was moved
            sign = 1 if spare > 0 else -1
            order = sorted(mine, key=lambda i: (sign * (ranks[i] - ideal[i]), -sign * wanted[i], i))
            free = [i for i in order if low[i] <= ranks[i] + sign * step <= high[i]][: abs(spare)]
            for i in free:
                ranks[i] += sign * step
            spare -= sign * len(free)
    return ranks


def exact_totals(groups: dict[int, tuple[float, int, int]], budget: int) -> dict[int, int]:
    """{cost of one: how many}, near the ideal numbers, that cost exactly `budget` together.

    groups: {cost: (ideal, least, most)}.
    """
    unit = math.gcd(*groups)
    costs = list(groups)
    start = {cost: clip(round(ideal), least, most) for cost, (ideal, least, most) in groups.items()}
    lacking = budget - sum(cost * n for cost, n in start.items())
    window = 1
    while True:
        # {what is still lacking: (distance from the ideal in parameters, changes so far)}
        states = {lacking // unit: (0.0, ())}
        for place, cost in enumerate(costs):
            ideal, least, most = groups[cost]
            reach = window * sum(costs[place + 1 :]) // unit
            found = {}
            for lack, (distance, changes) in states.items():
                lowest = max(-window, least - start[cost])
                highest = min(window, most - start[cost])
                for change in range(lowest, highest + 1):
                    left = lack - change * (cost // unit)
                    far = distance + cost * abs(start[cost] + change - ideal)
                    if abs(left) <= reach and (left not in found or far < found[left][0]):
                        found[left] = far, (*changes, change)
            states = found
        if 0 in states:
            return {cost: start[cost] + change for cost, change in zip(costs, states[0][1], strict=True)}
        window *= 2


def greedy_ranks(gains, shapes, reference_rank: int, min_rank: int, max_rank: int, step: int) -> list[int]:
    """Ranks that capture the most energy for their parameters.

    The next step of rank always goes where it brings the most energy for its cost; then the exact budget is
    met as in exact_ranks().
    """
    low, high = bounds(shapes, reference_rank, min_rank, max_rank, step)
    ranks = list(low)
    spare = sum((m + n) * (reference_rank - least) for (m, n), least in zip(shapes, low, strict=True))

    def gain(i):
        at = ranks[i] // step
        return (gains[i][at] - gains[i][at - 1]) / sum(shapes[i])

    while True:
        open_to = [i for i in range(len(ranks)) if ranks[i] < high[i] and sum(shapes[i]) * step <= spare]
        if not open_to:
            return exact_ranks(ranks, shapes, reference_rank, low, high, step)
        best = max(open_to, key=gain)
        ranks[best] += step
        spare -= sum(shapes[best]) * step
