"""Export in the browser: sizes and errors before files are made, and copies for another tool."""

import shutil

import pytest
from page_browser import Tab
from page_server import Page, end_runs, until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory, finished_run):
    folder = tmp_path_factory.mktemp("export")
    (folder / "loras").mkdir()
    shutil.copytree(finished_run, folder / "h" / "runs" / "robot-1")
    page = Page(folder / "h", "--comfyui", folder / "loras")
    page.loras = folder / "loras"
    yield page
    end_runs(page.home)
    page.close()


@pytest.fixture
def tab(chromium, page):
    tab = Tab(chromium, page.url)
    tab.go("Export")
    until(lambda: tab.value("export-adapter") == "robot-1", "the run's adapter is chosen")
    yield tab
    tab.stays_home()
    tab.context.close()


def size_on_page(tab: Tab, kind: str) -> float:
    """Bytes beside a format."""
    label = tab.page.locator("#kinds label", has_text=f"{kind}:").inner_text()
    number, unit = label.rsplit(" · ", 1)[1].split()
    return float(number) * dict(kB=1e3, MB=1e6, GB=1e9)[unit]


def test_sizes_and_the_error_of_a_small_file_are_shown_before_it_is_made(tab):
    tab.wait("kinds", "B")
    until(
        lambda: tab.text("kinds").count("kB") + tab.text("kinds").count("MB") == 6, "each format has a size"
    )
    exact = size_on_page(tab, "comfyui")
    parts = tab.page.locator("#export-rank, #exported, #download").all()
    assert not any(part.is_visible() for part in parts)
    tab.page.get_by_label("Another rank").check()
    tab.fill("export-rank", "2")
    tab.wait("export-error", "Rank 2: relative error")
    until(lambda: size_on_page(tab, "comfyui") < exact, "it is smaller")
    tab.page.get_by_label("Small (rank 32)").check()
    tab.wait("export-error", "Rank 32 holds this adapter exactly.")
    tab.page.locator("#export-rank").wait_for(state="hidden")
    tab.page.get_by_label("Exact", exact=True).check()
    until(lambda: tab.text("export-error") == "", "nothing is lost")
    tab.page.click("#export")
    tab.wait("exported", "robot-1.safetensors")
    tab.wait("exported", "robot-1.png")  # its preview, which ComfyUI and A1111 show
    until(lambda: "robot-1.png" in tab.text("download").replace("\n", ""), "the preview can be downloaded")
    tab.wait("export-warning", "fits no SDXL model")
    assert tab.page.locator("#exported").inner_text().count("B") >= 1


IN_SIGHT = """() => {
    const {top, bottom} = document.getElementById('exported').getBoundingClientRect();
    return (top + bottom) / 2 > 0 && (top + bottom) / 2 < innerHeight;
}"""


@pytest.fixture
def phone(tab) -> Tab:
    """A small screen with the button at its lower edge and the result below."""
    tab.page.set_viewport_size(dict(width=390, height=700))
    tab.page.evaluate("document.getElementById('export').scrollIntoView({block: 'end'})")
    return tab


def press(tab: Tab, then: str = "") -> None:
    """Export, without Playwright's own scrolling; then: JavaScript to run before the answer arrives."""
    tab.page.evaluate(f"() => {{ document.getElementById('export').click(); {then} }}")


def test_on_a_phone_what_was_exported_scrolls_into_view(phone):
    press(phone)
    phone.wait("exported", "robot-1.safetensors")
    phone.page.wait_for_function(IN_SIGHT)


def test_content_that_scrolls_the_page_does_not_count_as_the_user(phone):
    press(phone, "scrollTo({top: 0, behavior: 'instant'});")
    phone.wait("exported", "robot-1.safetensors")
    phone.page.wait_for_function(IN_SIGHT)


def test_what_was_exported_stays_in_sight_when_content_comes_above_it(phone):
    phone.page.evaluate(
        f"""() => {{
            const late = '<div style="flex: none; height: 3000px"></div>', inSight = {IN_SIGHT};
            document.body.style.overflowAnchor = document.documentElement.style.overflowAnchor = 'none';
            const waiting = setInterval(() => {{
                if (!document.getElementById('exported')?.offsetParent || !inSight()) return;
                clearInterval(waiting);
                document.getElementById('export').insertAdjacentHTML('beforebegin', late);
                window.pushedOut = !inSight();
            }}, 20);
        }}"""
    )
    press(phone)
    phone.page.wait_for_function("window.pushedOut !== undefined")
    assert phone.page.evaluate("window.pushedOut")
    phone.page.wait_for_function(IN_SIGHT)


def wheel_up(tab: Tab) -> None:
    """To the top; wheels do nothing while the page scrolls by itself, so more than once."""
    tab.page.mouse.move(200, 300)
    until(
        lambda: tab.page.mouse.wheel(0, -5000) or tab.page.evaluate("scrollY") == 0, "the page is at its top"
    )


def test_who_has_scrolled_away_before_or_after_the_answer_stays_there(phone):
    with phone.held():
        press(phone)
        wheel_up(phone)
    phone.wait("exported", "robot-1.safetensors")
    phone.page.wait_for_timeout(1500)
    assert phone.page.evaluate("scrollY") == 0
    press(phone)
    phone.page.wait_for_function(IN_SIGHT)
    wheel_up(phone)
    phone.page.wait_for_timeout(1500)
    assert phone.page.evaluate("scrollY") == 0


def test_who_types_in_another_field_is_not_interrupted(phone):
    with phone.held():
        press(phone)
        phone.page.locator("#export-adapter input").press_sequentially("robot")
        place = phone.page.evaluate("scrollY")
    phone.wait("exported", "robot-1.safetensors")
    phone.page.wait_for_timeout(1500)
    assert phone.page.evaluate("scrollY") == place
    assert not phone.page.evaluate(IN_SIGHT)


def test_the_preview_and_the_trigger_words_are_there(tab):
    until(lambda: "sks robot" in tab.value("export-triggers"), "the trigger words")
    tab.page.wait_for_function("document.querySelector('#export-preview img')?.naturalWidth > 0")


def test_a_copy_for_comfyui_is_made_once(tab, page):
    until(lambda: tab.value("copy-name") == "robot-1", "its name is suggested")
    tab.page.click("#copy-comfyui")
    tab.page.locator(".toast-body", has_text="robot-1.safetensors was copied to ComfyUI").wait_for()
    before = (page.loras / "robot-1.safetensors").read_bytes()
    tab.page.click("#copy-comfyui")
    tab.page.locator(".toast-body", has_text="choose another file name").wait_for()
    assert (page.loras / "robot-1.safetensors").read_bytes() == before
    tab.fill("copy-name", "../robot-2")
    tab.page.click("#copy-comfyui")
    tab.page.locator(".toast-body", has_text="the file cannot be named").wait_for()
    assert {path.name for path in page.loras.iterdir()} == {"robot-1.safetensors", "robot-1.png"}
