import resource
import shutil
from contextlib import contextmanager

import pytest
from page_server import Page, end_runs

from gralora_diffusion.ui.image_sets import COPYING
from gralora_diffusion.ui.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory, finished_run):
    """The page as a process of its own, with one finished run, and a copy that was killed before."""
    home = tmp_path_factory.mktemp("home") / "h"
    shutil.copytree(finished_run, home / "runs" / "robot-1")
    (home / "images" / f"{COPYING}{'0' * 16}").mkdir(parents=True)
    page = Page(home)
    yield page
    end_runs(home)
    page.close()


@pytest.fixture
def file_size_limit():
    """with file_size_limit(bytes): no file can be written beyond that size, as on a disk that is full."""

    @contextmanager
    def limit(most: int):
        before, highest = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, highest))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, highest))

    return limit
