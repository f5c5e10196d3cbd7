"""Curves of runs: loss over steps, drift over strengths, and fronts of two scores over learning rates."""

import itertools
import statistics

from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.experiments.settings import pairing_key

Point = tuple[float, float]
PLACES = 200  # at which two fronts are compared


def height_at(points: list[Point], x: float) -> float:
    """y at x on the straight lines through these points, in order of x; the end's y beyond an end."""
    points = sorted(points)
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def step_at_loss(curve: list[list[float]], loss: float) -> float | None:
    """The step at which a curve of [step, loss], of straight lines, first has this loss; None for never."""
    if curve[0][1] <= loss:
        return curve[0][0]
    for (step0, loss0), (step1, loss1) in itertools.pairwise(curve):
        if loss1 <= loss:
            return step0 + (step1 - step0) * (loss0 - loss) / (loss0 - loss1)
    return None


def drift_by_same_encoder(score: Score) -> Score:
    return Score(METRICS["drift"], score.encoder)


def drift_at_equal_score(entry: dict, base: dict, score: Score) -> float | None:
    """A run's drift less the baseline run's, at the best score that both have, over strengths from 0 on.

    None where one of them scores no better than the base itself, which has no drift.
    """
    curves = [drift_over_score(run["scores"], score) for run in (entry, base)]
    at_full_strength = [score.metric.sign * statistics.mean(run["scores"][score]) for run in (entry, base)]
    limit = min(at_full_strength)
    if limit <= curves[0][0][0]:
        return None
    drifts = [height_at(first_crossing(curve, limit), limit) for curve in curves]
    return drifts[0] - drifts[1]


def drift_over_score(scores: dict[Score, list[float]], score: Score) -> list[Point]:
    """(score, drift) at each strength, the base's first; the score with a sign, so that higher is better."""
    drift = drift_by_same_encoder(score)
    strengths = {s.strength for s in scores if (s.metric, s.encoder) == (score.metric, score.encoder)}
    points = []
    for strength in sorted(strengths):
        values = scores[Score(score.metric, score.encoder, strength)]
        height = 0.0
        if strength:
            height = statistics.mean(scores[Score(drift.metric, drift.encoder, strength)])
        points.append((score.metric.sign * statistics.mean(values), height))
    return points


def first_crossing(curve: list[Point], x: float) -> list[Point]:
    """The first two neighbors that x is between."""
    return next(list(pair) for pair in itertools.pairwise(curve) if pair[0][0] <= x <= pair[1][0])


def front_of(runs: list[dict], score: Score, other: Score, unit: str) -> dict[tuple, list[Point]]:
    """{(subject, seed): its points (score, other)}: the base's, where it was scored, then by learning rate.

    With subjects as the unit a point is the mean over the seeds, and the seed of the key is None.
    """
    base = Score(score.metric, score.encoder, 0.0), Score(other.metric, other.encoder, 0.0)
    points = {}
    for entry in runs:
        scores = entry.get("scores", {})
        if score not in scores:
            continue
        subject, seed = pairing_key(entry)
        key = subject, None if unit == "subject" else seed
        for place, (x, y) in ((entry["run"]["lr"], (score, other)), (0, base)):
            if x in scores and y in scores:
                point = statistics.mean(scores[x]), statistics.mean(scores[y])
                points.setdefault((place, key), []).append(point)
    fronts = {}
    for (_, key), group in sorted(points.items(), key=lambda item: item[0][0]):
        fronts.setdefault(key, []).append(mean_point(group))
    return fronts


def mean_point(points: list[Point]) -> Point:
    return statistics.mean(x for x, _ in points), statistics.mean(y for _, y in points)


def mean_height_above(front: list[Point], base: list[Point]) -> float | None:
    """How much higher one front is than another, on average over the x that both cover; None without any."""
    covered = [[x for x, _ in front], [x for x, _ in base]]
    low, high = max(map(min, covered)), min(map(max, covered))
    if low >= high:
        return None
    places = [low + (high - low) * (i + 0.5) / PLACES for i in range(PLACES)]
    return statistics.mean(height_at(front, x) - height_at(base, x) for x in places)
