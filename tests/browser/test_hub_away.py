"""A base of the hub without a network: a sign at once, and a sentence that names the hub, not a file."""

import shutil

import pytest
from page_browser import Tab
from page_server import Page, end_runs, refused, sample_request, until

pytestmark = pytest.mark.browser
BASE = "stabilityai/stable-diffusion-xl-base-1.0"
SENTENCE = "the Hugging Face hub could not be reached"


@pytest.fixture(scope="module")
def page(tmp_path_factory, finished_run):
    folder = tmp_path_factory.mktemp("away")
    shutil.copytree(finished_run, folder / "h" / "runs" / "robot-1")
    page = Page(folder / "h", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(folder / "hub"))
    yield page
    end_runs(page.home)
    page.close()


def test_a_run_says_where_it_looks_and_that_the_hub_is_away(chromium, page):
    answer = page.call("start", *page.form(name="away", pretrained_model_name_or_path=BASE))
    if refused(answer):  # the form may know it before a run is made
        assert SENTENCE in answer["error"]
        return
    tab = Tab(chromium, page.url)
    tab.go("Watch")
    until(lambda: tab.value("strip-run") == "away", "the run is shown at once")
    tab.wait_state("failed")
    until(lambda: SENTENCE in tab.value("message"), "the message names the hub")
    looking = f"looking for {BASE} on the Hugging Face hub"
    until(lambda: looking in tab.value("log"), "the log says where it looks")
    assert "config.json" not in tab.value("message")
    tab.stays_home()
    tab.context.close()


def test_an_image_is_refused_with_the_same_sentence(page):
    answer = page.call("sample", *sample_request("robot-1", BASE))
    assert refused(answer)
    assert SENTENCE in answer["error"]
