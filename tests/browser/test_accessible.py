"""axe-core on every tab: no serious fault, in light and dark, at 1280 and 390 px."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_browser import TABS, Tab

pytestmark = pytest.mark.browser
SERIOUS = ("serious", "critical")


def serious_faults(tab: Tab) -> list[str]:
    """'rule: what it says (number of elements, the first one)' of each serious fault on the page."""
    found = []
    for fault in Axe().run(tab.page).response["violations"]:
        if fault["impact"] in SERIOUS:
            nodes = fault["nodes"]
            where = nodes[0]["html"][:160]
            found.append(f"{fault['id']}: {fault['help']} ({len(nodes)}, first {where})")
    return found


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_tab_has_a_serious_fault(chromium, filled, width, dark):
    tab = Tab(chromium, filled.url, width, dark)
    faults = {}
    for name in TABS:
        tab.go(name)
        tab.page.wait_for_timeout(500)  # animations of Gradio's tabs, during which colors are in between
        if found := serious_faults(tab):
            faults[name] = found
    tab.stays_home()
    assert not faults, faults
