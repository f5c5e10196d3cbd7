"""Dataset: masks over images, several images at once, crops, and models that caption and mask."""

import shutil

import pytest
from page_browser import Tab
from page_server import until
from PIL import Image
from tiny_tagger import CAPTION, write_tagger

from gralora_diffusion.data.dataset import EXAMPLE

pytestmark = pytest.mark.browser


@pytest.fixture
def folder(page):
    """A dataset `mine` of four images, the first with a mask and a caption."""
    shutil.rmtree(page.home / "images", ignore_errors=True)
    folder = page.home / "images" / "mine"
    folder.mkdir(parents=True)
    for number in range(4):
        shutil.copy(EXAMPLE / f"0{number}.png", folder)
    Image.linear_gradient("L").resize((64, 64)).point(lambda v: 255 * (v > 128)).save(folder / "00_mask.png")
    (folder / "00.txt").write_text("a photo of sks robot\n")
    return folder


@pytest.fixture
def tab(chromium, page, folder):
    tab = Tab(chromium, page.url)
    tab.wait("cards", "00.png")
    tab.page.locator("#set input").click()
    tab.page.get_by_role("option", name="mine").click()
    until(lambda: tab.page.locator("#delete-0").is_visible(), "the cards of an own dataset")
    yield tab
    tab.stays_home()
    tab.context.close()


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def select(tab: Tab, *numbers: int) -> None:
    for number in numbers:
        tab.page.locator(f"#select-{number} input").check()


def test_a_mask_lies_over_its_image_and_goes_and_comes_back_with_it(tab, folder):
    before = names(folder)
    masks = tab.page.locator("#cards img.mask")
    until(lambda: masks.count() == 1, "one image has a mask")
    assert masks.first.is_visible()
    tab.page.locator("#show-masks input").uncheck()
    until(lambda: not masks.first.is_visible(), "the masks are hidden")
    tab.page.locator("#show-masks input").check()
    tab.page.click("#delete-0")
    until(lambda: names(folder) == {"01.png", "02.png", "03.png"}, "mask and caption are deleted too")
    tab.page.click("#undo-delete")
    until(lambda: names(folder) == before, "all three are back")
    until(lambda: masks.count() == 1, "the mask is displayed again")


def test_selected_images_are_deleted_at_once_and_get_a_prefix(tab, folder):
    before = names(folder)
    select(tab, 1, 2)
    tab.page.get_by_text("Edit all captions").click()
    tab.fill("before", "sks,")
    tab.page.click("#put-before-selected")
    until(lambda: (folder / "02.txt").is_file(), "the captions of the selected ones")
    assert (folder / "01.txt").read_text() == "sks,\n"
    assert (folder / "00.txt").read_text() == "a photo of sks robot\n"
    until(lambda: not tab.page.locator("#select-2 input").is_checked(), "the selection is cleared")
    select(tab, 0, 3)
    tab.page.click("#delete-selected")
    until(lambda: names(folder) == {"01.png", "01.txt", "02.png", "02.txt"}, "two images are left")
    tab.page.click("#undo-delete")
    until(lambda: names(folder) == before | {"01.txt", "02.txt"}, "both are back at once")
    tab.page.click("#delete-selected")
    tab.page.locator(".toast-body", has_text="no image is selected").wait_for()
    tab.page.click("#select-all")
    until(lambda: tab.page.locator("#select-3 input").is_checked(), "all are selected")
    tab.page.click("#delete-masks")
    until(lambda: "00_mask.png" not in names(folder), "the mask alone is deleted")
    assert "00.png" in names(folder)
    tab.page.locator("#delete-masks").wait_for(state="hidden")  # there are no more
    assert tab.page.locator("#delete-selected").is_visible()


def test_what_training_cuts_is_displayed(tab, folder):
    Image.new("RGB", (256, 128), "white").save(folder / "wide.png")
    tab.page.get_by_text("Preview crops").first.click()
    tab.page.click("#preview-crops")
    tab.wait("crops", "wide.png: 64 x 64, 50 % cut away, at 4 places")
    tab.page.locator("#crop-buckets input").check()
    tab.page.click("#preview-crops")
    tab.wait("crops", "wide.png: 88 x 40")
    tab.page.locator("#crops img").first.wait_for()


def test_models_caption_and_mask_what_has_none(tab, folder, page):
    write_tagger(page.home / "models" / "tagger")
    try:
        tab.page.get_by_text("Captions and masks from a model").click()
        until(lambda: tab.value("captioner") == "tagger", "the model in the folder models is offered")
        tab.fill("caption-prefix", "sks")
        tab.page.click("#write-captions")
        until(lambda: (folder / "03.txt").is_file(), "the last caption")
        assert (folder / "03.txt").read_text() == f"sks, {CAPTION}\n"
        assert (folder / "00.txt").read_text() == "a photo of sks robot\n"
        until(lambda: tab.value("caption-3") == f"sks, {CAPTION}", "the cards have the captions")
        until(lambda: "4 of 4" in tab.value("model-results"), "all four are done")
        tab.page.click("#make-masks")
        until(lambda: "00.png: kept its mask" in tab.value("model-results"), "the first mask, kept")
        until(lambda: tab.value("model-results").startswith("4 of 4"), "the last mask")
        made = [name for name in names(folder) if name.endswith("-masklabel.png")]
        until(lambda: tab.page.locator("#cards img.mask").count() == len(made) + 1, "the masks are displayed")
        assert made
    finally:
        shutil.rmtree(page.home / "models" / "tagger")


def is_outdated(tab: Tab) -> bool:
    content = "getComputedStyle(document.getElementById('findings'), '::after').content"
    return "Maybe outdated" in tab.page.evaluate(content)


def dropped(chromium, page, folder, width=1280) -> Tab:
    """The page after two images and two lists were dropped on it."""
    tab = Tab(chromium, page.url, width)
    tab.wait("cards", "00.png")
    assert not tab.page.locator("#all-captions").is_visible()  # the bundled images cannot be edited
    tab.fill("new-set", f"dropped-{len(list((page.home / 'images').glob('dropped-*')))}")
    (folder / "Metadata.csv").write_text("file_name,text\n01.png,a photo of sks dog\n")
    (folder / "other.csv").write_text("x")
    files = [folder / name for name in ("01.png", "02.png", "Metadata.csv", "other.csv")]
    tab.page.set_input_files("#drop input[type=file]", files)
    tab.wait("cards", "02.png")
    until(lambda: tab.value("caption-0") == "a photo of sks dog", "the list is read")
    return tab


@pytest.mark.parametrize("width", [390, 1280])
def test_what_comes_next_after_a_drop_is_in_sight_first(chromium, page, folder, width):
    """Upload results, the check, and the way to Train; what changes whole datasets is folded below them."""
    tab = dropped(chromium, page, folder, width)
    until(lambda: "other.csv was left out" in tab.value("notes"), "what is not read is named")
    order = ("set", "drop", "notes", "check-set", "crop-options", "manage-sets")
    tops = [tab.page.locator(f"#{name}").bounding_box()["y"] for name in order]
    assert tops == sorted(tops)
    assert not tab.page.locator("#delete-masks").is_visible()
    assert not tab.page.locator("#delete-set").is_visible()
    tab.page.locator("#manage-sets button").first.click()
    until(lambda: tab.page.locator("#delete-set").is_enabled(), "an own dataset can be deleted")
    tab.stays_home()
    tab.context.close()


def test_checks_of_captions_that_have_changed_are_marked(chromium, page, folder):
    tab = dropped(chromium, page, folder)
    tab.page.click("#check-set")
    tab.wait("findings", "2 images")
    assert not is_outdated(tab)
    tab.fill("caption-1", "a photo of sks dog, too")
    until(lambda: is_outdated(tab), "the checks say that a caption has changed since")
    tab.page.click("#check-set")
    until(lambda: not is_outdated(tab), "the checks are those of now")
    tab.page.click("#go-to-train")
    tab.page.locator("#start").wait_for()
    tab.stays_home()
    tab.context.close()
