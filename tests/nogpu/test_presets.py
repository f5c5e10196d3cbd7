"""Every preset at SDXL's size on the card that it is for: memory of each phase, images, forecasts, budgets.

Weights are hollow, and memory is what torch's own allocator counts; all runs in one process.
"""

import json

import pytest
from budgets import MOST_OF_AN_OPTIMIZER, UNET, problems
from budgets import PRESETS as BUDGETS
from presets import DRAWN, usable

from gralora_diffusion.presets import PRESETS

STEPS = 2
CLOSE = 0.05  # part by which a forecast may be wrong
MAPPED = 0.5  # GiB of the CUDA context and libraries, which the stub does not count
WAYS = ("sample, 1 image", "sample, 4 images at once", "page, 1 image and the base's")


def phases(run: dict, name: str) -> list[dict]:
    return [line for line in run["phases"] if line["phase"].split()[0] == name]


@pytest.fixture(scope="module")
def found(script, tmp_path_factory):
    """What presets.py found."""
    file = tmp_path_factory.mktemp("presets") / "found.json"
    done = script("presets.py", file)
    assert file.is_file(), done.stdout[-2000:] + done.stderr[-5000:]
    return json.loads(file.read_text())


@pytest.fixture
def run(found, preset):
    return found["presets"][preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_is_done(run, preset):
    assert (run["code"], run["state"]) == (0, "done"), run["message"]
    assert len(phases(run, "step")) == STEPS


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_fit(run, preset):
    for step in phases(run, "step"):
        assert step["peak"] + MAPPED < usable(preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_encoding_fits(run, preset):
    for line in (*phases(run, "encode"), *phases(run, "embed")):
        assert not line["failed"]
        assert 0 < line["peak"] + MAPPED < usable(preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_encoding_copies_no_weights_back(run, preset):
    for line in phases(run, "encode"):
        assert line["counters"]["bytes to host"] < 2**25


@pytest.mark.parametrize("preset", PRESETS)
def test_all_sample_images_are_drawn(run, preset):
    assert run["images"] == {"step-00000": 4, f"step-{STEPS:05d}": 4}


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_reserve_little_more_than_they_use(run, preset):
    for step in phases(run, "step"):
        assert step["peak_reserved"] < 1.15 * step["peak"] + MAPPED


@pytest.mark.parametrize("preset", PRESETS)
def test_the_forecast_of_a_preset_is_its_peak(run, preset):
    peak = max(line["peak"] for line in run["phases"])
    assert PRESETS[preset]["forecast_gib"] == pytest.approx(peak, rel=CLOSE)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_forecast_of_a_run_is_its_peak(run, preset):
    peak = max(line["peak"] for line in run["phases"])
    assert run["actual_gib"] == pytest.approx(peak, abs=0.05)
    assert run["forecast_gib"] == pytest.approx(peak, rel=CLOSE)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_launches_waits_and_copies_no_more_than_its_budget(run, preset):
    assert problems(phases(run, "step")[-1], BUDGETS[preset]) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gib", DRAWN)
def test_an_image_is_drawn(found, way, gib):
    (line,) = [line for line in found["drawing"] if (line["way"], line["gib"]) == (way, gib)]
    assert line["ended"] == "done"


@pytest.mark.parametrize("kind", UNET)
def test_a_step_of_the_unet_launches_no_more_than_its_budget(found, kind):
    assert problems(found["unet"][kind], dict(launches=UNET[kind])) == []


def test_an_optimizer_launches_few_kernels_whatever_the_number_of_layers(found):
    counts = found["optimizers"]
    assert len(counts) == 6
    assert {name: line for name, line in counts.items() if line["launches"] > MOST_OF_AN_OPTIMIZER} == {}
    assert {name for name, line in counts.items() if line["syncs"]} == {"Prodigy"}


@pytest.mark.parametrize("kind", ["LoRA", "GraLoRA"])
def test_a_step_takes_less_than_with_the_layers_of_peft(found, kind):
    own, other = found["unet"][kind], found["unet"][f"PEFT {kind}"]
    assert own["parameters"] == other["parameters"]
    assert own["launches"] < other["launches"]
    assert own["peak"] < other["peak"]
