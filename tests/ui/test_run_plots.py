"""What Watch's plots draw."""

import itertools
import json

import pytest

from gralora_diffusion import TrainConfig
from gralora_diffusion.options import to_dict
from gralora_diffusion.training.report_charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, highest_drawn
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
    assert plot["mark"] == dict(x=middle, step=10, side="start")
    assert "step 10: each step 0.5, smoothed 0.5, validation loss 0.25" in [
        r["text"] for r in plot["readings"]
    ]
    scores = score_plot(tmp_path)
    assert [line["name"] for line in scores["lines"]] == ["subject"]
    assert scores["mark"]["step"] == 10


def adjoin(plot) -> bool:
    """Whether the strips of the values cover the plot, one after the other."""
    edges = [(part["x"], part["x"] + part["width"]) for part in plot["readings"]]
    inner = all(abs(one[1] - other[0]) < 0.2 for one, other in itertools.pairwise(edges))
    return inner and edges[0][0] == LEFT and abs(edges[-1][1] - (WIDTH - RIGHT)) < 0.2


@pytest.mark.parametrize("steps", [1, 2, 59, 61, 120, 2000, 5003])
def test_the_last_values_can_be_read_whatever_the_number_of_steps(tmp_path, steps):
    write(tmp_path / "metrics.jsonl", [dict(step=n, loss=1 / n, seconds=1.0) for n in range(1, steps + 1)])
    plot = loss_plot(tmp_path, 0)
    assert len(plot["readings"]) <= 60
    assert adjoin(plot)
    assert (
        plot["readings"][-1]["text"] == f"step {steps}: each step {1 / steps:.4g}, smoothed {1 / steps:.4g}"
    )
    assert plot["last_step"] == max(steps, 2)
    assert len(points(plot, "each step")) <= 1000


def test_the_best_evaluation_is_marked_and_read_with_its_own_step(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(TrainConfig(validation_steps=10))))
    write(tmp_path / "metrics.jsonl", [dict(step=n, loss=0.5, seconds=1.0) for n in range(1, 2001)])
    losses = {step: 0.1 if step == 470 else 0.5 for step in range(0, 2001, 10)}
    evaluations = [dict(step=step, validation_loss=loss, score=step) for step, loss in losses.items()]
    write(tmp_path / "evaluations.jsonl", evaluations)
    plot = loss_plot(tmp_path, 0)
    texts = [part["text"] for part in plot["readings"]]
    assert plot["mark"]["step"] == 470
    assert "step 470: each step 0.5, smoothed 0.5, validation loss 0.1" in texts
    assert len(texts) <= 121
    assert adjoin(plot)
    write(tmp_path / "evaluations.jsonl", [dict(step=step, score=step) for step in losses])
    assert loss_plot(tmp_path, 0)["mark"]["step"] == score_plot(tmp_path)["mark"]["step"] == 2000


def test_of_few_losses_none_is_cut_off_and_of_many_two_percent_are(tmp_path):
    for losses, highest in (([1.0, 0.5], 1.1), ([0.1] * 99 + [9.0], 1.1 * 0.1)):
        lines = [dict(step=step, loss=loss, seconds=1.0) for step, loss in enumerate(losses, 1)]
        write(tmp_path / "metrics.jsonl", lines)
        assert highest_drawn(losses, [0.0]) == pytest.approx(highest)
        plot = loss_plot(tmp_path, 0.99)
        assert plot["readings"][-1]["text"].startswith(f"step {len(losses)}: each step {losses[-1]:.4g}, ")
        assert all(y >= TOP for _, y in points(plot, "smoothed"))
    assert points(plot, "each step")[-1] == (WIDTH - RIGHT, TOP)
    assert points(plot, "smoothed")[-1][1] >= TOP


BIG = 10**20


@pytest.mark.parametrize(
    "losses", [[10**30, -1e299], [BIG, BIG], [-1.0, -2.0], [float(BIG), BIG + 1], [0, 0]]
)
@pytest.mark.parametrize("steps", [(900, 1, 1000), (3, 3, 3), (0, 0, 0), (1, 2, 10**11)])
def test_a_hostile_file_is_drawn_inside_its_frame(tmp_path, losses, steps):
    metrics = [dict(step=step, loss=loss, seconds=1) for step, loss in zip(steps, losses, strict=False)]
    write(tmp_path / "metrics.jsonl", [*metrics, dict(step=10**30, loss=1, seconds=1)])
    scores = [dict(step=step, score=loss) for step, loss in zip(steps, losses, strict=False)]
    write(tmp_path / "evaluations.jsonl", [*scores, dict(step=10**9, score=10**31)])
    config = TrainConfig(keep_best="score", validation_steps=10)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    plots = [loss_plot(tmp_path, 0.5), score_plot(tmp_path)]
    assert plots[0]["mark"] is None  # the step of a score that was not reached
    assert plots[1]["mark"]["step"] == 10**9
    for plot in plots:
        assert adjoin(plot)
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
    assert 'aria-label="Loss against step; step 3: each step 0.9, smoothed 0.9"' in update["value"]
    assert plot_update(score_plot(tmp_path)) == plot_update(None)
    assert plot_update(None)["visible"] is False
