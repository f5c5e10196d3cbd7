import os
import shutil

import pytest
from page_browser import Tab, browser
from page_server import Page, end_runs


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """One server for all that do not kill it."""
    page = Page(tmp_path_factory.mktemp("browser") / "h")
    yield page
    end_runs(page.home)
    page.close()


@pytest.fixture(scope="module")
def filled(page, finished_run):
    """The same with a run that has ended: GRALORA_SCREENSHOTS_RUN, or one of 20 steps."""
    shutil.copytree(os.environ.get("GRALORA_SCREENSHOTS_RUN") or finished_run, page.home / "runs" / "robot-1")
    return page


@pytest.fixture
def tab(chromium, filled):
    """The page of `filled`; several files have one of their own, which opens their tab."""
    tab = Tab(chromium, filled.url)
    yield tab
    tab.stays_home()
    tab.context.close()
