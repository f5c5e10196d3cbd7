"""The points of Watch's plots, and their legends."""

import json
import math

from gralora_diffusion import TrainConfig
from gralora_diffusion.options import to_dict
from gralora_diffusion.ui import run_plots
from gralora_diffusion.ui.run_plots import BEST, HELD_OUT, LOSS_LINES, SCORE_LINES


def test_the_plot_has_the_held_out_loss_and_the_best_step_and_scores_are_apart(tmp_path):
    run = tmp_path / "dog"
    run.mkdir()
    config = TrainConfig(validation_split=0.1, keep_best="loss", validation_steps=10)
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    assert run_plots.loss_points(run, 0.5) is None
    (run / "metrics.jsonl").write_text(json.dumps(dict(step=1, loss=0.9, seconds=1.0)) + "\n")
    assert run_plots.score_points(run) is None
    plain = run_plots.loss_points(run, 0.5)
    assert plain.values.tolist() == [[1, 0.9, "each step"], [1, 0.9, "smoothed"]]
    lines = [
        dict(step=0, validation_loss=0.5, subject=0.4),
        dict(step=10, validation_loss=0.3, subject="a word"),
    ]
    hostile = [[], dict(step="x", validation_loss=1), dict(step=20, validation_loss=None), "text"]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *hostile])
    (run / "evaluations.jsonl").write_text(text)
    held_out = [[0, 0.5, HELD_OUT], [10, 0.3, HELD_OUT], [10, 0.0, BEST], [10, 0.9, BEST]]
    assert run_plots.loss_points(run, 0.5).values.tolist() == plain.values.tolist() + held_out
    marked = [[0, 0.4, "subject"], [10, 0.4, BEST], [10, 0.4, BEST]]
    assert run_plots.score_points(run).values.tolist() == marked


def test_a_plot_gets_every_line_that_may_come_and_names_those_that_are_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(dict(step=3, loss=0.9, seconds=1.0)) + "\n")
    points = run_plots.loss_points(tmp_path, 0.5)
    rows = run_plots.plot_update(points, LOSS_LINES)["value"].values.tolist()
    assert rows[:2] == points.values.tolist()
    assert [(step, math.isnan(loss), line) for step, loss, line in rows[2:]] == [
        (3, True, HELD_OUT),
        (3, True, BEST),
    ]
    named = run_plots.legend_update(points)["value"]
    assert "smoothed" in named
    assert HELD_OUT not in named
    for update in (run_plots.plot_update(None, SCORE_LINES), run_plots.legend_update(None)):
        assert update["visible"] is False
