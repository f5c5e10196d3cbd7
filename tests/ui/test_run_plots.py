"""What Watch's plots draw."""

import json

import pytest

from gralora_diffusion import TrainConfig
from gralora_diffusion.options import to_dict
from gralora_diffusion.training.report_charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from gralora_diffusion.ui.run_plots import loss_plot, plot_update, score_plot


def write(path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def points(plot, name: str) -> list[tuple[float, float]]:
    (line,) = [line for line in plot["lines"] if line["name"] == name]
    return [tuple(map(float, point.split(","))) for point in line["points"].split()]


def test_the_plot_has_the_held_out_loss_and_the_best_step_and_scores_are_apart(tmp_path):
    config = TrainConfig(validation_split=0.1, keep_best="loss", validation_steps=10)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert loss_plot(tmp_path, 0.5) is None
    write(tmp_path / "metrics.jsonl", [dict(step=step, loss=0.5, seconds=1.0) for step in range(1, 21)])
    assert score_plot(tmp_path) is None
    plain = loss_plot(tmp_path, 0.5)
    assert [line["name"] for line in plain["lines"]] == ["each step", "smoothed"]
    assert (plain["first_step"], plain["last_step"], plain["mark"]) == (1, 20, None)
    assert plain["readings"][0]["text"] == "step 1: each step 0.5, smoothed 0.5"
    lines = [
        dict(step=0, validation_loss=1.0, subject=0.4),
        dict(step=10, validation_loss=0.25, subject="a word"),
        dict(step=20, validation_loss=None, subject=0.6),
    ]
    hostile = [[], dict(step="x", validation_loss=1), "text"]
    write(tmp_path / "evaluations.jsonl", [*lines, *hostile])
    plot = loss_plot(tmp_path, 0.5)
    middle = (LEFT + WIDTH - RIGHT) / 2
    assert points(plot, "validation loss") == [(LEFT, TOP), (middle, TOP + 0.75 * (HEIGHT - TOP - BOTTOM))]
    assert plot["mark"] == dict(x=middle, step=10)
    assert "step 10: each step 0.5, smoothed 0.5, validation loss 0.25" in [
        r["text"] for r in plot["readings"]
    ]
    scores = score_plot(tmp_path)
    assert [line["name"] for line in scores["lines"]] == ["subject"]
    assert scores["mark"]["step"] == 10


@pytest.mark.parametrize("steps", [1, 2, 59, 61, 120, 5000])
def test_the_last_values_can_be_read_whatever_the_number_of_steps(tmp_path, steps):
    write(tmp_path / "metrics.jsonl", [dict(step=n, loss=1 / n, seconds=1.0) for n in range(1, steps + 1)])
    plot = loss_plot(tmp_path, 0)
    readings = plot["readings"]
    assert len(readings) <= 60
    assert readings[0]["x"] == LEFT
    assert all(LEFT <= part["x"] <= WIDTH - RIGHT and part["width"] > 0 for part in readings)
    last = 1 + (steps - 1) // max(1, steps // 1000) * max(1, steps // 1000)
    assert readings[-1]["text"].startswith(f"step {last}: each step {1 / last:.4g}, ")


def test_what_is_cut_off_is_read_as_it_is(tmp_path):
    losses = [0.1] * 99 + [9.0]
    lines = [dict(step=step, loss=loss, seconds=1.0) for step, loss in enumerate(losses, 1)]
    write(tmp_path / "metrics.jsonl", lines)
    plot = loss_plot(tmp_path, 0)
    assert points(plot, "each step")[-1] == (WIDTH - RIGHT, TOP)
    assert plot["readings"][-1]["text"] == "step 100: each step 9, smoothed 9"


def test_a_hostile_file_is_drawn_inside_its_frame(tmp_path):
    losses = [dict(step=step, loss=10**30, seconds=1) for step in (1, 10**30, 2.5, True)]
    write(tmp_path / "metrics.jsonl", [*losses, dict(step=3, loss=-1e299, seconds=1)])
    scores = [dict(step=step, validation_loss=10**30, score=10**30) for step in (1, 10**30, -1)]
    write(tmp_path / "evaluations.jsonl", [scores[0], dict(step=10**9, score=10**31), *scores[1:]])
    config = TrainConfig(keep_best="score", validation_steps=10)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    plots = [loss_plot(tmp_path, 0.5), score_plot(tmp_path)]
    assert plots[0]["mark"] is None  # the step of a score that was not reached
    for plot in plots:
        for line in plot["lines"]:
            for x, y in points(plot, line["name"]):
                assert LEFT <= x <= WIDTH - RIGHT
                assert TOP <= y <= HEIGHT - BOTTOM


def test_the_update_has_the_chart_and_is_hidden_without_one(tmp_path):
    write(tmp_path / "metrics.jsonl", [dict(step=3, loss=0.9, seconds=1.0)])
    update = plot_update(loss_plot(tmp_path, 0.5))
    assert update["visible"] is True
    assert update["value"].count("<polyline") == 2
    assert "<title>step 3: each step 0.9, smoothed 0.9</title>" in update["value"]
    assert plot_update(score_plot(tmp_path)) == plot_update(None)
    assert plot_update(None)["visible"] is False
