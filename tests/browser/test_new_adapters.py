"""Lists of adapters that are open while a run ends."""

import shutil
from functools import partial

import pytest
from page_browser import Tab
from page_server import until

pytestmark = pytest.mark.browser
LISTS = dict(Sample="adapter", Compare="compare-adapters", Export="export-adapter")
SHORT = dict(
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


@pytest.mark.parametrize("name", LISTS)
def test_the_adapter_of_a_run_that_ends_is_in_the_list_that_is_open(chromium, filled, name):
    """What was chosen stays chosen, as somebody may be working with it."""
    adapters, run = LISTS[name], f"next-{name.lower()}"
    tab = Tab(chromium, filled.url)
    tab.go(name)
    until(partial(has_robot_alone, tab, adapters), "the first run is chosen")
    assert "error" not in filled.call("start", *filled.form(name=run, **SHORT))
    until(lambda: run in offered(tab, adapters), "it is offered")
    until(partial(has_robot_alone, tab, adapters), "the first run stays chosen")
    tab.stays_home()
    tab.context.close()
    shutil.rmtree(filled.home / "runs" / run)
