"""Curves: steps to a loss, drift over strengths, and one score against another over learning rates."""

import pytest
from sweeps import DRIFT, PAIRED, at

from gralora_diffusion.experiments.fronts import drift_at_equal_score, mean_height_above, step_at_loss


def test_steps_to_a_loss():
    assert step_at_loss([[0, 1.0], [25, 0.8], [50, 0.9], [75, 0.6]], 0.7) == pytest.approx(50 + 25 * 2 / 3)
    assert step_at_loss([[0, 0.5], [25, 0.8]], 0.7) == 0
    assert step_at_loss([[0, 1.0], [25, 0.8]], 0.7) is None


def drifting(scores, drifts) -> dict:
    """A run's scores at strength 0, 0.5 and 1, and its drifts at the last two."""
    found = {at(PAIRED, strength): [value] for strength, value in zip((0, 0.5, 1), scores, strict=True)}
    found |= {at(DRIFT, strength): [value] for strength, value in zip((0.5, 1), drifts, strict=True)}
    return dict(scores=found)


def test_drift_is_compared_at_the_score_that_both_have():
    base = drifting([0.2, 0.4, 0.5], [0.05, 0.1])
    better = drifting([0.2, 0.5, 0.8], [0.02, 0.3])  # has 0.5 at half strength, with a drift of 0.02
    assert drift_at_equal_score(better, base, PAIRED) == pytest.approx(0.02 - 0.1)
    assert drift_at_equal_score(base, better, PAIRED) == pytest.approx(0.1 - 0.02)
    worse = drifting([0.2, 0.3, 0.45], [0.05, 0.2])
    assert drift_at_equal_score(worse, base, PAIRED) == pytest.approx(0.2 - 0.075)
    below_the_base = [[0.2, 0.1, 0.15], [0.2, 0.15, 0.1]]
    for scores in below_the_base:  # which has no drift
        fallen = drifting(scores, [0.05, 0.2])
        assert drift_at_equal_score(fallen, base, PAIRED) is None
        assert drift_at_equal_score(base, fallen, PAIRED) is None


def test_full_strength_counts_where_higher_ones_are_scored_too():
    base = drifting([0.2, 0.4, 0.5], [0.05, 0.1])
    more = drifting([0.2, 0.4, 0.5], [0.05, 0.1])
    more["scores"] |= {at(PAIRED, 1.5): [0.9], at(DRIFT, 1.5): [0.9]}
    assert drift_at_equal_score(more, base, PAIRED) == pytest.approx(0)


def test_a_front_is_above_another():
    base = [(0.2, 0.9), (0.4, 0.7), (0.6, 0.5)]
    assert mean_height_above([(x, y + 0.1) for x, y in base], base) == pytest.approx(0.1)
    rising = mean_height_above([(0.2, 0.9), (0.5, 0.9)], base)
    assert rising == pytest.approx(0.15)  # from 0 to 0.3 over the scores that both reach
    assert mean_height_above([(0.7, 0.9), (0.8, 0.9)], base) is None
