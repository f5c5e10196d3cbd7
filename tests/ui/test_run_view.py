"""What the page shows of a run's memory and of the card it is on."""

import json

import pytest

from gralora_diffusion import TrainConfig
from gralora_diffusion.devices import best_device, name_of
from gralora_diffusion.options import to_dict
from gralora_diffusion.ui import run_view
from gralora_diffusion.ui.card import device_name, find_device
from gralora_diffusion.ui.look import Look
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.status_strip import STRIP, strip_values
from gralora_diffusion.ui.workspace import Workspace

GIB = 2**30


def test_the_strip_shows_the_card_and_its_memory_in_use_at_the_peak_and_reserved(tmp_path):
    workspace = Workspace(tmp_path)
    run = workspace.runs / "dog"
    run.mkdir(parents=True)
    status = dict(state="running", step=0, steps=9, device="RTX 4090, 24.0 GiB", pid=1, time=0)
    line = dict(step=3, loss=0.1, seconds=1.0, memory=5 * GIB, peak=6 * GIB, reserved=7 * GIB)
    (run / "status.json").write_text(json.dumps(status))
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    queue = RunQueue(workspace)
    now = run_view.progress(queue, run)
    assert run_view.memory_text(now) == "5.00 GiB, peak 6.00, reserved 7.00"
    assert now.device == "RTX 4090, 24.0 GiB"
    line |= dict(peak=None, reserved="a word")  # of a run without these numbers
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n\n")
    assert run_view.memory_text(run_view.progress(queue, run)) == "5.00 GiB"
    assert len(strip_values(Look(queue))) == len(STRIP) + 2


@pytest.mark.parametrize(("values", "best"), [(("validation_loss", "score"), 10), (("score",), 20)])
def test_the_best_step_is_marked_without_keep_best_too(tmp_path, values, best):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(TrainConfig())))
    numbers = dict(validation_loss=(0.5, 0.1, 0.3), score=(0.0, 0.1, 0.4))
    lines = []
    for place in range(3):
        lines.append(dict(step=10 * place) | {name: numbers[name][place] for name in values})
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_view.best_step(tmp_path) == best


def test_the_device_is_shown_before_the_first_run(tmp_path):
    find_device()
    assert device_name() == name_of(best_device())
    queue = RunQueue(Workspace(tmp_path))
    assert strip_values(Look(queue))[STRIP.index("Device")] == device_name()


def test_sample_images_are_those_in_the_folder_of_the_run(tmp_path):
    outside = tmp_path / "outside"
    for folder in (outside, tmp_path / "run" / "samples"):
        (folder / "step-00010").mkdir(parents=True)
        (folder / "step-00010" / "00.png").write_bytes(b"an image")
    run = tmp_path / "run"
    inside = [(10, [run / "samples" / "step-00010" / "00.png"])]
    (run / "samples" / "step-00020").symlink_to(outside / "step-00010")
    (run / "samples" / "step-00010" / "01.png").symlink_to(outside / "step-00010" / "00.png")
    assert run_view.sample_files(run) == inside
    (run / "samples").rename(run / "kept")
    for target in (outside, run / "kept"):
        (run / "samples").symlink_to(target)
        assert run_view.sample_files(run) == []
        (run / "samples").unlink()
    assert run_view.sample_files(run) == []
