"""Lists of adapters that are open while a run ends."""

from functools import partial

import pytest
from page_browser import Tab
from page_server import until

pytestmark = pytest.mark.browser
LISTS = dict(Sample="adapter", Compare="compare-adapters", Export="export-adapter")
SHORT = dict(
    name="second",
    max_train_steps="2",
    rank=8,
    k="1",
    train_batch_size="1",
    skip_final_inference=True,
)


def has_robot_alone(tab: Tab, adapters: str) -> bool:
    """Whether robot-1 is in the field of a list, or alone beside it where a list takes several."""
    several = tab.page.locator(f"#{adapters} .token").all_inner_texts()
    return (tab.value(adapters) or "".join(several)).strip() == "robot-1"


def offered(tab: Tab, adapters: str) -> str:
    """What a list offers; it is opened and closed."""
    field = tab.page.locator(f"#{adapters} input").first
    field.click()
    names = " | ".join(tab.page.get_by_role("option").all_inner_texts())
    field.press("Escape")
    field.blur()
    return names


def test_the_adapter_of_a_run_that_ends_is_in_the_list_that_is_open(chromium, filled):
    """What was chosen stays chosen, as somebody may be working with it."""
    tabs = {adapters: Tab(chromium, filled.url) for adapters in LISTS.values()}
    for (name, adapters), tab in zip(LISTS.items(), tabs.values(), strict=True):
        tab.go(name)
        until(partial(has_robot_alone, tab, adapters), "the first run is chosen")
    assert "error" not in filled.call("start", *filled.form(**SHORT))
    for adapters, tab in tabs.items():
        until(lambda tab=tab, adapters=adapters: "second" in offered(tab, adapters), "it is offered")
        until(partial(has_robot_alone, tab, adapters), "the first run stays chosen")
        tab.stays_home()
        tab.context.close()
