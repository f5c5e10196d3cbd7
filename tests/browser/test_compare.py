"""Compare: several prompts, the best marked, and a blind comparison that survives a reload."""

import pytest
from page_browser import Tab
from page_server import until

pytestmark = pytest.mark.browser
NAMES = "robot-1 at"


@pytest.fixture
def tab(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.go("Compare")
    until(lambda: "sks robot" in tab.value("compare-prompt"), "the prompt of the run")
    yield tab
    tab.stays_home()
    tab.context.close()


def generate(tab: Tab, prompts: str, strengths: str, seeds: int) -> None:
    tab.fill("compare-prompt", prompts)
    tab.fill("strengths", strengths)
    tab.set_number("compare-steps", 2)
    tab.set_number("seeds", seeds)
    tab.page.click("#generate-grid")
    until(lambda: tab.page.locator("#compare-files").is_visible(), "the sheet")


def test_a_grid_of_two_prompts_is_scored_and_the_best_is_marked(tab):
    generate(tab, "a photo of sks robot\na drawing of sks robot", "0, 0.5, 1", 1)
    until(lambda: tab.page.locator("#grid img").count() == 6, "two rows of three strengths")
    tab.wait("grid", "robot-1 at 0.5 · seed 0 · a drawing of sks robot")
    assert tab.page.locator("#no-scores").is_visible()
    assert not tab.page.locator("#scores").is_visible()
    tab.page.click("#score")
    tab.wait("scores", "★ best")
    tab.page.locator("#no-scores").wait_for(state="hidden")
    assert "robot-1 at 0.5" in tab.text("scores")


def test_what_needs_the_grid_waits_for_it(tab):
    """Score and the blind comparison would take the grid before; Stop has something to stop only then."""
    buttons = ("generate-grid", "score", "blind-start", "stop-grid")
    tab.page.get_by_text("Blind comparison", exact=True).click()
    tab.fill("strengths", "0, 0.3, 0.6, 1")
    tab.set_number("compare-steps", 100)
    tab.set_number("seeds", 4)
    assert [tab.page.locator(f"#{name}").is_enabled() for name in buttons] == [True, True, True, False]
    tab.page.click("#generate-grid")
    tab.page.wait_for_function("document.getElementById('score').disabled")
    assert [tab.page.locator(f"#{name}").is_enabled() for name in buttons] == [False, False, False, True]
    tab.page.click("#stop-grid")
    tab.page.wait_for_function("!document.getElementById('score').disabled")
    assert [tab.page.locator(f"#{name}").is_enabled() for name in buttons] == [True, True, True, False]


def side(tab: Tab, name: str) -> str:
    return tab.page.locator(f"#blind-{name} img").get_attribute("src")


def test_blind_votes_survive_a_reload_and_names_come_at_the_end(tab):
    generate(tab, "a photo of sks robot", "0.25, 1", 3)
    tab.page.get_by_text("Blind comparison", exact=True).click()
    until(lambda: tab.value("blind-second") == "robot-1 at 1", "the contenders are those of the grid")
    tab.page.click("#blind-start")
    tab.wait("blind-text", "1 of 3: the prompt")
    section = tab.page.locator("#blind-text, #blind-left, #blind-right")
    assert not any(NAMES in text for text in section.all_inner_texts())
    assert not any(word in side(tab, "left") + side(tab, "right") for word in ("robot", "seed", "cell"))
    first = side(tab, "left")
    tab.page.click("#blind-vote-left")
    tab.wait("blind-text", "2 of 3: the prompt")
    until(lambda: side(tab, "left") != first, "the next pair")
    tab.page.reload()
    tab.page.wait_for_selector("#strip-state")
    tab.go("Compare")
    tab.wait("blind-text", "2 of 3: the prompt")
    tab.page.locator("#blind-left").wait_for()
    tab.page.click("#blind-vote-tie")
    tab.wait("blind-text", "3 of 3: the prompt")
    assert not tab.page.locator("#blind-result").is_visible()
    tab.page.click("#blind-vote-left")
    tab.page.locator("#blind-result").wait_for()
    until(lambda: "95 % interval" in tab.value("blind-result"), "the result has an interval")
    result = tab.value("blind-result")
    assert "robot-1 at 0.25" in result
    assert "robot-1 at 1" in result
    assert "1 tie not counted" in result
    tab.page.locator("#blind-left").wait_for(state="hidden")
