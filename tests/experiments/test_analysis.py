"""Differences from a baseline and their verdicts."""

import pytest
from sweeps import COPY, DONE, PAIRED, failed, finished

from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.evaluation.statistics import holm, t_interval
from gralora_diffusion.experiments.analysis import differences_from
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS
from gralora_diffusion.experiments.tables import sweep_report


def test_rates_are_chosen_by_validation_and_differences_taken_seed_by_seed():
    found = {d.setting.part: d for d in differences_from(DONE, PAIRED, "lora")}
    validation, test = found["validation"], found["test"]
    assert (validation.setting.lr, test.setting.lr) == (1e-3, 1e-3)  # the tests' best rate would be 1e-2
    assert validation.mean == pytest.approx(0.205)  # 0.8 - 0.6, 0.82 - 0.61
    assert test.mean == pytest.approx(0.16)  # 0.7 - 0.55, 0.72 - 0.55; 0.95 is of a rate that was not chosen
    assert test.interval == pytest.approx(t_interval([0.15, 0.17]))
    assert test.n == 2


def test_a_loss_is_better_when_it_is_lower():
    (found,) = [d for d in differences_from(DONE, HELD_OUT_LOSS, "lora") if d.setting.part == "validation"]
    assert found.mean == pytest.approx(-0.205)


def runs_of(method, values, second=None, **more) -> list[dict]:
    """A test run for each value, with a second encoder's score."""
    runs = [finished(method, 1e-3, seed, value, "test", **more) for seed, value in enumerate(values)]
    for entry, value in zip(runs, second or values, strict=True):
        entry["scores"][Score(METRICS["paired"], "Y")] = [value]
    return runs


def test_a_win_needs_the_interval_both_encoders_and_no_failure():
    better, worse, unclear = ([0.6, 0.612, 0.621], [0.4, 0.41, 0.42], [0.4, 0.8, 0.6])
    done = runs_of("lora", [0.5, 0.51, 0.52])
    done += runs_of("rslora", better)
    done += runs_of("dora", better, worse)
    done += runs_of("vera", unclear)
    done += runs_of("loha", worse)
    done += runs_of("oft", better)
    done.append(failed("oft", 1e-3, 3, "test"))
    found = differences_from(done, PAIRED, "lora")
    assert {d.setting.method: d.verdict for d in found} == dict(
        rslora="win",
        dora="encoders disagree",
        vera="no difference found",
        loha="loss",
        oft="no win: a run failed",
    )
    by_loss = {d.setting.method: d.verdict for d in differences_from(done, HELD_OUT_LOSS, "lora")}
    assert by_loss["loha"] == "loss"
    assert [d.holm for d in found] == holm([d.p for d in found])


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.higher_is_better])
def test_less_copying_drift_and_loss_wins(name):
    score = Score(METRICS[name], "" if score_of_training(name) else "X")
    done = []
    for method, values in dict(lora=[0.5, 0.51, 0.52], loha=[0.4, 0.41, 0.42], oft=[0.6, 0.61, 0.62]).items():
        for entry in runs_of(method, values):
            entry["scores"] = {score: entry["scores"][PAIRED]}
            done.append(entry)
    verdicts = {d.setting.method: d.verdict for d in differences_from(done, score, "lora")}
    assert verdicts == dict(loha="win", oft="loss")


def score_of_training(name: str) -> bool:
    return not METRICS[name].needs


def test_the_rate_that_copies_least_is_the_best():
    done = []
    for lr, value in ((1e-3, 0.7), (1e-2, 0.5)):
        done.append(finished("lora", lr, 0, 0) | dict(scores={COPY: [value]}))
    assert "| validation | lora" in sweep_report(done, COPY, ["lora"])
    assert "at an end of the range tried: lora at rank 4 (0.01)" in sweep_report(done, COPY, ["lora"])


def test_the_baseline_may_have_a_k():
    done = [finished("gralora", 1e-3, seed, 0.1 * k, "test", k=k) for seed in (0, 1) for k in (1, 2, 4)]
    found = differences_from(done, PAIRED, "gralora k1")
    assert {d.setting.label: round(d.mean, 3) for d in found} == {"gralora k2": 0.1, "gralora k4": 0.3}


def test_subjects_are_the_unit():
    """Two subjects of three seeds are two numbers; a seed that one side lacks counts for neither."""
    values = {"cat": 0.1, "dog": 0.3}
    done = []
    for subject, gain in values.items():
        done += [finished("lora", 1e-3, seed, 0.5, subject=subject) for seed in range(3)]
        done += [finished("oft", 1e-3, seed, 0.5 + gain + 0.01 * seed, subject=subject) for seed in range(2)]
    (found,) = differences_from(done, PAIRED, "lora", "subject")
    assert (found.n, found.mean) == (2, pytest.approx(0.205))
    assert found.interval == pytest.approx(t_interval([0.105, 0.305]))
    (by_seed,) = differences_from(done, PAIRED, "lora", "seed")
    assert by_seed.interval == pytest.approx(t_interval([0.2, 0.21]))


def test_what_trains_more_than_the_budget_gets_no_verdict():
    done = []
    for method, value, parameters in (("lora", 0.5, 1000), ("full", 0.9, 9000)):
        for seed in (0, 1):
            entry = finished(method, 1e-3, seed, value + seed / 100, "test")
            done.append(entry | dict(parameters=parameters))
    (row,) = differences_from(done, PAIRED, "lora")
    assert (row.verdict, row.holm) == ("beyond the budget", None)  # nor does it count among the comparisons
    assert "| beyond the budget |" in sweep_report(done, PAIRED, ["lora"])
