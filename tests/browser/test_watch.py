"""Watch: history, the next step, the report, notifications, the log, and nothing that hides another thing."""

import json
import os
import shutil
import time

import pytest
from page_browser import TABS, Tab
from page_server import until

from gralora_diffusion.ui.processes import birth_of

pytestmark = pytest.mark.browser
STATES = (
    "idle",
    "queued",
    "starting",
    "running",
    "stopping",
    "stopped",
    "cancelled",
    "failed",
    "killed",
    "done",
)
CUT_OFF = """([id, text]) => {
    const field = document.querySelector(`#${id} input, #${id} textarea`);
    const before = field.value;
    field.value = text;
    const cut = field.scrollWidth > field.clientWidth;
    field.value = before;
    return cut;
}"""
RECORD = """
window.asked = 0; window.notified = [];
const Real = window.Notification;
window.Notification = new Proxy(Real, {
    construct(target, [title]) { window.notified.push(title); return new target(title); },
    get(target, name) {
        if (name !== 'requestPermission') return Reflect.get(target, name);
        return () => { window.asked += 1; return target.requestPermission(); };
    },
});
"""


@pytest.fixture
def tab(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.go("Watch")
    tab.wait("history", "robot-1 · done")
    yield tab
    tab.stays_home()
    tab.context.close()


class FakeRun:
    """A run whose process is this one."""

    def __init__(self, home, name: str, **job):
        self.run = home / "runs" / name
        self.run.mkdir()
        shutil.copy(home / "runs" / "robot-1" / "config.json", self.run)
        me = dict(pid=os.getpid(), born=birth_of(os.getpid()), started=time.time())
        job = dict(config={}, created=time.time(), state="started", **me) | job
        (self.run / "job.json").write_text(json.dumps(job))

    def status(self, state: str, **facts) -> None:
        status = dict(state=state, message="", pid=os.getpid(), time=time.time() + 5) | facts
        (self.run / "status.json").write_text(json.dumps(status))

    def end(self) -> None:
        """As when the process has ended."""
        job = json.loads((self.run / "job.json").read_text())
        (self.run / "job.json").write_text(json.dumps(job | dict(born=1.0)))
        self.status("done")


def test_a_run_is_renamed_deleted_and_brought_back(tab, filled):
    shutil.copytree(filled.home / "runs" / "robot-1", filled.home / "runs" / "second")
    tab.wait("history", "second · done")
    tab.page.locator("#history .thumbnail-item", has_text="second · done").click()
    until(lambda: tab.value("run") == "second", "the card's run is chosen")
    tab.fill("new-run-name", "../x")
    tab.page.click("#rename-run")
    tab.page.locator(".toast-body", has_text="a run cannot be named").wait_for()
    tab.fill("new-run-name", "renamed")
    tab.page.locator("#new-run-name textarea, #new-run-name input").press("Enter")
    tab.wait("history", "renamed · done")
    assert (filled.home / "runs" / "renamed" / "adapter.safetensors").is_file()
    tab.page.click("#delete-run")
    until(
        lambda: tab.value("delete-question") == "Delete renamed with its adapter, images and checkpoints?",
        "?",
    )
    tab.page.click("#keep-run")
    tab.page.locator("#confirm-delete-run").wait_for(state="hidden")
    assert (filled.home / "runs" / "renamed").is_dir()
    tab.page.click("#delete-run")
    tab.page.click("#confirm-delete-run")
    until(lambda: not (filled.home / "runs" / "renamed").exists(), "it is gone")
    until(lambda: tab.value("run") == "robot-1", "another run is shown")
    tab.page.click("#undo-delete-run")
    until(lambda: tab.value("run") == "renamed", "it is back, and shown")
    assert (filled.home / "runs" / "renamed" / "adapter.safetensors").is_file()
    shutil.rmtree(filled.home / "runs" / "renamed")


def test_a_run_that_is_done_leads_to_sample_export_and_its_report(tab, filled):
    for button, name, field in (
        ("try-it", "Sample", "adapter"),
        ("go-to-export", "Export", "export-adapter"),
    ):
        tab.go("Watch")
        tab.page.locator(f"#{button}").wait_for()
        tab.page.set_viewport_size(dict(width=1280, height=300))
        tab.page.evaluate("scrollBy(0, 60)")
        tab.page.click(f"#{button}")
        tab.page.locator(f"#{field}").wait_for()
        assert tab.page.get_by_role("tab", name=name, exact=True).get_attribute("aria-selected") == "true"
        until(lambda field=field: tab.value(field) == "robot-1", "the run's adapter is chosen")
        until(lambda: tab.page.evaluate("scrollY") == 0, "the tab is shown from its top")
    tab.go("Watch")
    with tab.context.expect_page() as opened:
        tab.page.click("#open-report")
    opened.value.get_by_text("Options that differ from the defaults").wait_for()
    assert opened.value.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_a24_a_hostile_report_runs_nothing(tab, filled):
    """Its script and handlers are dead, it sends nothing, and it does not leave by itself."""
    run = filled.home / "runs" / "hostile"
    shutil.copytree(filled.home / "runs" / "robot-1", run)
    harm = "<meta http-equiv=refresh content='0;url=/config'><script>document.title='hacked'</script>"
    harm += "<img src=x onerror=\"document.title='hacked'\"><form action=/login method=post></form>"
    (run / "report.html").write_text(f"<title>fine</title>{harm}<p>read me</p>")
    answers = []
    page = tab.context.new_page()
    page.on("response", lambda response: answers.append(response.url))
    page.goto(f"{filled.url}/report/hostile/")
    page.get_by_text("read me").wait_for()
    page.wait_for_timeout(1000)  # for what must not happen
    assert answers == [f"{filled.url}/report/hostile/"]
    assert (page.title(), page.url) == ("fine", answers[0])
    shutil.rmtree(run)


def test_title_and_notification_when_a_run_ends_asked_by_a_click_alone(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.context.grant_permissions(["notifications"])
    tab.context.add_init_script(RECORD)
    tab.page.reload()
    tab.page.wait_for_selector("#strip-state")
    run = FakeRun(filled.home, "busy")
    run.status("running", step=3, steps=9)
    try:
        tab.wait_state("running")
        until(lambda: tab.page.title() == "3 / 9 busy · GraLoRA", "the title follows the steps")
        tab.go("Watch")
        assert tab.page.evaluate("window.asked") == 0
        tab.page.click("#notify")
        until(lambda: tab.text("notify") == "Notifications are on", "it was allowed")
        assert tab.page.evaluate("window.asked") == 1
        hide = "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        tab.page.evaluate(hide + "document.dispatchEvent(new Event('visibilitychange'))")
        run.end()
        until(lambda: tab.page.evaluate("window.notified") == ["busy: done"], "a hidden page notifies")
        until(lambda: tab.page.title() == "busy: done · GraLoRA", "the title says it too")
    finally:
        shutil.rmtree(run.run)
    tab.context.close()


def test_the_log_follows_and_begins_without_warnings_of_libraries(tab, filled):
    log = filled.home / "runs" / "robot-1" / "log.txt"
    noise = "/usr/lib/python3/site-packages/torch/x.py:12: UserWarning: old\n  warnings.warn('old')\n"
    try:
        log.write_text(noise + "".join(f"line {number}\n" for number in range(25)))
        until(lambda: tab.value("log").endswith("line 24"), "the log is shown")
        assert tab.value("log").startswith("line 0")
        with open(log, "a") as file:
            file.write("the newest line\n")
        until(lambda: tab.value("log").endswith("the newest line"), "the log is shown")
        at_end = "field => field.scrollTop + field.clientHeight >= field.scrollHeight - 4"
        log_field = tab.page.locator("#log textarea")
        until(lambda: log_field.evaluate(at_end), "the newest line is in sight")
    finally:
        log.unlink()


def test_values_that_are_not_known_are_hidden(tab, filled):
    """A cell of the header with "-" says nothing, and makes the header two rows high."""
    busy = FakeRun(filled.home, "busy")
    busy.status("running", step=1, steps=9)
    try:
        tab.wait("history", "busy · running")
        tab.wait_state("running")  # from the same look as the card
        for name in ("speed", "time-left", "memory"):
            assert tab.value(f"strip-{name}") == "-"
            tab.page.locator(f"#strip-{name}").wait_for(state="hidden")
        assert tab.page.locator("#strip-step").is_visible()
    finally:
        shutil.rmtree(busy.run)
    tab.wait_state("done")
    until(lambda: tab.value("strip-run") == "robot-1", "the run that has ended")
    tab.page.locator("#strip-speed").wait_for()
    assert tab.value("strip-speed").endswith(("it/s", "s/it"))


def test_the_queue_is_reordered(tab, filled):
    busy = FakeRun(filled.home, "busy")
    busy.status("running", step=1, steps=9)
    config = json.loads((filled.home / "runs" / "robot-1" / "config.json").read_text())
    runs = [FakeRun(filled.home, name, state="queued", config=config) for name in ("first", "next")]
    try:
        tab.wait("history", "next · number 2 in the queue")
        tab.page.locator("#history .thumbnail-item", has_text="next · number").click()
        tab.wait("stop", "Remove from queue")
        tab.page.click("#queue-earlier")
        tab.wait("history", "next · number 1 in the queue")
        tab.wait("history", "first · number 2 in the queue")
    finally:
        for run in (*runs, busy):  # the queued ones first: none of them starts
            shutil.rmtree(run.run)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_covered_or_hidden(chromium, filled, width):
    """Every state fits, messages leave Stop & save free, and every tab is in sight."""
    tab = Tab(chromium, filled.url, width)
    for state in STATES:
        assert not tab.page.evaluate(CUT_OFF, ["strip-state", state]), state
    for name in TABS:
        tab_button = tab.page.get_by_role("tab", name=name, exact=True)
        until(lambda button=tab_button: button.first.is_visible(), f"the tab {name} is in sight")
    tab.go("Watch")
    tab.wait("history", "robot-1")
    tab.fill("new-run-name", "../x")
    tab.page.click("#rename-run")
    message = tab.page.locator(".toast-body").first
    message.wait_for()
    covered = """(button) => {
        const box = document.querySelector(button).getBoundingClientRect();
        const found = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
        return !found.closest(button);
    }"""
    for button in ("#rename-run", "#delete-run"):
        tab.page.locator(button).scroll_into_view_if_needed()
        assert not tab.page.evaluate(covered, button), button
    tab.page.evaluate("window.scrollTo(0, 0)")
    assert not tab.page.evaluate(covered, "#strip-stop")
    tab.context.close()


def test_the_plot_of_the_loss_follows_the_run(tab, filled):
    run, texts = FakeRun(filled.home, "long"), tab.page.locator("#loss svg text")
    for steps in (5, 15, 60, 65):  # where the plot's axis ends at the last step
        lines = [json.dumps(dict(step=step, loss=1 / step, seconds=1.0)) for step in range(1, steps + 1)]
        (run.run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        run.status("running", step=steps, steps=65)
        if steps == 5:
            tab.wait("history", "long · running")
            tab.page.locator("#run input").click()
            tab.page.get_by_role("option", name="long", exact=True).click()
            until(lambda: tab.value("run") == "long", "the run is chosen")
        until(lambda steps=steps: texts.all_text_contents()[-1:] == [str(steps)], f"it ends at {steps}")
    assert tab.page.locator("#loss p").inner_text().split() == ["■", "each", "step", "■", "smoothed"]
    lines = [json.dumps(dict(step=step, validation_loss=0.5, seconds=1.0)) for step in (20, 40)]
    (run.run / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    until(lambda: "validation loss" in tab.text("loss"), "the legend names the loss on held-out images")
    assert "best: 20" in texts.all_text_contents()
    assert tab.page.locator("#loss polyline").count() == 3
    run.end()
