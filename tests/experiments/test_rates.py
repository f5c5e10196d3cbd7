"""The choice of learning rates by validation runs, and of a score by its name."""

import pytest
from sweeps import COPY, DONE, PAIRED, failed, finished

from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.experiments.rates import at_best_rate, tuned
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS, choose_score, second_score
from gralora_diffusion.options import ConfigError


def best_rates(done, score=PAIRED) -> dict:
    """{part: the rate that is best in it}"""
    return {setting.part: setting.lr for setting in at_best_rate(done, score)}


def test_rates_come_from_the_whole_method_and_from_other_sweeps():
    done = [finished("gralora-gora", lr, 100, value) for lr, value in ((1e-3, 0.8), (1e-2, 0.4))]
    runs = []
    for method in ("gralora-gora", "gralora-inverse"):
        runs += [finished(method, lr, 0, 0, "test")["run"] for lr in (1e-3, 1e-2)]
    kept = tuned(runs, done, None, False)
    assert [(run["method"], run["lr"]) for run in kept] == [
        ("gralora-gora", 1e-3),
        ("gralora-inverse", 1e-3),
    ]
    assert {run["lr"] for run in tuned(runs, done, HELD_OUT_LOSS, False)} == {1e-3}
    others = [run | dict(setting="other", steps=9) for run in runs]
    with pytest.raises(ConfigError, match="no finished runs"):
        tuned(others, done, None, False)
    assert [run["lr"] for run in tuned(others, done, None, True)] == [1e-3, 1e-3]
    with pytest.raises(ConfigError, match="gora at rank 4 has no validation runs"):
        tuned([finished("gora", 1e-3, 0, 0)["run"]], done, None, True)
    with pytest.raises(
        ConfigError, match=r"gralora-gora at rank 4 is best at the rate 0\.001: add it to --lrs"
    ):
        tuned([run for run in runs if run["lr"] == 1e-2], done, None, False)
    report = [*done, *(finished("gralora-gora", 1e-2, seed, 0.5, "test") for seed in (0, 1))]
    assert best_rates(report) == {"validation": 1e-3, "test": 1e-2}


def test_rates_are_compared_over_the_seeds_that_all_of_them_have():
    done = [finished("lora", 1e-3, seed, value) for seed, value in ((0, 0.5), (1, 0.9))]
    done += [finished("lora", 1e-2, seed, value) for seed, value in ((0, 0.6), (2, 0.2))]
    done += [finished("lora", 1e-1, 0, 0.7)]  # not compared until it has as many
    assert best_rates(done) == {"validation": 1e-2}
    with pytest.raises(ConfigError, match=r"lora at rank 4: no subject and seed .* the rates 0\.001, 0\.01"):
        at_best_rate([done[1], done[3]], PAIRED)


def test_a_rate_at_which_a_run_failed_is_worse_than_any_at_which_none_did():
    """Though its other runs, as many as those of the sound rate, score higher."""
    done = [finished("lora", 1e-3, seed, 0.5) for seed in (0, 1)]
    done += [finished("lora", 1e-2, seed, 0.9) for seed in (0, 1)]
    assert best_rates(done) == {"validation": 1e-2}
    done.append(failed("lora", 1e-2, 2))
    assert best_rates(done) == {"validation": 1e-3}
    done.append(failed("lora", 1e-3, 2))
    assert best_rates(done) == {"validation": 1e-2}  # no rate is sound


def test_the_failure_of_a_test_run_does_not_choose_its_rate():
    done = [finished("lora", lr, 0, value) for lr, value in ((1e-3, 0.5), (1e-2, 0.9))]
    done += [finished("lora", lr, 0, 0.5, "test") for lr in (1e-3, 1e-2)]
    done.append(failed("lora", 1e-2, 1, "test"))
    assert best_rates(done) == {"validation": 1e-2, "test": 1e-2}


def test_tests_at_several_rates_need_validation():
    with pytest.raises(ConfigError, match="gralora k2 at rank 4 has test runs at several rates"):
        at_best_rate([entry for entry in DONE if entry["run"]["part"] == "test"], PAIRED)


def test_an_option_names_a_score_by_its_metric_or_in_full():
    other = Score(METRICS["copy"], "Y")
    done = [finished("lora", 1e-3, 0, 0.5) | dict(scores={PAIRED: [0.5], COPY: [0.5], other: [0.5]})]
    assert choose_score(done) == PAIRED
    assert choose_score(done, "copy") == COPY
    assert choose_score(done, "copy, Y") == other
    assert second_score(done, COPY) == other
    assert second_score(done, PAIRED) is None
    with pytest.raises(ConfigError, match="no run has the score 'promt, Y'; known: copy, X; copy, Y; paired"):
        choose_score(done, "promt, Y")
    with pytest.raises(ConfigError, match="no finished runs"):
        choose_score([])
