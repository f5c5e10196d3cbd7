"""The page in Debian's Chromium, as a person uses it."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from page_server import PATIENCE, Page, browser, end_runs, until
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from gralora_diffusion.data.dataset import EXAMPLE

pytestmark = pytest.mark.browser
TABS = ("Dataset", "Train", "Watch", "Sample", "Compare", "Export")
MILLIS = PATIENCE * 1000
STEPS = 300  # of a run that is to be stopped before its end, and then to reach it: a fast machine does 40 a second


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


class Tab:
    """A page in the browser; notes every request and every error on its console."""

    def __init__(self, chromium, url, width=1280, dark=False):
        size = dict(width=width, height=900)
        self.context = chromium.new_context(
            viewport=size, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        self.page, self.requests, self.errors = self.context.new_page(), [], []
        self.page.set_default_timeout(MILLIS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#strip-run")

    def go(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.first.is_visible():  # on a phone the last ones are in a menu
            self.page.locator("#tabs .overflow-menu > button").click()
            tab = self.page.locator("#tabs .overflow-dropdown button", has_text=name)
        tab.first.click()

    def fill(self, target: str, text) -> None:
        self.page.locator(f"#{target} input:not([type=range]), #{target} textarea").first.fill(str(text))

    def value(self, target: str) -> str:
        return self.page.locator(f"#{target} input, #{target} textarea").first.input_value()

    def text(self, target: str) -> str:
        return self.page.locator(f"#{target}").inner_text()

    def wait(self, target: str, words: str) -> None:
        try:
            self.page.wait_for_function(
                "([id, words]) => document.getElementById(id)?.innerText.includes(words)", arg=[target, words]
            )
        except PlaywrightTimeout:
            said = self.page.locator(".toast-body").all_inner_texts()
            raise AssertionError(
                f"#{target} never said {words!r}: {self.page.locator('#tabs').inner_text()}\nmessages: {said}"
            ) from None

    def wait_state(self, *states: str) -> str:
        return until(
            lambda: (found := self.value("strip-state")) in states and found, f"the state is one of {states}"
        )

    def step(self) -> int:
        return int(self.value("strip-step").split(" / ")[0].replace("-", "0"))

    def stays_home(self) -> None:
        away = [url for url in self.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
        assert not away
        assert not self.errors


def test_the_whole_way(chromium, page, tmp_path):
    """Images in, a caption, a check, a run that is stopped and resumed, images out, a comparison, a file that diffusers loads."""
    photos = [shutil.copy(EXAMPLE / f"0{i}.png", tmp_path / f"photo {i}.png") for i in range(4)]
    try:
        tab = Tab(chromium, page.url)
        tab.wait("captions", "00.png")  # what the page shows at first
        tab.page.set_input_files("#drop input[type=file]", photos)
        made = until(
            lambda: (
                list((page.home / "images").glob("*/*.png"))
                if len(list((page.home / "images").glob("*/*.png"))) == 4
                else None
            ),
            "4",
        )
        tab.wait("captions", "photo-3.png")
        cell = tab.page.locator("#captions .virtual-row").first.locator(".body-cell").nth(1)
        cell.dblclick()
        cell.get_by_label("Edit cell").fill("a photo of sks robot on white")
        cell.get_by_label("Edit cell").press("Enter")
        caption = sorted(made)[0].with_suffix(".txt")
        until(
            lambda: caption.is_file() and caption.read_text() == "a photo of sks robot on white\n",
            "the caption is saved",
        )
        tab.page.click("#check-set")
        tab.wait("findings", "no caption of its own")

        tab.go("Train")
        tab.fill("option-instance_prompt", "a photo of sks robot")
        tab.fill("option-max_train_steps", STEPS)
        tab.fill("option-rank", 8)
        tab.page.get_by_text("All options").click()
        tab.fill("find-option", "inference")
        tab.fill("option-num_inference_steps", 2)
        assert not tab.page.locator("#option-adam_beta1").is_visible()
        tab.fill("find-option", "batch size")
        tab.fill("option-train_batch_size", 1)
        tab.fill("find-option", "guidance")
        tab.fill("option-guidance_scale", "minus one")
        tab.wait("option-guidance_scale", "must be a number")
        assert "must be a number" in tab.value("problem")
        tab.page.click("#check")
        tab.page.locator(".toast-body", has_text="must be a number").wait_for()
        tab.wait("option-guidance_scale", "must be a number")
        tab.fill("option-guidance_scale", 2)
        tab.page.locator(".mistake").wait_for(state="detached")
        tab.wait("equal-command", "--instance_data_dir images/images-1")
        tab.wait("equal-command", "--train_batch_size 1")
        tab.page.click("#check")
        tab.wait("forecast", "layers")
        tab.wait("forecast", "memory")
        name = tab.value("run-name")
        tab.page.click("#start")
        run = page.home / "runs" / name
        until(lambda: tab.step() > 2, "the step moves")
        axes = tab.page.locator('#loss [aria-label*="for a linear scale"]')
        until(
            lambda: axes.count() == 2,
            "the loss of the first run that the page shows is drawn over numbers, not names",
        )
        tab.page.reload()
        tab.page.wait_for_selector("#strip-run")
        until(lambda: tab.value("strip-run") == name, "the run is shown again")
        before = tab.step()
        other = Tab(chromium, page.url)
        until(lambda: other.step() >= before > 0, "the second tab shows it too")
        tab.page.click("#strip-stop")
        other.wait_state("stopped")
        stopped = json.loads((run / "status.json").read_text())
        assert "stopped at step" in stopped["message"]
        other.stays_home()
        other.context.close()  # a page that follows a run takes half a core, which the run can use
        tab.go("Watch")
        until(lambda: tab.page.locator("#resume").is_enabled(), "it can be resumed")
        tab.page.click("#resume")
        tab.wait_state("done")
        assert len((run / "metrics.jsonl").read_text().splitlines()) == STEPS
        until(lambda: tab.page.locator("#samples img").count() == 8, "four prompts before and after")
        tab.go("Train")
        tab.fill("run-name", name)
        tab.wait("equal-command", f"--output_dir runs/{name}")
        tab.page.click("#check")
        tab.wait("run-name", "is there already")

        tab.go("Sample")
        until(lambda: "sks robot" in tab.value("prompt"), "the prompt of the run, to begin from")
        drawn = {}
        for strength in (0.5, 1):
            tab.page.locator("#strength input[type=number]").fill(str(strength))
            tab.page.locator("#strength input[type=number]").press("Tab")
            tab.page.get_by_text("More: a second adapter").click() if not drawn else None
            tab.page.locator("#sample-steps input[type=number]").fill("2")
            tab.page.locator("#sample-steps input[type=number]").press("Tab")
            tab.page.click("#draw")
            tab.wait("drawn", f"seed 1 · {name} {strength:g}")
            drawn[strength] = tab.page.locator("#drawn img").first.get_attribute("src")
        assert drawn[0.5] != drawn[1]
        assert tab.page.locator("#slider img").count() >= 2

        tab.go("Compare")
        until(lambda: "sks robot" in tab.value("compare-prompt"), "the prompt of the run, to begin from")
        tab.fill("strengths", "0, 1")
        tab.page.locator("#compare-steps input[type=number]").fill("2")
        tab.page.locator("#compare-steps input[type=number]").press("Tab")
        tab.page.click("#draw-grid")
        until(lambda: tab.page.locator("#grid img").count() == 2, "two cells")
        until(lambda: tab.page.locator("#compare-files").is_visible(), "the sheet")
        tab.page.click("#score")
        tab.wait("scores", f"{name} at 1")

        tab.go("Export")
        tab.page.get_by_label("diffusers: for load_lora_weights").check()
        tab.page.click("#export")
        tab.wait("exported", f"{name}-diffusers.safetensors")
        with tab.page.expect_download() as download:
            tab.page.locator("#download a[download]", has_text="").filter(has_text="").last.click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert __import__("hashlib").sha256(file.read_bytes()).hexdigest() in tab.text("exported")
        tab.stays_home()
    finally:
        end_runs(page.home)
    from gralora_diffusion import load_sdxl

    pipeline = load_sdxl()
    pipeline.load_lora_weights(str(file))
    assert pipeline.get_list_adapters()


def test_kills_leave_a_truthful_state(chromium, tmp_path):
    """kill -9 of the page: the run goes on, and a new page shows it.  kill -9 of the run: the page says so, and Resume works."""
    page = Page(tmp_path / "h")
    try:
        settings = dict(
            name="long",
            max_train_steps="5000",
            rank=8,
            k="1",
            train_batch_size="1",
            skip_final_inference=True,
            checkpointing_steps=20,
        )
        assert "error" not in page.call("start", *page.form(**settings))
        metrics = page.home / "runs" / "long" / "metrics.jsonl"
        lines = lambda: metrics.read_text().count("\n") if metrics.is_file() else 0  # noqa: E731
        until(lambda: lines() > 1, "it steps")
        page.close(signal.SIGKILL)
        before = lines()
        page = Page(tmp_path / "h")
        until(lambda: lines() > before, "it goes on")
        tab = Tab(chromium, page.url)
        tab.wait_state("running")
        until(lambda: (page.home / "runs" / "long" / "checkpoint-20").is_dir(), "a checkpoint")
        os.kill(json.loads((page.home / "runs" / "long" / "status.json").read_text())["pid"], signal.SIGKILL)
        assert tab.wait_state("killed", "failed", "done") == "killed"
        tab.go("Watch")
        until(lambda: "Resume goes on from checkpoint-" in tab.value("message"), "what happened is said")
        assert "training:" in tab.value("log") or "forecast" in tab.value("log")
        tab.page.click("#resume")
        tab.wait_state("running")
        until(lambda: tab.step() >= 21, "it goes on from the checkpoint")
        tab.page.click("#stop")
        tab.wait_state("stopped")
        tab.context.close()  # it would find the next server on this port
    finally:
        end_runs(page.home)
        page.close()


def test_draw_rests_while_it_draws(chromium, filled):
    """A press in between would be lost.  It wakes when it is stopped, at once for the next, and when the drawing is refused."""
    tab = Tab(chromium, filled.url)
    tab.go("Sample")
    until(lambda: "sks robot" in tab.value("prompt"), "the prompt of the run, to begin from")
    drawn = f"seed 1 · {tab.value('adapter')} 1"
    for press in ("#draw", "#halt", "#draw"):  # click() waits until a button can be pressed
        tab.page.click(press)
        if press == "#draw":
            tab.page.wait_for_function("document.getElementById('draw').disabled")
    tab.wait("drawn", drawn)
    tab.fill("prompt", "")
    tab.page.click("#draw")
    tab.page.locator(".toast-body", has_text="the prompt is empty").wait_for()
    tab.page.wait_for_function("!document.getElementById('draw').disabled")
    tab.stays_home()


HOSTILE = "<img src=x onerror=window.hacked=1>"


def test_a24_names_and_texts_are_never_markup(chromium, filled):
    config = json.loads((filled.home / "runs" / "robot-1" / "config.json").read_text()) | dict(
        validation_prompt=HOSTILE, instance_prompt=HOSTILE
    )
    hostile, images = (
        [filled.home / "runs" / name for name in ("robot-hostile", HOSTILE)],
        filled.home / "images" / "mine",
    )
    for run in hostile:
        shutil.copytree(filled.home / "runs" / "robot-1", run)
        (run / "config.json").write_text(json.dumps(config))
        (run / "log.txt").write_text(HOSTILE + "\n")
        (run / "status.json").write_text(json.dumps(dict(state="failed", message=HOSTILE, pid=1, time=1.0)))
    images.mkdir(parents=True)
    shutil.copy(EXAMPLE / "00.png", images / "a.png")
    (images / "a.txt").write_text(HOSTILE)
    try:
        tab = Tab(chromium, filled.url)
        tab.wait("captions", "00.png")
        tab.page.locator("#set input").click()
        tab.page.get_by_role("option", name="mine").click()
        tab.wait("captions", "<img src=x")
        for name in TABS:
            tab.go(name)
            time.sleep(0.3)
        tab.go("Train")
        tab.fill("run-name", HOSTILE)
        tab.wait("run-name", "cannot be named")
        tab.page.click("#start")
        tab.page.locator(".toast-body", has_text="a run cannot be named").wait_for()
        tab.wait("run-name", "cannot be named")
        tab.go("Dataset")
        tab.fill("new-set", HOSTILE)
        tab.page.click("#create-set")
        tab.page.locator(".toast-body", has_text="a set of images cannot be named").wait_for()
        assert not tab.page.get_by_text("Error", exact=True).filter(visible=True).count() > 1, (
            "the table and the images stay in sight"
        )
        tab.go("Watch")
        until(lambda: HOSTILE in tab.value("message"), "the message is text")
        assert tab.page.evaluate(
            "[window.hacked === undefined, document.querySelectorAll('img[src=x]').length]"
        ) == [True, 0]
        tab.stays_home()
    finally:
        for folder in (*hostile, images):
            shutil.rmtree(folder)


NAMELESS = """() => [...document.querySelectorAll('input, textarea, button, select, [role=slider]')].filter(e => {
    if (!e.checkVisibility() || e.closest('[aria-hidden=true]')) return false;
    const named = e.getAttribute('aria-label') || e.getAttribute('title') || e.innerText?.trim() || e.getAttribute('aria-labelledby');
    return !(named || [...(e.labels ?? [])].some(l => l.innerText.trim()));
}).map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_every_tab_fits_and_everything_has_a_name(chromium, filled, width, dark):
    """GRALORA_SCREENSHOTS=FOLDER keeps an image of each."""
    tab = Tab(chromium, filled.url, width, dark)
    for name in TABS:
        tab.go(name)
        tab.page.wait_for_timeout(700)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert tab.page.evaluate(NAMELESS) == [], name
        if folder := os.environ.get("GRALORA_SCREENSHOTS"):
            tab.page.screenshot(
                path=Path(folder) / f"{name}-{width}{'-dark' if dark else ''}.png", full_page=True
            )
    tab.stays_home()


def test_the_keyboard_reaches_start(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.page.get_by_role("tab", name="Dataset", exact=True).focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Enter")
    tab.page.locator("#run-name").locator("input, textarea").focus()
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.id") == "start":
            break
    assert tab.page.evaluate("document.activeElement.id") == "start"
