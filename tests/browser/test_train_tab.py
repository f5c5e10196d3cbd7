"""The Train tab in Chromium: three questions, mistakes at their field, a form that survives a reload."""

import json
import shutil
from pathlib import Path

import pytest
from page_browser import Tab
from page_server import until

from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.ui.run_files import raw_status
from gralora_diffusion.ui.workspace import BUNDLED, EMBEDDED, SDXL

pytestmark = pytest.mark.browser


@pytest.fixture
def mine(filled):
    """A dataset of two photos without captions."""
    folder = filled.home / "images" / "mine"
    folder.mkdir(parents=True)
    for number in range(2):
        shutil.copy(EXAMPLE / f"0{number}.png", folder / f"{number}.png")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tab(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.go("Train")
    until(lambda: tab.value("run-name"), "the form is there")
    yield tab
    tab.stays_home()
    tab.context.close()


def choose(tab: Tab, target: str, words: str) -> None:
    tab.page.locator(f"#{target} input").click()
    tab.page.get_by_role("option").filter(has_text=words).first.click()


def load(tab: Tab, config: Path) -> None:
    with tab.page.expect_file_chooser() as chooser:
        tab.page.click("#load-config")
    chooser.value.set_files(config)


def has(tab: Tab, target: str, value: str) -> None:
    until(lambda: tab.value(target) == value, f"{target} is {value}")


def in_sight(tab: Tab, target: str) -> bool:
    return tab.page.evaluate(
        """id => {
            const {top, bottom} = document.getElementById(id).getBoundingClientRect();
            return top >= 0 && bottom <= innerHeight;
        }""",
        target,
    )


def test_the_form_survives_a_reload(mine, tab):
    """Fields in sight, in the closed list, and the questions; a token does not."""
    choose(tab, "option-instance_data_dir", "mine")
    tab.page.get_by_label("A style").check()
    choose(tab, "option-pretrained_model_name_or_path", "SDXL 1.0")
    tab.fill("option-instance_prompt", "a photo of sks dog 🐶")
    tab.fill("option-max_train_steps", 77)
    tab.page.get_by_text("All other options").click()
    tab.fill("option-adam_weight_decay", 0.25)
    tab.fill("option-hub_token", "hf_averysecrettoken")
    tab.page.get_by_text("Equivalent command and config file").click()
    until(lambda: "--adam_weight_decay 0.25" in tab.value("equal-command"), "the command has it")
    tab.fill("run-name", "dog-7")
    until(lambda: "--output_dir runs/dog-7" in tab.value("equal-command"), "the command has it")
    tab.page.reload()
    tab.page.wait_for_selector("#strip-state")
    has(tab, "set", "mine")  # Dataset shows the one that is trained on
    tab.go("Train")
    has(tab, "run-name", "dog-7")
    has(tab, "option-instance_prompt", "a photo of sks dog 🐶")
    has(tab, "option-max_train_steps", "77")
    has(tab, "option-instance_data_dir", "mine")
    assert SDXL in tab.value("option-pretrained_model_name_or_path")
    assert tab.page.get_by_label("A style").is_checked()
    tab.page.get_by_text("All other options").click()
    has(tab, "option-adam_weight_decay", "0.25")
    assert tab.value("option-hub_token") == ""


def test_the_form_is_not_kept_in_another_browser(tab, chromium, filled):
    tab.fill("option-instance_prompt", "a photo of sks dog")
    tab.settle()
    other = Tab(chromium, filled.url)
    other.go("Train")
    until(lambda: other.value("run-name"), "the form is there")
    assert other.value("option-instance_prompt") == ""
    other.context.close()


def test_a_prompt_that_is_typed_while_an_answer_is_under_way_stays(mine, tab):
    choose(tab, "option-instance_data_dir", "mine")
    has(tab, "run-name", "mine-1")
    tab.settle()
    with tab.held():
        tab.page.get_by_label("A style").check()
        tab.fill("option-instance_prompt", "typed")
    assert tab.value("option-instance_prompt") == "typed"


def test_a_name_that_is_typed_while_an_answer_is_under_way_stays(mine, tab):
    suggested = tab.value("run-name")  # for the bundled images
    tab.settle()
    with tab.held():
        choose(tab, "option-instance_data_dir", "mine")
        tab.fill("run-name", "my-own")
    assert tab.value("run-name") == "my-own"
    choose(tab, "option-instance_data_dir", BUNDLED)
    has(tab, "run-name", suggested)


def test_a_mistake_is_displayed_once_at_its_field(mine, tab):
    """With the name of the dataset, without flags, paths and messages that cover something."""
    choose(tab, "option-instance_data_dir", "mine")
    tab.page.click("#start")
    tab.wait("option-instance_prompt", "mine has no caption for any of its images")
    sentence = tab.page.locator(".mistake").inner_text()
    assert "--" not in sentence
    assert "/" not in sentence
    assert tab.page.locator(".toast-body").count() == 0
    assert tab.page.get_by_text(sentence, exact=True).count() == 1
    assert tab.value("problem") == sentence
    tab.fill("option-instance_prompt", "a photo of sks dog")
    tab.page.locator(".mistake").wait_for(state="detached")
    assert not tab.page.locator("#problem").is_visible()


def test_captions_that_were_added_meanwhile_clear_the_mistake(mine, tab):
    choose(tab, "option-instance_data_dir", "mine")
    tab.page.click("#start")
    tab.wait("option-instance_prompt", "mine has no caption for any of its images")
    tab.go("Dataset")
    for image in mine.glob("*.png"):
        image.with_suffix(".txt").write_text("a photo of sks dog\n")
    tab.go("Train")
    tab.page.locator(".mistake").wait_for(state="detached")
    tab.page.locator("#problem").wait_for(state="hidden")


def test_a_mistake_in_the_list_opens_it(tab):
    tab.page.get_by_text("All other options").click()
    tab.fill("option-adam_beta1", 2)
    tab.wait("option-adam_beta1", "at most")
    tab.page.get_by_text("All other options").click()
    tab.page.locator("#option-adam_beta1").wait_for(state="hidden")
    tab.page.click("#check")
    until(lambda: tab.page.locator("#option-adam_beta1").is_visible(), "the list is open")
    tab.wait("option-adam_beta1", "it must be at most 0.999999")
    until(lambda: in_sight(tab, "option-adam_beta1"), "it is in sight")


def test_the_demo_model_is_said_to_learn_no_photos(mine, tab):
    """Where the base is chosen, which has the same name everywhere."""
    assert tab.value("option-pretrained_model_name_or_path") == EMBEDDED
    assert not tab.page.locator("#base-warning").is_visible()
    choose(tab, "option-instance_data_dir", "mine")
    tab.fill("option-instance_prompt", "a photo of sks dog")
    tab.wait("base-warning", "The demo model cannot learn photos")
    below = tab.page.locator("#base-warning").bounding_box()
    base = tab.page.locator("#option-pretrained_model_name_or_path").bounding_box()
    assert 0 <= below["y"] - base["y"] - base["height"] < 40  # pixels
    choose(tab, "option-pretrained_model_name_or_path", "SDXL 1.0")
    tab.page.locator("#base-warning").wait_for(state="hidden")


def test_options_follow_the_base_and_the_card(tab):
    """No 1024 pixels on the demo model."""
    resolution = tab.page.locator("#option-resolution input, #option-resolution textarea")
    choose(tab, "option-pretrained_model_name_or_path", "SDXL 1.0")
    until(lambda: resolution.get_attribute("placeholder") == "1024", "the placeholder follows")
    choose(tab, "card", "12 GB")
    has(tab, "option-resolution", "1024")
    has(tab, "option-max_train_steps", "800")
    has(tab, "option-rank", "32")
    choose(tab, "option-pretrained_model_name_or_path", EMBEDDED)
    has(tab, "option-resolution", "")
    has(tab, "option-rank", "64")
    until(lambda: resolution.get_attribute("placeholder") == "64", "the placeholder follows")


def test_the_list_of_options_is_searched(tab):
    """By words of names and help; where none has them, it says so."""
    tab.page.get_by_text("All other options").click()
    shown = tab.page.locator("#all-options .option:visible")
    until(lambda: shown.count() > 100, "all are there")
    assert tab.page.get_by_text(f"All other options ({shown.count()})").is_visible()
    tab.fill("find-option", "weight decay")
    until(lambda: 0 < shown.count() < 8, "few are left")
    assert tab.page.locator("#option-adam_weight_decay").is_visible()
    assert not tab.page.locator("#no-option").is_visible()
    tab.fill("find-option", "weight dekay")
    tab.page.locator("#no-option").wait_for()
    assert shown.count() == 0
    tab.fill("find-option", "")
    tab.page.locator("#no-option").wait_for(state="hidden")
    has(tab, "option-keep_best", "last step")


@pytest.mark.parametrize("width", [390, 1280])
def test_start_and_the_estimate_stay_in_sight(chromium, filled, width):
    tab = Tab(chromium, filled.url, width)
    tab.go("Train")
    until(lambda: tab.value("estimate-memory").startswith("about "), "the estimate is there by itself")
    assert "for other tools" in tab.value("estimate-files")
    tab.page.get_by_text("All other options").click()
    tab.page.locator("#option-adam_beta1").wait_for()
    for place in (0, 600, 1500):
        tab.page.evaluate("y => scrollTo(0, y)", place)
        until(lambda: in_sight(tab, "start") and in_sight(tab, "estimate-time"), f"at {place}")
    tab.stays_home()
    tab.context.close()


def test_a_run_generates_previews_six_times_by_itself(filled):
    name = "with-previews"
    settings = dict(max_train_steps="12", rank=8, num_inference_steps=1, num_validation_images=1)
    assert "error" not in filled.call("start", *filled.form(name=name, **settings))
    run = filled.home / "runs" / name
    until(lambda: raw_status(run).get("state") == "done", "the run ends")
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in (run / "samples").iterdir())
    assert steps == [0, 2, 4, 6, 8, 10, 12]
    shutil.rmtree(run)


def test_start_from_lists_the_adapters_of_now(tab, filled):
    """Also of a run that ended after the page was loaded; a file that is damaged is refused at the field."""
    later = filled.home / "runs" / "later"
    shutil.copytree(filled.home / "runs" / "robot-1", later)
    (filled.home / "adapters" / "damaged.safetensors").write_bytes(b"pickle")
    try:
        tab.go("Dataset")
        tab.go("Train")
        tab.page.locator("#option-start_from input").click()
        tab.page.get_by_role("option", name="later", exact=True).click()
        tab.page.get_by_text("Estimate in detail").click()
        tab.wait("forecast", "Starts from")
        tab.wait("forecast", "later")
        choose(tab, "option-start_from", "damaged")
        tab.wait("option-start_from", "damaged.safetensors is not a complete .safetensors file")
    finally:
        shutil.rmtree(later)
        (filled.home / "adapters" / "damaged.safetensors").unlink()


def test_a_config_is_loaded_and_saved(tab, tmp_path):
    """Its mistakes name labels; what is saved is what was loaded."""
    config = tmp_path / "config.json"
    tab.page.get_by_text("Equivalent command and config file").click()
    config.write_text(json.dumps(dict(adapter=dict(rank="x"))))
    load(tab, config)
    tab.page.locator(".toast-body", has_text="“Rank” is 'x'; it must be a whole number").wait_for()
    config.write_text(json.dumps(dict(adapter=dict(rank=16), seed=7)))
    load(tab, config)
    has(tab, "option-rank", "16")
    until(lambda: "--seed 7" in tab.value("equal-command"), "the command has it")
    has(tab, "option-validation_steps", "0")
