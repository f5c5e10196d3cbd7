"""From images to a file for another tool, in Chromium, as a person does it.

Each stage goes on where another has led, and leads there itself if it runs alone.
"""

import hashlib
import json
import shutil
from pathlib import Path

import psutil
import pytest
from page_browser import Tab
from page_server import until

from gralora_diffusion import load_sdxl
from gralora_diffusion.data.dataset import EXAMPLE

pytestmark = pytest.mark.browser
STEPS = 100  # of a run that is stopped before its end, then resumed


@pytest.fixture(scope="module")
def tab(chromium, page):
    tab = Tab(chromium, page.url)
    yield tab
    tab.context.close()


@pytest.fixture(scope="module")
def with_images(tab, page, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("photos")
    photos = [shutil.copy(EXAMPLE / f"0{i}.png", folder / f"photo {i}.png") for i in range(4)]
    add_images(tab, page.home, photos)


@pytest.fixture(scope="module")
def stopped(with_images, tab, chromium, page) -> Path:
    """The folder of a run that was started and stopped."""
    fill_form(tab)
    return page.home / "runs" / start_and_stop(tab, chromium, page)


@pytest.fixture(scope="module")
def finished(stopped, tab) -> str:
    """The name of that run, resumed and done."""
    resume(tab, stopped)
    return stopped.name


def test_images_are_added_captioned_and_checked(with_images, tab):
    tab.stays_home()


def test_a_run_is_started_and_stopped(stopped, tab):
    tab.stays_home()


def test_the_run_is_resumed_and_its_name_is_taken(finished, tab):
    refuse_taken_name(tab, finished)
    tab.stays_home()


def test_its_adapter_is_sampled(finished, tab):
    sample(tab, finished)
    tab.stays_home()


def test_its_strengths_are_compared_and_scored(finished, tab):
    compare(tab, finished)
    tab.stays_home()


def test_diffusers_loads_the_file_that_is_exported(finished, tab, tmp_path):
    file = export(tab, finished, tmp_path)
    tab.stays_home()
    pipeline = load_sdxl()
    pipeline.load_lora_weights(str(file))
    assert pipeline.get_list_adapters()


def add_images(tab: Tab, home: Path, photos: list[str]) -> None:
    """Drop images, edit the first one's caption, check the set."""
    tab.wait("cards", "00.png")  # of the bundled set, which the page shows at first
    tab.page.set_input_files("#drop input[type=file]", photos)
    until(lambda: len(list(home.glob("images/*/*.png"))) == 4, "four images are in the set")
    tab.wait("cards", "photo-3.png")
    tab.fill("caption-0", "a photo of sks robot on white")
    caption = min(home.glob("images/*/*.png")).with_suffix(".txt")
    until(caption.is_file, "the caption is saved")
    assert caption.read_text() == "a photo of sks robot on white\n"
    tab.page.click("#check-set")
    tab.wait("findings", "no caption of its own")


def fill_form(tab: Tab) -> None:
    """Fields in front and below, a mistake that is marked and corrected, the command, the forecast."""
    tab.go("Train")
    tab.fill("option-instance_prompt", "a photo of sks robot")
    tab.fill("option-max_train_steps", STEPS)
    tab.fill("option-rank", 8)
    tab.fill("option-train_batch_size", 1)
    tab.fill("option-validation_steps", 0)
    tab.page.get_by_text("All other options").click()
    tab.fill("find-option", "inference")
    tab.fill("option-num_inference_steps", 2)
    assert not tab.page.locator("#option-adam_beta1").is_visible()
    tab.fill("find-option", "guidance")
    tab.fill("option-guidance_scale", "minus one")
    tab.wait("option-guidance_scale", "must be a number")
    assert "must be a number" in tab.value("problem")
    tab.page.click("#check")
    tab.wait("option-guidance_scale", "must be a number")
    tab.fill("option-guidance_scale", 2)
    tab.page.locator(".mistake").wait_for(state="detached")
    tab.page.get_by_text("Equivalent command and config file").click()
    until(lambda: "--instance_data_dir images/images-1" in tab.value("equal-command"), "the command has it")
    until(lambda: "--train_batch_size 1" in tab.value("equal-command"), "the command has it")
    tab.page.get_by_text("Estimate in detail").click()
    tab.page.click("#check")
    tab.wait("forecast", "layers")
    tab.wait("forecast", "Memory")


def start_and_stop(tab: Tab, chromium, page) -> str:
    """The run is displayed after a reload and in a second tab, and stops when asked; returns its name.

    Its process is held meanwhile: a fast machine would do the last step before the click.
    """
    name = tab.value("run-name")
    run = page.home / "runs" / name
    tab.page.click("#start")
    until(lambda: lines(run / "metrics.jsonl") > 2, "the run does steps")
    trainer = psutil.Process(json.loads((run / "status.json").read_text())["pid"])
    trainer.suspend()
    until(lambda: tab.step() > 2, "the step moves")
    until(lambda: tab.page.locator("#loss polyline").count() == 2, "the loss is plotted")
    tab.page.reload()
    tab.page.wait_for_selector("#strip-state")
    until(lambda: tab.value("strip-run") == name, "the run is displayed again")
    before = tab.step()
    other = Tab(chromium, page.url)
    until(lambda: other.step() >= before > 0, "the second tab displays it too")
    tab.page.click("#strip-stop")
    other.wait_state("stopping")
    trainer.resume()
    other.wait_state("stopped")
    assert "stopped at step" in json.loads((run / "status.json").read_text())["message"]
    other.stays_home()
    other.context.close()  # a page that follows a run takes half a core, which the run can use
    return name


def lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.is_file() else 0


def resume(tab: Tab, run: Path) -> None:
    tab.go("Watch")
    until(lambda: tab.page.locator("#resume").is_enabled(), "it can be resumed")
    tab.page.click("#resume")
    tab.wait_state("done")
    assert lines(run / "metrics.jsonl") == STEPS
    until(lambda: tab.page.locator("#samples img").count() == 8, "four prompts before and after")


def refuse_taken_name(tab: Tab, name: str) -> None:
    tab.go("Train")
    tab.fill("run-name", name)
    tab.page.click("#check")
    tab.wait("run-name", "already exists")


def sample(tab: Tab, name: str) -> None:
    """Another strength gives another image."""
    tab.go("Sample")
    until(lambda: "sks robot" in tab.value("prompt"), "the prompt of the run")
    tab.page.get_by_text("More: negative prompt").click()
    tab.set_number("sample-steps", 2)
    images = {}
    for strength in (0.5, 1):
        tab.set_number("strength", strength)
        tab.page.click("#generate")
        tab.wait("generated", f"seed 1 · {name} at {strength:g}")
        images[strength] = tab.page.locator("#generated img").first.get_attribute("src")
    assert images[0.5] != images[1]
    until(lambda: tab.page.locator("#slider img").count() >= 2, "the base beside it")


def compare(tab: Tab, name: str) -> None:
    tab.go("Compare")
    until(lambda: "sks robot" in tab.value("compare-prompt"), "the prompt of the run")
    tab.fill("strengths", "0, 1")
    tab.set_number("compare-steps", 2)
    tab.page.click("#generate-grid")
    until(lambda: tab.page.locator("#grid img").count() == 2, "two cells")
    until(lambda: tab.page.locator("#compare-files").is_visible(), "the sheet")
    tab.page.click("#score")
    tab.wait("scores", f"{name} at 1")


def export(tab: Tab, name: str, folder: Path) -> Path:
    """The file that the browser downloads, whose checksum the page displays."""
    tab.go("Export")
    tab.page.get_by_label("diffusers: for load_lora_weights").check()
    tab.page.click("#export")
    tab.wait("exported", f"{name}-diffusers.safetensors")
    with tab.page.expect_download() as download:
        tab.page.locator("#download a[download]").last.click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in tab.text("exported")
    return file
