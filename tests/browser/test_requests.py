"""What the page asks the server for: how often, and with which values."""

import json

import pytest
from page_browser import Tab
from page_server import until

from gralora_diffusion.ui.sample_fields import NAMES

pytestmark = pytest.mark.browser
HIDE = """hidden => {
    Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
    document.dispatchEvent(new Event('visibilitychange'));
}"""


def test_a_gallery_is_loaded_when_its_tab_is_opened(tab):
    """And with it Gradio's video player, a fifth of what the first load was."""
    tab.settle()
    assert not any("Gallery" in url or "/hls-" in url for url in tab.requests)
    tab.go("Watch")
    tab.wait("history", "robot-1 · done")
    assert any("Gallery" in url for url in tab.requests)


def asked_in(tab: Tab, milliseconds: int) -> int:
    count = len(tab.requests)
    tab.page.wait_for_timeout(milliseconds)
    return len(tab.requests) - count


def test_an_idle_page_asks_seldom_and_a_hidden_one_never(tab):
    """The strip and Watch at once, then every 5 s; on a slow machine the first events of a page come late."""
    asked = until(lambda: (count := asked_in(tab, 16_000)) <= 5 and [count], "the page asks seldom")
    assert asked[0] >= 1
    tab.page.evaluate(HIDE, True)
    tab.settle()
    assert asked_in(tab, 8000) == 0
    count = len(tab.requests)
    tab.page.evaluate(HIDE, False)
    until(lambda: tab.page.wait_for_timeout(200) or len(tab.requests) > count, "it asks again")


def is_generation(request) -> bool:
    """Whether this asks for images; what the browser keeps of the fields goes to another address."""
    return "queue/join" in request.url and "sks robot" in (request.post_data or "")


def test_a_blank_guidance_scale_is_sent_as_blank_whether_more_is_open_or_not(tab):
    tab.go("Sample")
    until(lambda: "sks robot" in tab.value("prompt"), "the prompt of the run")
    tab.set_number("count", 1)
    sent = []
    for state in ("closed", "open"):
        if state == "open":
            tab.page.get_by_text("More: ").click()
            tab.page.locator("#guidance input, #guidance textarea").first.wait_for()
        with tab.page.expect_request(is_generation) as request:
            tab.page.click("#generate")
        values = json.loads(request.value.post_data)["data"]
        sent.append(["" if value is None else value for value in values])
        tab.page.wait_for_function("!document.getElementById('generate').disabled")
    assert sent[0] == sent[1]
    assert dict(zip(NAMES, sent[0], strict=True)) == dict(
        adapter="robot-1",
        strength=1,
        prompt=tab.value("prompt"),
        count=1,
        seed=0,
        random_seed=False,
        sweep="",
        second="none",
        second_strength=0.5,
        third="none",
        third_strength=0.5,
        fourth="none",
        fourth_strength=0.5,
        steps=25,
        guidance="",  # which would be 0 in a field of numbers
        base="same as training",
        with_base=True,
        negative="",
        size="",
        scheduler="same as the base model",
        preview_every=5,
    )


def test_the_adapter_is_that_of_the_newest_run_that_has_ended(tab, filled):
    tab.go("Sample")
    until(lambda: tab.value("adapter") == "robot-1", "the finished run, not one of its checkpoints")
