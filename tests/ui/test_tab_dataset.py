"""The Dataset tab's handlers and events."""

import asyncio
import html
import re

import gradio as gr
import pytest
from PIL import Image

from gralora_diffusion.ui import image_sets
from gralora_diffusion.ui.tab_dataset import DatasetTab
from gralora_diffusion.ui.workspace import BUNDLED


@pytest.fixture
def folder(workspace):
    """A dataset `mine` of 30 images."""
    folder = workspace.images / image_sets.create(workspace, "mine")
    for number in range(30):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def tab(workspace):
    async def build():  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks() as page:
            tab = DatasetTab(workspace)
        tab.events = list(page.fns.values())
        return tab

    return asyncio.run(build())


@pytest.mark.parametrize(
    "tag", ["^_^", "*x*", "[x](https://evil)", "www.evil.com", "<b>x</b>", "$$x$$", "a_b_c", "`x`", "ü"]
)
def test_tags_are_shown_as_they_are_written(tab, folder, tag):
    (folder / "00.txt").write_text(f"red, {tag}\n")
    (text,) = [
        part for part in tab.view("mine")[tab.set_view.index(tab.tags)].split(" · ") if "red" not in part
    ]
    text = text.removeprefix("**Tags:** ").removesuffix(" 1")
    assert html.unescape(text) == tag
    assert re.fullmatch(r"([^\W_]|&#\d+;)+", text)


def test_masks_that_come_before_their_images_are_kept_and_not_counted_as_images(tab, workspace, tmp_path):
    Image.new("L", (64, 64), 255).save(tmp_path / "dog-masklabel.png")
    updates = tab.add([str(tmp_path / "dog-masklabel.png")], BUNDLED, "mine")
    assert updates[-2]["value"] == "1 mask added: turn on Masked loss under Train to use masks"
    assert [path.name for path in (workspace.images / "mine").iterdir()] == ["dog-masklabel.png"]


def test_the_page_of_cards_stays_when_a_model_ends(tab, folder):
    redraws = [event for event in tab.events if event.outputs == tab.set_view]
    ends = [event for event in redraws if event.trigger_after is not None]
    assert len(ends) == 4  # after captions and masks, with and without an error
    for event in ends:
        values = {tab.chosen: "mine", tab.cards.first: 12}
        updates = event.fn(*(values[part] for part in event.inputs))
        assert updates[tab.set_view.index(tab.cards.first)] == 12
        assert updates[tab.set_view.index(tab.cards.names[0])] == "12.png"


def test_cards_act_on_the_set_they_show(tab, folder, workspace):
    """While another is chosen already, and its cards have not come."""
    shown = dict(zip(tab.set_view, tab.view("mine"), strict=True))
    assert shown[tab.cards.displayed] == "mine"
    values = shown | {tab.chosen: BUNDLED, tab.prefix: "x", tab.find: "a dog", tab.replacement: "a cat"}
    values |= dict.fromkeys(tab.cards.captions, "a dog") | dict.fromkeys(tab.cards.checks, True)

    def press(component, event="click"):
        target = (component._id, event)
        (found,) = [e for e in tab.events if target in e.targets and not e.js and e.trigger_after is None]
        found.fn(*(values[part] for part in found.inputs))

    press(tab.cards.captions[0], "input")
    press(tab.cards.captions[1], "blur")
    assert [image_sets.caption_of(folder / f"0{number}.png") for number in range(2)] == ["a dog"] * 2
    press(tab.replace)
    press(tab.apply_selected)
    assert image_sets.caption_of(folder / "01.png") == "x a cat"
    assert image_sets.caption_of(folder / "12.png") == ""
    press(tab.apply)
    assert image_sets.caption_of(folder / "12.png") == "x"
    press(tab.cards.buttons[0])
    assert not (folder / "00.png").exists()
    press(tab.cards.undo)
    press(tab.cards.forward)
    press(tab.cards.delete_selected)
    assert len(image_sets.images_of(folder)) == 18
