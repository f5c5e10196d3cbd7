import shutil

import pytest
from page_server import Page, end_runs

from gralora_diffusion.ui.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory, finished_run):
    """The page as a process of its own, with one finished run."""
    home = tmp_path_factory.mktemp("home") / "h"
    shutil.copytree(finished_run, home / "runs" / "robot-1")
    page = Page(home)
    yield page
    end_runs(home)
    page.close()
