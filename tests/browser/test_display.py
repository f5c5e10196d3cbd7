"""What the page displays: widths, names, keyboard, texts that are never markup, buttons that are disabled."""

import json
import os
import shutil
from pathlib import Path

import pytest
from page_browser import TABS, Tab
from page_server import until

from gralora_diffusion.data.dataset import EXAMPLE

pytestmark = pytest.mark.browser
MOST = dict(count=8, steps=100)  # images and steps of a generation that is stopped
HOSTILE = "<img src=x onerror=window.hacked=1>"
WATCH_GENERATE = """() => {  // whether it was disabled, however short
    const button = document.getElementById('generate');
    window.wasDisabled = false;
    const note = () => { window.wasDisabled ||= button.disabled; };
    new MutationObserver(note).observe(button, {attributes: true, attributeFilter: ['disabled']});
}"""
NAMELESS = """() => {  // the controls that a screen reader could not name
    const controls = document.querySelectorAll('input, textarea, button, select, [role=slider]');
    const isNameless = control => {
        if (!control.checkVisibility() || control.closest('[aria-hidden=true]')) return false;
        const names = ['aria-label', 'title', 'aria-labelledby'].map(name => control.getAttribute(name));
        const labels = [...(control.labels ?? [])].map(label => label.innerText.trim());
        return ![...names, control.innerText?.trim(), ...labels].some(Boolean);
    };
    return [...controls].filter(isNameless).map(control => control.outerHTML.slice(0, 120));
}"""


def test_generate_is_disabled_while_it_runs(tab):
    """Another click would be lost.  It is enabled when it was stopped, and when the request is refused.

    What is stopped would take long: a fast machine cannot be done before the click.
    """
    tab.go("Sample")
    until(lambda: "sks robot" in tab.value("prompt"), "the prompt of the run")
    caption = f"seed 1 · {tab.value('adapter')} at 1"
    tab.page.get_by_text("More: negative prompt").click()
    tab.set_number("count", MOST["count"])
    tab.set_number("sample-steps", MOST["steps"])
    tab.page.evaluate(WATCH_GENERATE)
    tab.page.click("#generate")
    tab.page.wait_for_function("document.getElementById('generate').disabled")
    tab.page.click("#stop-generating")
    tab.page.wait_for_function("!document.getElementById('generate').disabled")
    tab.set_number("count", 2)
    tab.set_number("sample-steps", 1)
    tab.page.evaluate(WATCH_GENERATE)
    tab.page.click("#generate")
    tab.page.wait_for_function("window.wasDisabled")
    tab.wait("generated", caption)
    tab.fill("prompt", "")
    tab.page.click("#generate")
    tab.page.locator(".toast-body", has_text="the prompt is empty").wait_for()
    tab.page.wait_for_function("!document.getElementById('generate').disabled")


@pytest.fixture
def hostile(filled):
    """Runs and a dataset whose names and texts are markup."""
    config = json.loads((filled.home / "runs" / "robot-1" / "config.json").read_text())
    config |= dict(validation_prompt=HOSTILE, instance_prompt=HOSTILE)
    runs = [filled.home / "runs" / name for name in ("robot-hostile", HOSTILE)]
    images = filled.home / "images" / "mine"
    for run in runs:
        shutil.copytree(filled.home / "runs" / "robot-1", run)
        (run / "config.json").write_text(json.dumps(config))
        (run / "log.txt").write_text(HOSTILE + "\n")
        (run / "status.json").write_text(json.dumps(dict(state="failed", message=HOSTILE, pid=1, time=1.0)))
    images.mkdir(parents=True)
    shutil.copy(EXAMPLE / "00.png", images / "a.png")
    (images / "a.txt").write_text(HOSTILE)
    yield filled
    for folder in (*runs, images):
        shutil.rmtree(folder)


def assert_nothing_is_markup(tab: Tab) -> None:
    assert tab.page.evaluate(
        "[window.hacked === undefined, document.querySelectorAll('img[src=x]').length]"
    ) == [True, 0]
    tab.stays_home()


def test_a24_captions_on_disk_are_never_markup(chromium, hostile):
    tab = Tab(chromium, hostile.url)
    tab.wait("cards", "00.png")
    tab.page.locator("#set input").click()
    tab.page.get_by_role("option", name="mine").click()
    until(lambda: "<img src=x" in tab.value("caption-0"), "the caption is text")
    tab.settle()
    assert_nothing_is_markup(tab)
    tab.context.close()


@pytest.mark.parametrize("names", [TABS[:3], TABS[3:]])
def test_a24_names_and_texts_on_disk_are_never_markup(chromium, hostile, names):
    tab = Tab(chromium, hostile.url)
    for name in names:
        tab.go(name)
        tab.settle()
    if "Watch" in names:
        until(lambda: HOSTILE in tab.value("message"), "the message is text")
    assert_nothing_is_markup(tab)
    tab.context.close()


def test_a24_names_that_are_typed_are_never_markup(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.wait("cards", "00.png")
    tab.go("Train")
    tab.fill("run-name", HOSTILE)
    tab.wait("run-name", "cannot be named")
    tab.page.click("#start")
    tab.wait("run-name", "a run cannot be named")
    tab.go("Dataset")
    tab.fill("new-set", HOSTILE)
    tab.page.locator("#manage-sets button").first.click()
    tab.page.click("#create-set")
    tab.page.locator(".toast-body", has_text="a dataset cannot be named").wait_for()
    errors = tab.page.get_by_text("Error", exact=True).filter(visible=True)
    assert errors.count() <= 1, "the table and the images stay in sight"
    assert_nothing_is_markup(tab)
    tab.context.close()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_every_tab_fits_and_everything_has_a_name(chromium, filled, width, dark):
    """GRALORA_SCREENSHOTS=FOLDER keeps an image of each."""
    tab = Tab(chromium, filled.url, width, dark)
    for name in TABS:
        tab.go(name)
        tab.settle()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert tab.page.evaluate(NAMELESS) == [], name
        if folder := os.environ.get("GRALORA_SCREENSHOTS"):
            tab.page.screenshot(
                path=Path(folder) / f"{name}-{width}{'-dark' if dark else ''}.png", full_page=True
            )
    tab.stays_home()
    tab.context.close()


@pytest.mark.parametrize("dark", [False, True])
def test_an_image_under_the_mouse_keeps_its_colors_and_its_caption(chromium, filled, dark):
    tab = Tab(chromium, filled.url, dark=dark)
    tab.go("Watch")
    for gallery in ("history", "samples"):
        image = tab.page.locator(f"#{gallery} .thumbnail-item").first
        image.scroll_into_view_if_needed()
        image.hover()
        assert image.evaluate("image => image.matches(':hover') && getComputedStyle(image).filter") == "none"
        caption = image.locator(".caption-label")
        assert caption.evaluate("caption => getComputedStyle(caption).opacity") == "1"
    tab.context.close()


def test_the_keyboard_reaches_start(tab):
    tab.page.get_by_role("tab", name="Dataset", exact=True).focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Enter")
    tab.page.locator("#run-name").locator("input, textarea").focus()
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.id") == "start":
            break
    assert tab.page.evaluate("document.activeElement.id") == "start"
