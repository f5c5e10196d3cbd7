"""Debian's Chromium, and the page in it as a person uses it."""

import re
import shutil
from contextlib import contextmanager

from page_server import PATIENCE, until
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PROXY = "photos.example.com"  # a name that leads to this machine, as that of a proxy
TABS = ("Dataset", "Train", "Watch", "Sample", "Compare", "Export")
MILLIS = PATIENCE * 1000
QUESTIONS = re.compile(r"/gradio_api/(queue/join|run/)")
WHEN_IDLE = "() => new Promise(done => requestIdleCallback(() => done(true), {timeout: 10000}))"
STREAMS = ("/heartbeat/", "/queue/data")  # are open as long as the page


@contextmanager
def browser():
    """Debian's Chromium, with no way out of this machine."""
    assert CHROMIUM, (
        "the tests of the page need Chromium: apt-get install -y --no-install-recommends chromium"
    )
    away = f"--host-resolver-rules=MAP {PROXY} 127.0.0.1, MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", away],
        )
        try:
            yield chromium
        finally:
            chromium.close()


class Tab:
    """A page in the browser; notes every request and every error on its console."""

    def __init__(self, chromium, url, width=1280, dark=False):
        size = dict(width=width, height=900)
        self.context = chromium.new_context(
            viewport=size, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        self.page = self.context.new_page()
        self.requests = []
        self.unanswered = set()
        self.errors = []
        self.page.set_default_timeout(MILLIS)
        self.page.on("request", self.note_request)
        self.page.on("requestfinished", self.note_answer)
        self.page.on("requestfailed", self.note_answer)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#strip-state")

    def note_request(self, request) -> None:
        self.requests.append(request.url)
        if not any(stream in request.url for stream in STREAMS):
            self.unanswered.add(request)

    def note_answer(self, request) -> None:
        self.unanswered.discard(request)

    def settle(self) -> None:
        """Wait until the page has its answers and asks for nothing more."""
        until(self.is_quiet, "the page asks for nothing more")

    def is_quiet(self, milliseconds: int = 700) -> bool:
        count = len(self.requests)
        self.page.wait_for_timeout(milliseconds)
        self.page.wait_for_function(WHEN_IDLE)  # a slow page may be about to ask
        return count == len(self.requests) and not self.unanswered

    @contextmanager
    def held(self):
        """Within the block the page's questions wait, as on a slow machine; its end answers them."""
        waiting, holding = [], [True]
        self.page.route(QUESTIONS, lambda r: waiting.append(r) if holding else r.continue_())
        yield
        until(lambda: self.page.wait_for_timeout(100) or waiting, "something is asked")
        holding.clear()
        for question in waiting:
            question.continue_()
        self.settle()

    def go(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name, exact=True)
        menu = self.page.locator("#tabs .overflow-menu > button")  # on a phone the last tabs are in it
        until(lambda: tab.first.is_visible() or menu.is_visible(), f"the tab {name}, or the menu, is visible")
        if not tab.first.is_visible():
            menu.click()
            tab = self.page.locator("#tabs .overflow-dropdown button", has_text=name)
        tab.first.click()

    def fill(self, target: str, text) -> None:
        self.page.locator(f"#{target} input:not([type=range]), #{target} textarea").first.fill(str(text))

    def set_number(self, target: str, value: float) -> None:
        """Set a slider by the number beside it."""
        number = self.page.locator(f"#{target} input[type=number]")
        number.fill(str(value))
        number.press("Tab")

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
            messages = self.page.locator(".toast-body").all_inner_texts()
            content = self.page.locator("#tabs").inner_text()
            raise AssertionError(
                f"#{target} never contained {words!r}: {content}\nmessages: {messages}"
            ) from None

    def wait_state(self, *states: str) -> str:
        try:
            return until(lambda: (now := self.value("strip-state")) in states and now, f"the state {states}")
        except AssertionError as error:
            raise AssertionError(f"{error}, it is {self.value('strip-state')!r}") from None

    def step(self) -> int:
        return int(self.value("strip-step").split(" / ")[0].replace("-", "0"))

    def stays_home(self) -> None:
        away = [url for url in self.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
        assert not away
        assert not self.errors
