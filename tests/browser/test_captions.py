"""Captions that are typed into the cards of a dataset are on disk as they were typed."""

import shutil
import zipfile

import pytest
from page_browser import Tab
from page_server import until

from gralora_diffusion.data.dataset import EXAMPLE

pytestmark = pytest.mark.browser
LONG = "a photo of sks robot, " + "with many words " * 17 + "and an end"  # about 300 characters


@pytest.fixture
def tab(chromium, page, tmp_path):
    """The page with a dataset of five images."""
    shutil.rmtree(page.home / "images", ignore_errors=True)
    (page.home / "images").mkdir()
    photos = [shutil.copy(EXAMPLE / f"0{i}.png", tmp_path / f"photo {i}.png") for i in range(5)]
    tab = Tab(chromium, page.url)
    tab.wait("cards", "00.png")
    tab.fill("new-set", "my robot")
    tab.page.set_input_files("#drop input[type=file]", photos)
    tab.wait("cards", "photo-4.png")
    yield tab
    tab.stays_home()
    tab.context.close()


def field(tab: Tab, number: int):
    return tab.page.locator(f"#caption-{number} textarea")


def is_saved(page, number: int, text: str) -> None:
    path = page.home / "images" / "my-robot" / f"photo-{number}.txt"
    if not text:
        until(lambda: not path.exists(), f"the empty caption {number} has no file")
        return
    until(lambda: path.is_file() and path.read_text() == text + "\n", f"caption {number} is on disk")


def test_typed_captions_are_saved_as_typed(tab, page):
    """At three speeds, from card to card by Tab and Enter, pasted, undone, with emoji, and long."""
    keyboard = tab.page.keyboard
    field(tab, 0).click()
    keyboard.type("a photo of sks teapot here", delay=60)
    keyboard.press("Tab")
    keyboard.type("sks robot 🤖 and a dog 🐶", delay=90)
    keyboard.press("Enter")
    keyboard.type("on the beach", delay=150)
    keyboard.press("Tab")
    keyboard.insert_text(LONG)  # as a paste does
    keyboard.press("Tab")
    keyboard.type("kept", delay=60)
    is_saved(page, 4, "kept")
    keyboard.insert_text(" and undone")
    is_saved(page, 4, "kept and undone")
    keyboard.press("Control+z")
    until(lambda: field(tab, 4).input_value() != "kept and undone", "something is undone")
    is_saved(page, 4, field(tab, 4).input_value())  # how much, the browser decides
    texts = ["a photo of sks teapot here", "sks robot 🤖 and a dog 🐶", "on the beach", LONG]
    for number, text in enumerate(texts):
        is_saved(page, number, text)
    keyboard.press("Shift+Tab")
    keyboard.press("End")
    keyboard.type("!", delay=60)
    is_saved(page, 3, LONG + "!")
    tab.page.reload()
    tab.page.wait_for_selector("#strip-state")


def test_a_deleted_image_comes_back_with_its_caption(tab, page):
    field(tab, 1).fill("the second one")
    is_saved(page, 1, "the second one")
    folder = page.home / "images" / "my-robot"
    tab.page.click("#delete-1")
    until(lambda: not (folder / "photo-1.png").exists(), "the image is gone")
    assert not (folder / "photo-1.txt").exists()
    tab.page.click("#undo-delete")
    until(lambda: (folder / "photo-1.png").exists(), "the image is back")
    is_saved(page, 1, "the second one")
    until(lambda: field(tab, 1).input_value() == "the second one", "its card is back")


def test_all_captions_are_edited_at_once(tab, page):
    field(tab, 0).fill("red, robot")
    field(tab, 1).fill("blue, robot")
    is_saved(page, 1, "blue, robot")
    tab.page.get_by_text("Edit all captions").click()
    tab.fill("before", "sks,")
    tab.page.click("#put-before")
    is_saved(page, 0, "sks, red, robot")
    tab.fill("find-text", "robot")
    tab.fill("replace-text", "toy robot")
    tab.page.click("#replace-all")
    is_saved(page, 0, "sks, red, toy robot")
    tab.wait("tags", "toy robot 2")


def test_captions_come_with_their_images_in_a_zip_archive(tab, page, tmp_path):
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.write(EXAMPLE / "00.png", "folder/A b.png")
        archive.writestr("folder/A b.txt", "a photo from an archive")
        archive.writestr("__MACOSX/._A b.png", "not an image")
    tab.page.set_input_files("#drop input[type=file]", tmp_path / "bundle.zip")
    path = page.home / "images" / "my-robot" / "A-b.txt"
    until(path.is_file, "the caption of the archive is there")
    assert path.read_text() == "a photo from an archive\n"
    tab.wait("cards", "A-b.png")
