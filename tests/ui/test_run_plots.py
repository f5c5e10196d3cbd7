"""The points of Watch's plots, and their legends."""

import json
import math

import orjson

from gralora_diffusion import TrainConfig
from gralora_diffusion.options import to_dict
from gralora_diffusion.ui import run_plots
from gralora_diffusion.ui.run_plots import BEST, HELD_OUT, LOSS_LINES, SCORE_LINES


def test_the_plot_has_the_held_out_loss_and_the_best_step_and_scores_are_apart(tmp_path):
    config = TrainConfig(validation_split=0.1, keep_best="loss", validation_steps=10)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert run_plots.loss_points(tmp_path, 0.5) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps(dict(step=1, loss=0.9, seconds=1.0)) + "\n")
    assert run_plots.score_points(tmp_path) == []
    plain = run_plots.loss_points(tmp_path, 0.5)
    assert plain == [(1, 0.9, "each step"), (1, 0.9, "smoothed")]
    lines = [
        dict(step=0, validation_loss=0.5, subject=0.4),
        dict(step=10, validation_loss=0.3, subject="a word"),
    ]
    hostile = [[], dict(step="x", validation_loss=1), dict(step=20, validation_loss=None), "text"]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *hostile])
    (tmp_path / "evaluations.jsonl").write_text(text)
    held_out = [(0, 0.5, HELD_OUT), (10, 0.3, HELD_OUT), (10, 0.0, BEST), (10, 0.9, BEST)]
    assert run_plots.loss_points(tmp_path, 0.5) == plain + held_out
    marked = [(0, 0.4, "subject"), (10, 0.4, BEST), (10, 0.4, BEST)]
    assert run_plots.score_points(tmp_path) == marked


def test_numbers_of_a_hostile_file_can_be_sent(tmp_path):
    """Integers over 64 bits cannot, so that the page would get no answer at all."""
    losses = [dict(step=step, loss=10**30, seconds=1) for step in (1, 10**30, 2.5, True)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    scores = [dict(step=step, validation_loss=10**30, score=10**30) for step in (1, 10**30, -1)]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    for points in (run_plots.loss_points(tmp_path, 0.5), run_plots.score_points(tmp_path)):
        assert {step for step, *_ in points} == {1}
        assert orjson.loads(orjson.dumps(points)) == [list(point) for point in points]


def test_a_plot_gets_every_line_that_may_come_and_names_those_that_are_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(dict(step=3, loss=0.9, seconds=1.0)) + "\n")
    points = run_plots.loss_points(tmp_path, 0.5)
    frame = run_plots.plot_update(points, LOSS_LINES, "loss")["value"]
    assert frame.columns.tolist() == ["step", "loss", "line"]
    rows = frame.values.tolist()
    assert rows[:2] == [list(point) for point in points]
    empty = [(step, math.isnan(loss), line) for step, loss, line in rows[2:]]
    assert empty == [(3, True, HELD_OUT), (3, True, BEST)]
    named = run_plots.legend_update(points)["value"]
    assert "smoothed" in named
    assert HELD_OUT not in named
    for update in (run_plots.plot_update([], SCORE_LINES, "value"), run_plots.legend_update([])):
        assert update["visible"] is False
