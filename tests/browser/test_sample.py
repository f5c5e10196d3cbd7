"""Sample: prompts, previews, sweeps, several adapters, and a history that survives a reload."""

import io
import json

import pytest
from page_browser import Tab
from page_server import until
from PIL import Image

pytestmark = pytest.mark.browser
WATCH_THE_END = """() => {  // of the next generation: the button is disabled while it runs
    const button = document.getElementById('generate');
    window.generationEnded = false;
    const note = () => { if (!button.disabled) window.generationEnded = true; };
    new MutationObserver(note).observe(button, {attributes: true, attributeFilter: ['disabled']});
}"""


@pytest.fixture
def tab(chromium, filled):
    tab = Tab(chromium, filled.url)
    tab.go("Sample")
    until(lambda: "sks robot" in tab.value("prompt"), "the prompt of the run")
    yield tab
    tab.stays_home()
    tab.context.close()


def generate(tab: Tab, **fields) -> list:
    """Press Generate with these fields, wait for the end; the values that were sent."""
    for name, value in fields.items():
        tab.fill(name.replace("_", "-"), value)
    tab.page.evaluate(WATCH_THE_END)
    with tab.page.expect_request(lambda r: "queue/join" in r.url and "sks" in (r.post_data or "")) as request:
        tab.page.click("#generate")
    tab.page.wait_for_function("window.generationEnded")
    return json.loads(request.value.post_data)["data"]


def more(tab: Tab) -> None:
    tab.page.get_by_text("More: negative prompt").click()
    tab.page.locator("#negative").wait_for()


def served(tab: Tab, url: str) -> Image.Image:
    answer = tab.context.request.get(url)
    assert answer.status == 200
    return Image.open(io.BytesIO(answer.body()))


def test_several_prompts_and_a_strength_sweep(tab, filled):
    more(tab)
    tab.set_number("sample-steps", 2)
    tab.set_number("count", 1)
    generate(tab, prompt="a photo of sks robot\na drawing of sks robot", sweep="0.5, 1")
    captions = tab.page.locator("#generated .caption-label")
    until(lambda: captions.count() == 4, "two prompts at two strengths")
    texts = captions.all_inner_texts()
    assert [("0.5" in text, "drawing" in text) for text in texts] == [
        (True, False),
        (False, False),
        (True, True),
        (False, True),
    ]
    wide = tab.page.locator("#slider img").first.get_attribute("src")
    captions.first.click()
    until(lambda: tab.page.locator("#slider img").count() >= 2, "the base beside it")
    assert wide == tab.page.locator("#slider img").first.get_attribute("src") or wide


def test_previews_are_visible_before_the_image(tab):
    more(tab)
    tab.set_number("sample-steps", 100)
    tab.set_number("preview-every", 10)
    tab.set_number("count", 8)
    tab.fill("prompt", "\n".join(["a photo of sks robot"] * 8))  # a fast machine is not done before the click
    tab.page.locator("#beside input").uncheck()
    tab.page.click("#generate")
    tab.wait("sample-progress", "Preview of image 1 of 64 · step")
    preview = tab.page.locator("#slider img").first
    until(lambda: "preview" in (preview.get_attribute("src") or ""), "the preview is in the slider")
    tab.page.click("#stop-generating")
    tab.page.wait_for_function("!document.getElementById('generate').disabled")
    tab.fill("prompt", "a photo of sks robot")
    tab.set_number("count", 1)
    tab.set_number("sample-steps", 2)
    generate(tab)
    tab.wait("sample-progress", "1 of 1")


def test_a_prompt_that_is_typed_before_one_is_suggested_stays(tab):
    until(lambda: tab.value("prompt"), "the prompt of the run")
    tab.fill("prompt", "")
    tab.settle()
    with tab.held():
        choose_adapter(tab, "checkpoint of step 20")
        tab.fill("prompt", "typed")
    assert tab.value("prompt") == "typed"
    tab.fill("prompt", "")
    choose_adapter(tab, "robot-1")
    until(lambda: "sks robot" in tab.value("prompt"), "the suggestion is taken")


def choose_adapter(tab: Tab, name: str) -> None:
    tab.page.locator("#adapter input").first.click()
    tab.page.get_by_role("option", name=name).first.click()


def test_a_new_seed_each_time_is_displayed(tab):
    more(tab)
    tab.set_number("sample-steps", 1)
    tab.set_number("count", 1)
    tab.page.locator("#random-seed input").check()
    seeds = []
    for _ in range(2):
        generate(tab)
        until(lambda: new_seed(tab, seeds), "another seed is displayed, and an image of it")
        seeds.append(tab.value("seed"))


def new_seed(tab: Tab, known: list[str]) -> bool:
    seed = tab.value("seed")
    return seed not in known and f"seed {seed} " in tab.text("generated")


def test_a_second_adapter_opens_the_row_of_the_third(tab, filled):
    more(tab)
    assert not tab.page.locator("#third").is_visible()
    tab.page.locator("#second input").first.click()
    tab.page.get_by_role("option", name="robot-1, checkpoint of step 20").click()
    tab.page.locator("#third").wait_for()
    tab.set_number("sample-steps", 1)
    tab.set_number("count", 1)
    sent = generate(tab)
    assert sent[5] == "robot-1/checkpoint-20"
    tab.wait("generated", "robot-1 at 1, robot-1/checkpoint-20 at 0.5")


def test_the_history_survives_a_reload_and_gives_its_settings_back(tab, filled):
    more(tab)
    tab.set_number("sample-steps", 2)
    tab.set_number("count", 1)
    tab.set_number("strength", 0.6)
    sent = generate(tab, prompt="a photo of sks robot at night", seed="41", negative="red", size="96x64")
    tab.wait("history-images", "seed 41 · robot-1 at 0.6 · a photo of sks robot at night")
    tab.page.reload()
    tab.page.wait_for_selector("#strip-state")
    tab.go("Sample")
    tab.wait("history-images", "seed 41 · robot-1 at 0.6 · a photo")
    tab.page.locator("#history-images .thumbnail-item", has_text="seed 41").first.click()
    tab.page.locator("#use-settings").wait_for()
    until(lambda: "not: red" in tab.value("history-facts"), "its settings")
    url = tab.page.locator("#history-image img").get_attribute("src")
    with served(tab, url) as image:
        assert image.size == (96, 64)
        assert image.text["parameters"].startswith("a photo of sks robot at night <lora:robot-1:0.6>")
        assert json.loads(image.text["gralora"])["seed"] == 41
    tab.page.click("#use-settings")
    until(lambda: tab.value("seed") == "41", "the seed is back")
    more(tab)
    again = generate(tab)
    known = {0: 0, 1: 1, 2: 2, 4: 4, 7: 7, 11: 11, 12: 12}  # the fields that determine the image
    assert [again[n] for n in known] == [sent[n] for n in known]
    tab.page.click("#favorite")
    until(lambda: tab.page.locator("#favorite").inner_text() == "Remove from favorites", "it is one")
    tab.page.locator("#favorites-only input").check()
    tab.wait("history-images", "★ seed 41 · robot-1 at 0.6")
    images = tab.page.locator("#history-images .thumbnail-item")
    until(lambda: images.count() == 1, "the favorite alone")
    questions = []
    tab.page.on("dialog", lambda dialog: questions.append(dialog.message) or dialog.accept())
    tab.page.click("#delete-image")
    tab.wait("history-count", "No favorites yet.")
    named = "the image of seed 41 (“a photo of sks robot at night”)"
    assert questions == [f"Delete {named}? It is a favorite."]
    tab.page.locator(".toast-body", has_text=f"{named[1:]} was deleted").wait_for()
    assert not tab.page.locator("#use-settings").is_visible()
    tab.page.click("#undo-delete-image")
    tab.wait("history-images", "★ seed 41 · robot-1 at 0.6")
    until(lambda: framed(tab).count() == 1, "it is chosen")
    assert "not: red" in tab.value("history-facts")


def framed(tab: Tab):
    """The image of the history in the frame."""
    return tab.page.locator("#history-images .thumbnail-item.selected")


def test_the_frame_stays_on_the_chosen_image(tab):
    """When others come before it, and until it is deleted."""
    more(tab)
    tab.set_number("sample-steps", 1)
    tab.set_number("count", 2)
    generate(tab, seed="61")
    tab.wait("history-images", "seed 62")
    tab.page.locator("#history-images .thumbnail-item", has_text="seed 61").first.click()
    until(lambda: "seed 61" in tab.value("history-facts"), "it is chosen")
    generate(tab, seed="63")
    tab.wait("history-images", "seed 64")
    until(lambda: framed(tab).count() == 1 and "seed 61" in framed(tab).inner_text(), "the frame follows")
    assert "seed 61" in tab.value("history-facts")
    tab.page.on("dialog", lambda dialog: dialog.accept())
    tab.page.click("#delete-image")
    tab.page.wait_for_function("!document.getElementById('history-images').innerText.includes('seed 61')")
    until(lambda: framed(tab).count() == 0, "no frame")
    assert not tab.page.locator("#delete-image").is_visible()
    tab.page.click("#undo-delete-image")
    until(lambda: framed(tab).count() == 1 and "seed 61" in framed(tab).inner_text(), "it is back")
    tab.settle()
    shown = tab.page.locator("#sample-history textarea").evaluate_all(
        "fields => fields.filter(field => field.checkVisibility()).map(field => field.value)"
    )
    assert len(shown) == 1
    assert "seed 61" in shown[0]


def test_the_fields_survive_a_reload(tab, chromium, filled):
    more(tab)
    tab.page.locator("#second input").first.click()
    tab.page.get_by_role("option", name="robot-1, checkpoint of step 20").click()
    for name, value in dict(prompt="a sks robot\nat sea", seed=7, negative="red", size="96x64").items():
        tab.fill(name, value)
    for name, value in {"sample-steps": 3, "strength": 0.65, "count": 1}.items():
        tab.set_number(name, value)
    tab.page.locator("#beside input").uncheck()
    tab.settle()
    tab.page.reload()
    tab.page.wait_for_selector("#strip-state")
    tab.go("Sample")
    until(lambda: tab.value("adapter") == "robot-1", "the suggested adapter")
    more(tab)
    values = {name: tab.value(name) for name in ("prompt", "seed", "negative", "size", "strength", "count")}
    assert values == dict(
        prompt="a sks robot\nat sea", seed="7", negative="red", size="96x64", strength="0.65", count="1"
    )
    assert (tab.value("sample-steps"), tab.value("second")) == ("3", "robot-1, checkpoint of step 20")
    assert not tab.page.locator("#beside input").is_checked()
    tab.page.locator("#third").wait_for()
    other = Tab(chromium, filled.url)
    other.go("Sample")
    until(lambda: other.value("prompt"), "the prompt of the run")
    assert "at sea" not in other.value("prompt")
    other.context.close()


def test_results_scroll_into_view_only_where_they_are_not(tab):
    """Also on a phone, where they are below the fields."""
    in_sight = """target => {
        const {top, bottom} = document.getElementById(target).getBoundingClientRect();
        return (top + bottom) / 2 > 0 && (top + bottom) / 2 < innerHeight;
    }"""
    press = "() => document.getElementById('generate').click()"
    more(tab)
    tab.set_number("sample-steps", 1)
    tab.set_number("count", 1)
    tab.page.locator("#generate").scroll_into_view_if_needed()
    assert not tab.page.evaluate(in_sight, "slider")
    tab.page.evaluate(press)
    tab.page.wait_for_function(in_sight, arg="slider")
    tab.wait("sample-progress", "1 of 1")
    tab.page.wait_for_function("!document.getElementById('generate').disabled")
    tab.settle()
    place = "document.getElementById('slider').getBoundingClientRect().top"
    before = tab.page.evaluate(place)
    tab.page.evaluate(WATCH_THE_END)
    tab.page.evaluate(press)
    tab.page.wait_for_function("window.generationEnded")
    tab.settle()
    assert tab.page.evaluate(place) == before
    tab.page.set_viewport_size(dict(width=390, height=800))
    tab.page.evaluate("scrollTo(0, 0)")
    assert not tab.page.evaluate(in_sight, "slider")
    tab.page.evaluate(press)
    tab.page.wait_for_function(in_sight, arg="slider")
    tab.page.wait_for_function("!document.getElementById('generate').disabled")


def test_a_downloaded_image_holds_its_settings(tab):
    more(tab)
    tab.set_number("sample-steps", 1)
    tab.set_number("count", 1)
    generate(tab, seed="7")
    tab.wait("generated", "seed 7")
    url = tab.page.locator("#generated img").first.get_attribute("src")
    with served(tab, url) as image:
        assert "Seed: 7" in image.text["parameters"]
    tab.page.locator("#slider").hover()
    with tab.page.expect_download() as download:
        tab.page.locator("#slider a[download], #slider button[aria-label=Download]").first.click()
    with Image.open(download.value.path()) as image:
        assert "Seed: 7" in image.text["parameters"]
        assert "<lora:robot-1:1>" in image.text["parameters"]
