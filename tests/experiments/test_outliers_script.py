"""scripts/outliers.py: stages that are sweeps, rates from where they are meant to come, and its report."""

import json
import statistics
import sys

import pytest
from helpers import SCRIPTS

from gralora_diffusion.cli.compare import arguments
from gralora_diffusion.experiments.results import RESULTS, line_of
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS
from gralora_diffusion.options import ConfigError

sys.path.insert(0, str(SCRIPTS))

import outliers
import outliers_tables as tables


def finished(
    part: str, label: str, lr: float, seed: int, loss: float, scale: int = 1, slices: int = 1
) -> dict:
    method, _, k = label.partition(" k")
    run = dict(part=part, method=method, k=int(k) if k else None, rank=64, lr=lr, seed=seed, steps=300)
    if scale > 1:
        run |= dict(outliers=float(scale), outlier_slices=slices)
    scores = {HELD_OUT_LOSS: [loss]}
    return dict(run=run | dict(setting="s", size=64), name="x", parameters=1, losses=[1.0], scores=scores)


def losses(label: str, scale: int, slices: int, seed: int) -> float:
    """Made up: LoRA loses .01 with one outlier, and GraLoRA only where there are four."""
    harm = 0.01 * (scale > 1 and (label == tables.LORA or slices > 1))
    return 0.1 + harm + 0.001 * seed * (label == tables.LORA)


@pytest.fixture
def kept(tmp_path):
    """The task style with made up runs in a folder."""
    pytest.importorskip("matplotlib")
    lines = []
    for label in (tables.LORA, tables.K4):
        for scale, slices in ((1, 1), (1000, 1), (1000, 4)):
            for seed in (0, 1):
                best = 1e-3 if scale == 1 else 3e-4
                for lr in (3e-4, 1e-3):
                    loss = 0.1 if lr == best else 0.2
                    lines.append(finished("validation", label, lr, seed, loss, scale, slices))
            for seed in range(2, 7):
                loss = losses(label, scale, slices, seed)
                lines.append(finished("test", label, 1e-3 if scale == 1 else 3e-4, seed, loss, scale, slices))
    (tmp_path / RESULTS).write_text("".join(map(line_of, lines)))
    return outliers.TASKS["style"]._replace(kept=tmp_path)


@pytest.mark.parametrize("name", outliers.TASKS)
def test_every_stage_is_a_sweep_of_losses(name):
    task = outliers.TASKS[name]
    for stage in task.stages:
        options = f"{stage.options} {task.options} --output x"
        args = arguments([*options.split(), "--lrs", *map(str, task.rates)])
        assert (args.part == "test") == (stage.tuned_at is not None)
        assert args.loss_only != args.training_loss


def test_rates_are_those_of_the_same_outliers(kept):
    done = outliers.read_results(kept.kept)
    lora, k4 = tables.Arm(tables.LORA, 64), tables.Arm(tables.K4, 64)
    assert tables.best_rates(done, HELD_OUT_LOSS, 1, 1) == {lora: 1e-3, k4: 1e-3}
    for slices in (1, 4):
        assert tables.best_rates(done, HELD_OUT_LOSS, 1000, slices) == {lora: 3e-4, k4: 3e-4}


def test_the_report_compares_seeds_in_pairs_and_plots(kept):
    text = outliers.report(kept)
    seeds = range(2, 7)
    gaps = [1000 * (losses(tables.K4, 1000, 1, s) - losses(tables.LORA, 1000, 1, s)) for s in seeds]
    assert f"{statistics.mean(gaps):+.2f}" == "-14.00"
    assert "| 64 | 1000 | 1 | 1000 | gralora k4 | 5 of 5 | -14.00 (-15.96 to -12.04)" in squeezed(text)
    assert "gralora k4 | 1000 minus none | 5 of 5 | -10.00 (-10.00 to -10.00)" in squeezed(text)
    assert "gralora k4 | 4 slices minus one, at 1000 | 5 of 5 | +10.00 (+10.00 to +10.00)" in squeezed(text)
    for name in ("loss-outliers.png", "rates-outliers.png"):
        assert (kept.kept / name).stat().st_size > 10_000
    assert (kept.kept / "table.md").read_text() == text + "\n"


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_a_state_folder_takes_up_the_runs_that_are_kept(kept, tmp_path):
    outliers.begin(kept, tmp_path / "state")
    assert (tmp_path / "state" / RESULTS).read_text() == (kept.kept / RESULTS).read_text()
    (tmp_path / "state" / RESULTS).write_text("")
    outliers.begin(kept, tmp_path / "state")
    assert (tmp_path / "state" / RESULTS).read_text() == ""


def test_a_failed_seed_takes_the_interval(kept):
    lines = (kept.kept / RESULTS).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        run = entry["run"]
        if run["part"] == "test" and run["method"] == "gralora" and run["seed"] == 6:
            entry["failed"] = "the loss of step 2 is not finite"
            del entry["scores"]
    (kept.kept / RESULTS).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert "gralora k4 | 4 of 5 | -13.50, without interval" in squeezed(outliers.report(kept))


def test_runs_on_other_images_are_not_mixed(kept):
    lines = (kept.kept / RESULTS).read_text().splitlines(keepends=True)
    other = lines[0].replace('"setting": "s"', '"setting": "t"')
    (kept.kept / RESULTS).write_text("".join([*lines, other]))
    with pytest.raises(ConfigError, match="holds runs on other images"):
        outliers.report(kept)
    (kept.kept / RESULTS).unlink()
    with pytest.raises(ConfigError, match="no runs to report"):
        outliers.report(kept)
