"""axe-core on every tab: no serious fault, in light and dark, at 1280 and 390 px."""

from pathlib import Path

import axe_playwright_python
import pytest
from page_browser import TABS, Tab

pytestmark = pytest.mark.browser
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
FAULTS = """async () => {  // 'rule: what it says (number of elements, the first one)' of what is serious
    const result = await axe.run(document, {resultTypes: ['violations']});
    return result.violations
        .filter(fault => ['serious', 'critical'].includes(fault.impact))
        .map(({id, help, nodes}) => `${id}: ${help} (${nodes.length}, ${nodes[0].html.slice(0, 160)})`);
}"""
SETTLED = """() => document.getAnimations().every(animation =>
    animation.playState !== 'running' || animation.effect.getComputedTiming().iterations === Infinity)"""
IN_TABS = dict(zip(TABS, ("cards", "start", "history", "generate", "grid", "export-preview"), strict=True))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_tab_has_a_serious_fault(chromium, filled, width, dark):
    """Once for each size and theme, in one page; axe is injected once, which takes longest."""
    tab = Tab(chromium, filled.url, width, dark)
    tab.page.evaluate(AXE.read_text())
    assert tab.page.evaluate("document.body.classList.contains('dark')") is dark
    faults = {}
    for name in TABS:
        tab.go(name)
        tab.page.locator(f"#{IN_TABS[name]}").wait_for()
        tab.page.wait_for_function(SETTLED)  # colors are in between during animations
        if found := tab.page.evaluate(FAULTS):
            faults[name] = found
    tab.stays_home()
    tab.context.close()
    assert not faults, faults


def test_a_fault_would_be_found(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.page.evaluate(AXE.read_text())
    tab.page.evaluate("document.querySelector('#header h1').style.color = '#eeeeee'")
    assert any(fault.startswith("color-contrast") for fault in tab.page.evaluate(FAULTS))
    tab.context.close()
