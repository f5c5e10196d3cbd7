"""The time left of a run: its steps, and the sample images, evaluations and checkpoints to come."""

import json
from dataclasses import replace

import pytest

from gralora_diffusion.console import about, duration
from gralora_diffusion.training.run_time import counter
from gralora_diffusion.training.time_left import (
    MOST_STEPS,
    Costs,
    costs_from_json,
    seconds_left,
    times_due,
)

# as the run corgi-1: 60 steps, sample images every 10 steps
COSTS = Costs(step=20.0, images=25.0, look_every=(10,), save_every=50, checkpoint=2.0)


def test_the_time_left_has_the_sample_images_to_come():
    # after step 52: 8 steps, the images of step 60, checkpoint-60
    assert seconds_left(COSTS, 52, 60, 4.0, 50) == 8 * 4 + 25 + 2
    # after step 4: 56 steps, images of steps 10, 20, ..., 60, two checkpoints
    assert seconds_left(COSTS, 4, 60, 4.0, 0) == 56 * 4 + 6 * 25 + 2 * 2
    # before the first step the speed is that of the batches that were tried
    assert seconds_left(COSTS, 0, 60, None, 0) == 60 * 20 + 6 * 25 + 2 * 2
    # at step 60, with three of its four images
    assert seconds_left(COSTS, 60, 60, 4.0, 50, 0.75) == pytest.approx(25 / 4)
    assert seconds_left(COSTS, 60, 60, 4.0, 60) == 0
    assert seconds_left(replace(COSTS, export=3.0), 52, 60, 4.0, 50) == 8 * 4 + 25 + 2 + 3


@pytest.mark.parametrize("intervals", [(), (7,), (4, 6), (3, 3), (1, 5)])
def test_the_steps_that_are_due_are_counted_without_a_loop(intervals):
    for after in range(15):
        for last in range(30):
            due = [step for step in range(after + 1, last + 1) if any(step % n == 0 for n in intervals)]
            assert times_due(intervals, after, last) == len(due), (after, last)


def test_costs_survive_a_status_file_and_those_of_others_are_refused():
    assert costs_from_json(json.loads(json.dumps(COSTS.to_json()))) == COSTS
    good = COSTS.to_json()
    wrong = [dict(step=-1), dict(images="long"), dict(look_every=[0]), dict(look_every=[1, 2, 3])]
    wrong += [dict(save_every=0), dict(save_every=MOST_STEPS + 1), dict(step=True), dict(checkpoint=None)]
    for values in wrong:
        assert costs_from_json(good | values) is None, values
    earlier = {name: value for name, value in good.items() if name != "export"}
    assert costs_from_json(earlier) == COSTS
    assert costs_from_json([]) is None
    assert costs_from_json({}) is None


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_images_are_counted_while_they_are_generated_in_batches(batch):
    seen = []
    add = counter(4, lambda done, total: seen.append((done, total)))
    for first in range(0, 4, batch):
        size = min(batch, 4 - first)
        for _ in range(25):  # denoising steps
            add(size / 25)
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize(
    ("seconds", "rough", "exact"),
    [
        (1, "about 5 s", "1.0 s"),
        (42, "about 40 s", "42.0 s"),
        (58, "about 1 min", "58.0 s"),
        (23 * 60 + 32, "about 24 min", "23 min 32 s"),
        (5333, "about 89 min", "1 h 28 min"),
        (5700, "about 1 h 35 min", "1 h 35 min"),
        (7200, "about 2 h", "2 h 0 min"),
    ],
)
def test_durations_do_not_look_like_clock_times(seconds, rough, exact):
    assert about(seconds) == rough
    assert duration(seconds) == exact
