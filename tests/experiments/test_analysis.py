"""What a sweep found: intervals, the choice of the learning rate, differences, fronts, the tables and the plots."""

import itertools

import pytest
from PIL import Image

from gralora_diffusion.evaluation.statistics import holm, p_value, t_interval
from gralora_diffusion.experiments.analysis import (
    above,
    at_best_rate,
    blocks,
    differences,
    drift_at_equal_score,
    in_short,
    reached,
    tuned,
)
from gralora_diffusion.experiments.plots import plot
from gralora_diffusion.experiments.tables import summary
from gralora_diffusion.options import ConfigError


def finished(method, lr, seed, value, part="validation", rank=4, k=None, **more):
    run = dict(
        method=method, rank=rank, size=rank, k=k, lr=lr, seed=seed, steps=3, part=part, setting="s", **more
    )
    costs = dict(
        parameters=1000 * rank,
        seconds_per_step=0.1,
        peak_memory=2**20,
        file_bytes=4000,
        losses=[1.0, 0.5, value],
    )
    return (
        dict(
            run=run,
            name=f"{method}-{seed}",
            scores={"paired, X": [value - 0.1, value + 0.1], "held-out loss": [1 - value]},
        )
        | costs
    )


def test_ranks_and_rates_are_paired_seed_by_seed():
    """Neighbours, the later less the earlier, by hand; rates of tests alone."""
    done = [finished("lora", 1e-3, seed, v, "test") for seed, v in enumerate((0.5, 0.6, 0.4))]
    done += [finished("lora", 3e-3, seed, v, "test") for seed, v in enumerate((0.52, 0.61, 0.45))]
    done += [finished("lora", 1e-3, seed, v, rank=8) for seed, v in enumerate((0.7, 0.9))] + [
        finished("lora", 1e-3, 0, 0.6)
    ]
    low, high = t_interval([0.02, 0.01, 0.05])
    cells = [
        line.replace(" ", "")
        for line in summary(done + [finished("lora", 1e-3, 1, 0.5)], "paired, X", ["lora"]).splitlines()
    ]
    assert (
        f"|lora|4|0.001to0.003|3|+0.0267|{low:+.4f}to{high:+.4f}|{p_value([0.02, 0.01, 0.05]):.3f}|" in cells
    )
    low, high = t_interval([0.1, 0.4])
    assert f"|validation|lora|4to8|2|+0.2500|{low:+.4f}to{high:+.4f}|{p_value([0.1, 0.4]):.3f}|" in cells


DONE = [
    *(
        finished("lora", lr, seed, value + 0.01 * seed)
        for lr, value in ((1e-3, 0.5), (1e-2, 0.6))
        for seed in (0, 1)
    ),
    *(
        finished("gralora", lr, seed, value + 0.02 * seed, k=2)
        for lr, value in ((1e-3, 0.8), (1e-2, 0.4))
        for seed in (0, 1)
    ),
    *(
        finished("lora", lr, seed, value, "test")
        for lr, value in ((1e-3, 0.95), (1e-2, 0.55))
        for seed in (0, 1)
    ),
    *(
        finished("gralora", lr, seed, value + 0.02 * seed, "test", k=2)
        for lr, value in ((1e-3, 0.7), (1e-2, 0.99))
        for seed in (0, 1)
    ),
]


def test_rates_are_chosen_by_validation_and_differences_taken_seed_by_seed():
    validation, test = sorted(differences(DONE, "paired, X", "lora"), key=lambda d: d["part"] == "test")
    assert (validation["lr"], test["lr"]) == (1e-3, 1e-3)  # the test runs' best rate would have been 1e-2
    assert validation["mean"] == pytest.approx(0.205)  # 0.8 - 0.6, 0.82 - 0.61
    assert test["mean"] == pytest.approx(
        0.16
    )  # 0.7 - 0.55, 0.72 - 0.55: not the 0.95 of a rate that validation did not choose
    assert test["interval"] == pytest.approx(t_interval([0.15, 0.17]))
    assert test["n"] == 2


def test_a_loss_is_better_when_it_is_lower():
    (found,) = [d for d in differences(DONE, "held-out loss", "lora") if d["part"] == "validation"]
    assert found["mean"] == pytest.approx(-0.205)


def test_the_table_says_everything():
    failed = dict(
        run=finished("mora", 1.0, 0, 0)["run"],
        name="mora-0",
        parameters=7,
        failed="the loss of step 2 is not finite",
    )
    text = summary([*DONE, failed], "paired, X", ["lora"])
    assert "- mora-0 failed: the loss of step 2 is not finite" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| test") and "+0.1600" in line]
    assert "gralora k2" in line
    assert (
        "the best rate is at the end of those tried: gralora k2 at rank 4 (0.001), lora at rank 4 (0.01)"
        in text
    )


def test_a_win_needs_the_interval_both_encoders_and_no_failure():
    def runs(method, values, second=None, **more):
        made = [finished(method, 1e-3, seed, value, "test", **more) for seed, value in enumerate(values)]
        for entry, value in zip(made, second or values, strict=True):
            entry["scores"]["paired, Y"] = [value]
        return made

    base = runs("lora", [0.5, 0.51, 0.52])
    better, unlike, unclear = ([0.6, 0.612, 0.621], [0.4, 0.41, 0.42], [0.4, 0.8, 0.6])
    done = [
        *base,
        *runs("rslora", better),
        *runs("dora", better, unlike),
        *runs("vera", unclear),
        *runs("loha", unlike),
        *runs("oft", better),
    ]
    done.append(
        dict(run=finished("oft", 1e-3, 3, 0, "test")["run"], name="oft-3", parameters=1, failed="not finite")
    )
    verdicts = {d["method"]: d["verdict"] for d in differences(done, "paired, X", "lora")}
    assert verdicts == dict(
        rslora="win",
        dora="encoders disagree",
        vera="no difference found",
        loha="loss",
        oft="no win: a run failed",
    )
    assert {d["method"]: d["verdict"] for d in differences(done, "held-out loss", "lora")}["loha"] == "loss"
    assert [d["holm"] for d in differences(done, "paired, X", "lora")] == holm(
        [d["p"] for d in differences(done, "paired, X", "lora")]
    )


def test_the_baseline_may_have_a_k():
    done = [finished("gralora", 1e-3, seed, 0.1 * k, "test", k=k) for seed in (0, 1) for k in (1, 2, 4)]
    assert [(d["method"], round(d["mean"], 3)) for d in differences(done, "paired, X", "gralora k1")] == [
        ("gralora k2", 0.1),
        ("gralora k4", 0.3),
    ]


def test_subjects_are_the_unit():
    """Two subjects of three seeds are two numbers; a seed that one side lacks counts for neither."""
    values = {"cat": 0.1, "dog": 0.3}
    done = [finished("lora", 1e-3, seed, 0.5, subject=s) for s in values for seed in range(3)]
    done += [
        finished("oft", 1e-3, seed, 0.5 + gap + 0.01 * seed, subject=s)
        for s, gap in values.items()
        for seed in range(2)
    ]
    (found,) = differences(done, "paired, X", "lora", "subject")
    assert (found["n"], found["mean"]) == (2, pytest.approx(0.205))
    assert found["interval"] == pytest.approx(t_interval([0.105, 0.305]))
    assert differences(done, "paired, X", "lora", "seed")[0]["interval"] == pytest.approx(
        t_interval([0.2, 0.21])
    )


def test_what_trains_more_than_the_budget_gets_no_verdict():
    done = [
        finished(method, 1e-3, seed, value + seed / 100, "test")
        for method, value in (("lora", 0.5), ("full", 0.9))
        for seed in (0, 1)
    ]
    done = [d | dict(parameters=1000 * (9 if d["run"]["method"] == "full" else 1)) for d in done]
    (row,) = differences(done, "paired, X", "lora")
    assert (row["verdict"], "holm" in row) == (
        "beyond the budget",
        False,
    )  # nor does it count among the comparisons
    assert "| beyond the budget |" in summary(done, "paired, X", ["lora"])


def test_rates_come_from_the_head_of_the_family_and_from_other_sweeps():
    done = [finished("gralora-gora", lr, 100, value) for lr, value in ((1e-3, 0.8), (1e-2, 0.4))]
    runs = [
        finished(m, lr, 0, 0, "test")["run"]
        for m in ("gralora-gora", "gralora-inverse")
        for lr in (1e-3, 1e-2)
    ]
    assert {(run["method"], run["lr"]) for run in tuned(runs, done, None, False)} == {
        ("gralora-gora", 1e-3),
        ("gralora-inverse", 1e-3),
    }
    assert {run["lr"] for run in tuned(runs, done, "held-out loss", False)} == {1e-3}
    others = [run | dict(setting="other", steps=9) for run in runs]
    with pytest.raises(ConfigError, match="no finished runs"):
        tuned(others, done, None, False)
    assert [run["lr"] for run in tuned(others, done, None, True)] == [1e-3, 1e-3]
    with pytest.raises(ConfigError, match="gora at rank 4 has no validation runs"):
        tuned([finished("gora", 1e-3, 0, 0)["run"]], done, None, True)
    report = [*done, *(finished("gralora-gora", 1e-2, seed, 0.5, "test") for seed in (0, 1))]
    assert {key[0]: runs[0]["run"]["lr"] for key, runs in at_best_rate(report, "paired, X").items()} == {
        "validation": 1e-3,
        "test": 1e-2,
    }


def test_rates_are_compared_over_the_seeds_that_all_of_them_have():
    done = [finished("lora", 1e-3, seed, value) for seed, value in ((0, 0.5), (1, 0.9))]
    done += [finished("lora", 1e-2, seed, value) for seed, value in ((0, 0.6), (2, 0.2))]
    done += [finished("lora", 1e-1, 0, 0.7)]  # waits until it has as many
    (runs,) = at_best_rate(done, "paired, X").values()
    assert {r["run"]["lr"] for r in runs} == {1e-2}
    with pytest.raises(
        ConfigError, match=r"lora at rank 4: no subject and seed has runs at all of the rates 0\.001, 0\.01"
    ):
        at_best_rate([done[1], done[3]], "paired, X")


def test_steps_to_a_loss():
    assert reached([[0, 1.0], [25, 0.8], [50, 0.9], [75, 0.6]], 0.7) == pytest.approx(50 + 25 * 2 / 3)
    assert reached([[0, 0.5], [25, 0.8]], 0.7) == 0
    assert reached([[0, 1.0], [25, 0.8]], 0.7) is None


def drifting(scores, drifts):
    """A run's scores at strength 0, 0.5 and 1."""
    names = [" at 0", " at 0.5", ""]
    found = {f"paired, X{name}": [value] for name, value in zip(names, scores, strict=True)}
    return dict(
        scores=found | {f"drift, X{name}": [value] for name, value in zip(names[1:], drifts, strict=True)}
    )


def test_drift_is_compared_at_the_score_that_both_have():
    base = drifting([0.2, 0.4, 0.5], [0.05, 0.1])
    better = drifting([0.2, 0.5, 0.8], [0.02, 0.3])  # has 0.5 at half strength, with a drift of 0.02
    assert drift_at_equal_score(better, base, "paired, X") == pytest.approx(0.02 - 0.1)
    assert drift_at_equal_score(base, better, "paired, X") == pytest.approx(0.1 - 0.02)
    worse = drifting([0.2, 0.3, 0.45], [0.05, 0.2])
    assert drift_at_equal_score(worse, base, "paired, X") == pytest.approx(0.2 - 0.075)
    for fallen in (
        drifting([0.2, 0.1, 0.15], [0.05, 0.2]),
        drifting([0.2, 0.15, 0.1], [0.05, 0.2]),
    ):  # below the base, which has no drift
        assert drift_at_equal_score(fallen, base, "paired, X") is None
        assert drift_at_equal_score(base, fallen, "paired, X") is None


def test_a_front_lies_above_another():
    base = [(0.2, 0.9), (0.4, 0.7), (0.6, 0.5)]
    assert above([(x, y + 0.1) for x, y in base], base) == pytest.approx(0.1)
    assert above([(0.2, 0.9), (0.5, 0.9)], base) == pytest.approx(
        0.15
    )  # from 0 to 0.3 over the scores that both reach
    assert above([(0.7, 0.9), (0.8, 0.9)], base) is None


def test_the_report_of_subjects_has_their_front(tmp_path):
    done = []
    for (subject, gap), seed, (lr, x) in itertools.product(
        (("cat", 0.1), ("dog", 0.2), ("can", 0.15)), (0, 1), ((1e-3, 0.4), (1e-2, 0.6))
    ):
        for method, more in (("lora", 0), ("oft", gap)):
            entry = finished(method, lr, seed, x, subject=subject)
            entry["scores"] = {
                "subject, X": [x],
                "subject, X at 0": [0.2],
                "prompt, Y": [1 - x + more],
                "prompt, Y at 0": [0.8],
            }
            entry["scores"]["drift, X"] = [x / 10 + more]
            done.append(entry)
    text = summary(done, "subject, X", ["lora"], "subject", "prompt, Y")
    assert "- validation: the base itself, with no adapter, scores 0.2000" in text
    (line,) = [line for line in text.partition("Prompt, Y at equal score")[2].splitlines() if "oft" in line]
    assert " of 1 |" in line
    assert (
        "| +0.1125 |" in line
    )  # three quarters of the gap: none at the base, all of it from the first rate on
    (line,) = [
        line
        for line in text.partition("Drift at equal score")[2].partition("**Prompt")[0].splitlines()
        if "oft" in line
    ]
    assert " +0.1500 |" in line  # at the same subject similarity: the mean of 0.1, 0.2 and 0.15
    assert "front.png" in [p.name for p in plot(done, "subject, X", tmp_path, "subject", "prompt, Y")]
    with pytest.raises(ConfigError, match="no run has the score 'promt, Y'"):
        summary(done, "subject, X", ["lora"], "subject", "promt, Y")


def test_what_is_kept_says_the_same_in_short():
    done = [
        entry | dict(curve=[[0, 1.0], [3, 0.5 - 0.1 * (entry["run"]["method"] == "gralora")]])
        for entry in DONE
    ]
    for entry in done:
        entry["losses"] = [0.01 * i for i in range(50)]
    short = [in_short(entry) for entry in done]
    assert summary(short, "paired, X", ["lora"]) == summary(done, "paired, X", ["lora"])
    assert [in_short(entry) for entry in short] == short
    assert short[0]["losses"] == pytest.approx([0.095, 0.345])  # steps 1 to 20, and the thirty that are left
    assert blocks([1.0, 2.0]) == [1.5]
    (line,) = [
        x
        for x in summary(done, "paired, X", ["lora"]).partition("held-out noise")[2].splitlines()
        if "test" in x and "gralora" in x
    ]
    assert [cell.strip() for cell in line.split("|")][5:7] == ["0.40000", "-0.10000"]
    assert "| 2 of 2 |" in " ".join(line.split())


def test_plots(tmp_path):
    done = [*DONE, *(finished("lora", 1e-2, seed, 0.7, rank=8) for seed in (0, 1))]
    paths = plot(done, "paired, X", tmp_path)
    assert [p.name for p in paths] == ["score-rank.png", "score-parameters.png", "loss.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.convert("L").getextrema() != (255, 255)
