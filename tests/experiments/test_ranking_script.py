"""scripts/ranking.py: how it chooses rates, and its tables from made-up runs."""

import sys
from pathlib import Path

import pytest
import scipy.stats
from helpers import SCRIPTS

from gralora_diffusion.experiments.results import RESULTS, line_of
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS
from gralora_diffusion.options import ConfigError

sys.path.insert(0, str(SCRIPTS))
import ranking
import ranking_tables

STYLES = ["a", "b", "c"]


@pytest.fixture
def three_styles(monkeypatch):
    monkeypatch.setattr(ranking_tables, "learned_styles", lambda: STYLES)


def entry(task: str, seed: int, arm: ranking.Arm, loss: float, rank: int = 16, lr: float = 1e-3) -> dict:
    """batches: the first one favours whoever has the highest loss."""
    run = dict(part="test", method=arm.method, k=arm.k, targets=arm.targets, rank=rank, lr=lr, seed=seed)
    scores = {HELD_OUT_LOSS: [1 - loss, loss, loss, loss]}
    return dict(run=run, task=task, curve=[[0, 0.2], [300, loss]], scores=scores, parameters=1000)


def runs_of(arm: ranking.Arm, shifts: list[float], rank: int = 16, lr: float = 1e-3) -> list[dict]:
    """shifts: of each style's loss from .1."""
    found = []
    for style, shift in zip(STYLES, shifts, strict=True):
        found += [
            entry(style, seed, arm, 0.1 + shift + 0.001 * seed, rank, lr) for seed in ranking_tables.SEEDS
        ]
    return found


def write(folder, entries: list[dict]) -> None:
    (folder / RESULTS).write_text("".join(map(line_of, entries)))


def test_differences_are_paired_by_seed_and_averaged_over_styles(tmp_path, three_styles):
    shifts = [-0.001, -0.002, -0.004]
    lora, gralora, k4, wide = ranking.ARMS[0], ranking.ARMS[1], ranking.ARMS[2], ranking.ARMS[-2]
    runs = runs_of(lora, [0, 0.01, 0.02])
    runs += runs_of(gralora, [-0.001, 0.008, 0.016], lr=3e-3)
    runs += runs_of(k4, [0.001, 0.01, 0.02])
    runs += runs_of(wide, [0.03, 0.04, 0.05], rank=ranking_tables.ALL_LINEAR_RANK)
    runs += runs_of(lora, [-0.005, 0.009, 0.019], lr=3e-3)
    write(tmp_path, [*runs, *runs_of(ranking.Arm("rslora"), [0, 0, 0])[:-1]])
    text = ranking_tables.report(tmp_path, ranking.planned())
    table = text.partition("Not complete")[0].splitlines()
    rows = {line.split("|")[1].strip(): line for line in table if line.startswith("|")}
    ahead = scipy.stats.ttest_1samp([1000 * shift for shift in shifts], 0)
    low, high = ahead.confidence_interval()
    assert f"-2.33 ({low:+.2f} to {high:+.2f})" in rows["gralora k2"]
    assert f"{ahead.pvalue:.3f} (primary, alone)" in rows["gralora k2"]
    p = scipy.stats.ttest_1samp([1.0, 0, 0], 0).pvalue
    assert p * ranking.planned()[16] > 1
    assert rows["gralora k4"].split("|")[-2].strip() == "1.000"
    assert "our-lora, all-linear" in rows
    assert rows["our-lora at 0.003"].split("|")[-2].strip() == ""  # no p
    differences = [4.0, -1.0, -3.0]  # GraLoRA's from that
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    assert f"gralora k2 less our-lora at 0.003, known after the primary comparison: +0.00 ({low:+.2f}" in text
    assert "rslora (14 of 15 runs)" in text
    assert "rslora" not in rows
    order = [name for name in rows if name in ("our-lora", "gralora k2", "gralora k4")]
    assert order == ["gralora k2", "our-lora", "gralora k4"]
    assert (tmp_path / "table.md").read_text() == text + "\n"


def test_runs_at_other_rates_and_of_other_styles_do_not_count(tmp_path, three_styles):
    """tasks.py has run LoRA at a rate that may not be the one chosen here, in the same sweeps."""
    lora, gralora = ranking.ARMS[:2]
    runs = [*runs_of(lora, [0, 0, 0]), *runs_of(gralora, [-0.001, -0.002, -0.003], lr=3e-3)]
    for rate, loss in ((1e-3, 0.1), (3e-4, 0.2)):
        tuning = entry(ranking.TUNING_STYLE, 0, lora, loss, lr=rate)
        tuning["run"]["part"] = "validation"
        runs.append(tuning)
    write(tmp_path, runs)
    text = ranking_tables.report(tmp_path, ranking.planned())
    others = [entry(style, seed, lora, 0.5, lr=3e-4) for style in STYLES for seed in ranking_tables.SEEDS]
    others += [entry("d", seed, arm, 0.5) for seed in ranking_tables.SEEDS for arm in (lora, gralora)]
    write(tmp_path, [*others, *runs, *others])
    assert ranking_tables.report(tmp_path, ranking.planned()) == text
    assert "-2.00" in text


def test_holm_counts_arms_that_were_not_run():
    """All but LoRA and the primary comparison; of rank 16 two of all linear layers among them."""
    assert ranking.planned()[16] == 11
    assert ranking.planned()[64] == 8


def test_small_benchmarks_are_counted(tmp_path, three_styles):
    """Of four batches one names the worst."""
    lora, gralora = ranking.ARMS[:2]
    write(tmp_path, [*runs_of(lora, [0, 0, 0]), *runs_of(gralora, [-0.001, -0.002, -0.003], lr=3e-3)])
    text = ranking_tables.report(tmp_path, ranking.planned())
    assert "Of 60 benchmarks" in text
    assert "15 (25 %) name another winner than gralora k2" in text
    assert "gralora k2 is ahead of LoRA in 45 (75 %)" in text


def test_without_lora_there_is_nothing_to_compare_with(tmp_path, three_styles):
    write(tmp_path, runs_of(ranking.ARMS[1], [0, 0, 0], lr=3e-3))
    with pytest.raises(ConfigError, match="all runs of LoRA"):
        ranking_tables.report(tmp_path, ranking.planned())


@pytest.mark.parametrize(
    ("losses", "best", "tried"),
    [
        ({3e-4: 3, 1e-3: 1, 3e-3: 2}, 1e-3, 3),
        ({1e-4: 3, 3e-4: 1, 1e-3: 2, 3e-3: 3}, 3e-4, 4),
        ({3e-4: 4, 1e-3: 3, 3e-3: 2, 1e-2: 1, 3e-2: None}, 1e-2, 5),
        ({3e-4: 2, 1e-3: 1, 3e-3: None}, 1e-3, 3),
    ],
)
def test_rates_are_tried_until_the_best_has_neighbours(tmp_path, monkeypatch, losses, best, tried):
    """losses: by rate; None is a run that failed."""
    arm, folder = ranking.ARMS[0], tmp_path / ranking.TUNING_STYLE
    folder.mkdir()
    given = []

    def sweep(options: str, images: Path, state: Path) -> None:
        words = options.split()
        given[:] = map(float, words[words.index("--lrs") + 1 :])
        entries = []
        for rate in given:
            made = entry("x", 0, arm, losses[rate] or 0, lr=rate)
            if losses[rate] is None:
                del made["curve"]
            entries.append(made)
        write(state, entries)

    monkeypatch.setattr(ranking, "sweep", sweep)
    assert ranking.tuned_rate(arm, 16, tmp_path, tmp_path) == best
    assert len(given) == tried
