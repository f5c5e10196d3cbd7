"""Differences of each setting from a baseline, paired by seed or subject, with a verdict."""

import dataclasses
import statistics
from dataclasses import dataclass

from gralora_diffusion.evaluation.metric import Score
from gralora_diffusion.evaluation.statistics import holm, p_value, t_interval
from gralora_diffusion.experiments.budget import EXCESS, TOLERANCE
from gralora_diffusion.experiments.rates import Compared, with_baseline
from gralora_diffusion.experiments.settings import (
    Setting,
    by_setting,
    paired_differences,
    per_run,
    second_score,
)

BEYOND_BUDGET = "beyond the budget"  # in place of a verdict


@dataclass(frozen=True)
class Difference:
    """A setting's score less the baseline's: n units, their mean, Student's interval and p.

    second: the mean difference by the second encoder.  holm: p corrected for all comparisons of the part.
    """

    setting: Setting
    base_lr: float
    n: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    second: float | None
    verdict: str
    holm: float | None = None


def differences_from(done: list[dict], score: Score, baseline: str, unit: str = "seed") -> list[Difference]:
    """Each setting less the baseline of the same rank, part and steps, both at their best rate.

    verdict: see verdict_of(); none for what trains more parameters than the budget allows.
    """
    groups = by_setting(done)
    second = second_score(done, score)
    rows = []
    for compared in with_baseline(done, score, baseline):
        setting, runs, base, base_lr = compared
        values = paired_differences(per_run(runs, score), per_run(base, score), unit)
        if setting.label == baseline or not values:
            continue
        mean = statistics.mean(values)
        others = paired_differences(per_run(runs, second), per_run(base, second), unit) if second else []
        second_mean = statistics.mean(others) if others else None
        interval = t_interval(values)
        verdict = BEYOND_BUDGET
        if not exceeds_budget(compared):
            failed = any("failed" in entry for entry in groups[setting])
            verdict = verdict_of(mean, interval, second_mean, score.metric.sign, failed)
        p = p_value(values)
        rows.append(Difference(setting, base_lr, len(values), mean, interval, p, second_mean, verdict))
    return with_holm(rows)


def exceeds_budget(compared: Compared) -> bool:
    limit = compared.base[0]["parameters"] * (1 + EXCESS) / (1 - TOLERANCE)
    return compared.runs[0]["parameters"] > limit


def verdict_of(mean: float, interval: tuple | None, second: float | None, sign: int, run_failed: bool) -> str:
    """win or loss: the interval excludes zero, the second encoder agrees, and, for a win, no run failed.

    sign: 1 where a higher score is better, else -1.
    """
    if interval is None or interval[0] * interval[1] <= 0:
        return "no difference found"
    if second is not None and mean * second <= 0:
        return "encoders disagree"
    if mean * sign < 0:
        return "loss"
    return "no win: a run failed" if run_failed else "win"


def with_holm(rows: list[Difference]) -> list[Difference]:
    """The rows with Holm's p, of all comparisons of a part that have a p and a verdict."""
    corrected = {}
    for part in {row.setting.part for row in rows}:
        tested = [row for row in rows if row.setting.part == part]
        tested = [row for row in tested if row.p is not None and row.verdict != BEYOND_BUDGET]
        ps = holm([row.p for row in tested])
        corrected |= {row.setting: p for row, p in zip(tested, ps, strict=True)}
    return [dataclasses.replace(row, holm=corrected.get(row.setting)) for row in rows]
