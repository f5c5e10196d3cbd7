"""The time that the page expects of a run: from what was measured, for the steps and images of the form."""

import json
import os
import re
from dataclasses import replace

import pytest

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.console import about, speed_text
from gralora_diffusion.devices import best_device, total_memory
from gralora_diffusion.options import to_dict
from gralora_diffusion.training import library_memory
from gralora_diffusion.training.accelerator import precision
from gralora_diffusion.training.time_left import Costs
from gralora_diffusion.ui import expected_time as expected
from gralora_diffusion.ui import forecasts, run_cards
from gralora_diffusion.ui.expected_time import Measured, Work, known_time
from gralora_diffusion.ui.look import Look
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.status_strip import STRIP, strip_values
from gralora_diffusion.ui.train_estimate import EstimateBar
from gralora_diffusion.ui.workspace import Workspace

PROMPTS = "a robot | a dog | a cat | a tree"
CONFIG = TrainConfig(max_train_steps=60, train_batch_size=4, validation_steps=10, validation_prompt=PROMPTS)
WORK = Work(steps=60, look_every=(10,), save_every=50, images=4, is_evaluated=False)
COSTS = Costs(step=20.0, images=24.0, checkpoint=1.0, preparation=30.0, look_every=(10,), save_every=50)
WHOLE = 30 + 7 * 24 + 60 * 4 + 2 * 1  # seconds, at 4 s a step, without the export


@pytest.fixture
def workspace(tmp_path):
    yield Workspace(tmp_path)
    expected._trials.clear()


def finished_run(workspace: Workspace, **facts) -> str:
    """corgi-1 of CONFIG: slow at first, 4 s a step in its last 20 steps."""
    run = workspace.runs / "corgi-1"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(to_dict(CONFIG.resolved())))
    lines = []
    for step in range(1, 61):
        lines.append(dict(step=step, loss=0.1, seconds=4.0 if step > 40 else 9.0))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = dict(state="done", time=1.0, step=60, steps=60, message="") | facts
    (run / "status.json").write_text(json.dumps(status))
    return run.name


def strip(workspace: Workspace) -> dict:
    return dict(zip(STRIP, strip_values(Look(RunQueue(workspace))), strict=False))


def test_the_speed_of_an_earlier_run_is_that_of_the_strip_and_its_images_are_in_the_time(workspace):
    name = finished_run(workspace, costs=COSTS.to_json())
    found = known_time(CONFIG, WORK, workspace)
    assert (found.seconds, found.run) == (WHOLE, name)
    assert found.text() == "about 7 min"
    finished_run(workspace, costs=replace(COSTS, export=9.0).to_json())
    assert known_time(CONFIG, WORK, workspace).seconds == WHOLE + 9
    assert strip(workspace)["Speed"] == speed_text(4.0)


def test_blank_fields_stand_for_what_a_run_has_recorded():
    """A run of SDXL records its resolution and its precision; the form leaves both blank."""
    blank = replace(CONFIG, pretrained_model_name_or_path="org/sdxl")
    name, _ = precision(blank)
    recorded = replace(blank, resolution=1024, mixed_precision=name)
    assert expected.work_of_a_step(recorded) == expected.work_of_a_step(blank)
    other = {"no": "bf16"}.get(name, "no")
    for change in (dict(resolution=512), dict(mixed_precision=other)):
        assert expected.work_of_a_step(replace(blank, **change)) != expected.work_of_a_step(blank)


def test_other_steps_and_other_sample_images_are_rescaled(workspace):
    finished_run(workspace, costs=COSTS.to_json())
    # twice the steps, images every 20 steps, two of them, with twice the denoising steps
    work = replace(WORK, steps=120, look_every=(20,), images=2)
    config = replace(CONFIG, max_train_steps=120, num_inference_steps=50)
    assert known_time(config, work, workspace).seconds == 30 + 7 * 24 + 120 * 4 + 3 * 1
    no_images = replace(CONFIG, skip_final_inference=True)
    assert known_time(no_images, replace(WORK, images=0), workspace).seconds == 30 + 60 * 4 + 2
    assert known_time(replace(CONFIG, train_batch_size=8), WORK, workspace) is None


def test_a_run_of_an_earlier_version_says_that_its_images_are_left_out(workspace):
    finished_run(workspace)
    found = known_time(CONFIG, WORK, workspace)
    assert found.seconds == 60 * 4
    assert found.text() == "about 4 min, plus sample images"


def test_a_trial_is_rescaled_for_other_steps_until_a_run_knows_better(workspace):
    assert known_time(CONFIG, WORK, workspace) is None
    four = expected.image_work(CONFIG, 4)
    expected.keep_trial(CONFIG, workspace, Measured(20.0, COSTS, four, None))
    longer = replace(CONFIG, max_train_steps=600)
    steps = known_time(longer, replace(WORK, steps=600), workspace).seconds
    assert steps == 30 + 61 * 24 + 600 * 20 + 12 * 1
    assert known_time(replace(CONFIG, gradient_accumulation_steps=2), WORK, workspace) is None
    other = Workspace(workspace.root / "another")
    assert known_time(CONFIG, WORK, other) is None
    finished_run(workspace, costs=COSTS.to_json())
    assert known_time(CONFIG, WORK, workspace).run == "corgi-1"


def test_a_measurement_says_what_it_does_and_the_form_keeps_it_for_other_steps(workspace, monkeypatch):
    """The trainer itself on the built-in base; then no more Check for other steps."""
    monkeypatch.setattr(forecasts, "PAUSE", 0.0)
    bar = EstimateBar.__new__(EstimateBar)  # without components, which need a page
    bar.workspace, bar.facts = workspace, [None] * 4
    config = TrainConfig(
        max_train_steps=40, train_batch_size=1, num_inference_steps=50
    )  # long enough to be seen
    assert bar.at_once("dog-1", config)[0] == "press Check"
    updates = list(bar.measured("dog-1", config))
    times = [update[0] for update in updates]
    told = [text for text in times if isinstance(text, str)]
    assert told[0] == "measuring ..."
    assert any(text.endswith(" of at most 3 min: loading the base model") for text in told), told
    assert any(text.endswith("sample image 1 of 1") for text in told), told  # as many as a batch has
    assert told[-1].startswith("about ")
    assert bar.at_once("dog-1", config) == updates[-1]  # the memory too
    estimate = forecasts.estimate_of(config, workspace)
    seconds = known_time(config, estimate.work, workspace).seconds
    assert estimate.work.images == 4
    longer = replace(config, max_train_steps=4000)
    assert known_time(longer, replace(estimate.work, steps=4000), workspace).seconds > 2 * seconds
    assert bar.at_once("dog-1", longer)[0].startswith("about ")
    assert forecasts.trial_time(workspace) == about(forecasts._last_trial[workspace.root])


@pytest.mark.parametrize(("adapter", "rank"), [(AdapterConfig(), 256), (AdapterConfig(method="lora"), None)])
def test_the_files_have_the_runs_name_and_the_bar_the_size_of_the_one_for_other_tools(
    workspace, adapter, rank
):
    bar = EstimateBar.__new__(EstimateBar)
    bar.workspace = workspace
    for name in ("red-hero-1", "other"):
        _, _, size, rows = bar.at_once(name, TrainConfig(adapter=adapter))
        files = dict(rows)["Files written"]
        assert "planned" not in files
        (own,) = re.findall(rf"\b{name}.safetensors (\d+\.\d) MB", files)
        (shown,) = re.findall(r"^(\d+\.\d+) MB for other tools, \d+\.?\d* MB in all$", size)
        assert round(float(shown), 1) == float(own)
        assert re.findall(r"exact LoRA of rank (\d+)$", files) == ([str(rank)] if rank else [])


def test_the_same_form_has_the_same_memory_whatever_the_page_holds(workspace, monkeypatch):
    bar = EstimateBar.__new__(EstimateBar)
    bar.workspace = workspace
    before = bar.at_once("dog-1", CONFIG)
    held = bytearray(os.urandom(1 << 20)) * 500  # as models for samples do
    forecasts._plans.clear()
    assert bar.at_once("dog-1", CONFIG) == before
    assert before[1].startswith("about ")
    assert len(held) == 500 << 20


def test_the_page_measures_its_libraries_when_it_starts(monkeypatch):
    monkeypatch.setattr(library_memory, "_measured", {})
    forecasts.warm_up()
    device = best_device()
    measured = library_memory._measured.copy()
    assert bool(measured) == (total_memory(device) is None)
    assert library_memory.library_memory(device) == measured.get(device.type, 0)


def test_the_strip_says_what_a_run_does_and_counts_the_images_to_come(workspace, monkeypatch):
    facts = dict(costs=COSTS.to_json(), looked=50, share=0.25, doing="sample image 2 of 4")
    finished_run(workspace, **facts)
    queue = RunQueue(workspace)
    status = json.loads((workspace.runs / "corgi-1" / "status.json").read_text())
    monkeypatch.setattr(queue, "state", lambda run: status | dict(state="running"))
    now = dict(zip(STRIP, strip_values(Look(queue)), strict=False))
    assert now["State"] == "running"
    assert now["Now"] == "sample image 2 of 4"
    assert now["Time left"] == "0:18"
    status |= dict(looked=60, share=0.0, doing="exporting")
    now = dict(zip(STRIP, strip_values(Look(queue)), strict=False))
    assert (now["Now"], now["Time left"]) == ("exporting", "-")
    status |= dict(looked=10, step=30)  # a run that ends early, with --patience
    now = dict(zip(STRIP, strip_values(Look(queue)), strict=False))
    assert (now["Now"], now["Time left"]) == ("exporting", "-")
    hostile = dict(doing=["exporting"], looked=None, costs=[1])
    status |= hostile
    now = dict(zip(STRIP, strip_values(Look(queue)), strict=False))
    assert (now["Now"], now["Time left"]) == ("-", "-")
    assert strip(workspace)["Now"] == "-"  # of a run that is done


def test_a_card_has_the_time_from_start_to_end(workspace):
    finished_run(workspace, seconds=814.2)
    ((_, card),) = run_cards.cards(Look(RunQueue(workspace)))
    assert card.splitlines()[1].endswith(" · 13 min 34 s")
    finished = workspace.runs / "corgi-1" / "status.json"
    values = json.loads(finished.read_text())
    del values["seconds"]
    finished.write_text(json.dumps(values | dict(time=2.0)))  # as an earlier version wrote it
    ((_, card),) = run_cards.cards(Look(RunQueue(workspace)))
    assert card.splitlines()[1].endswith(" · steps 7 min 20 s")
