"""Images leave a set with their captions and masks, and come back with them."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, removed_images


@pytest.fixture
def folder(workspace):
    """A dataset `mine`: dog with a caption and two masks, cat with one, bird with nothing."""
    name = image_sets.create(workspace, "mine")
    folder = workspace.images / name
    for file in ("dog.png", "cat.png", "bird.png"):
        Image.new("RGB", (64, 64), "red").save(folder / file)
    for file in ("dog_mask.png", "dog-masklabel.png", "cat-mask.png"):
        Image.new("L", (64, 64), 255).save(folder / file)
    (folder / "dog.txt").write_text("a dog\n")
    (folder / "dog.caption").write_text("a dog for other trainers\n")
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_image_leaves_with_its_caption_and_masks_and_comes_back(workspace, folder):
    before = files_of(folder)
    assert removed_images.remove(workspace, "mine", ["dog.png"]) == "dog.png"
    assert set(files_of(folder)) == {"cat.png", "cat-mask.png", "bird.png"}
    assert removed_images.undo_remove(workspace, "mine") == "dog.png"
    assert files_of(folder) == before


def test_several_images_leave_and_come_back_at_once(workspace, folder):
    before = files_of(folder)
    assert removed_images.remove(workspace, "mine", ["dog.png", "cat.png", "dog.png"]) == "2 images"
    assert set(files_of(folder)) == {"bird.png"}
    assert removed_images.undo_remove(workspace, "mine") == "2 images"
    assert files_of(folder) == before


def test_masks_leave_alone(workspace, folder):
    before = files_of(folder)
    assert removed_images.remove_masks(workspace, "mine", ["cat.png", "bird.png"]) == "cat-mask.png"
    assert removed_images.remove_masks(workspace, "mine", ["dog.png"]) == "2 masks"
    assert set(files_of(folder)) == {"dog.png", "dog.txt", "dog.caption", "cat.png", "bird.png"}
    for _ in range(2):
        removed_images.undo_remove(workspace, "mine")
    assert files_of(folder) == before
    with pytest.raises(ConfigError, match="none of the selected images has a mask"):
        removed_images.remove_masks(workspace, "mine", ["bird.png"])


def test_a_caption_that_two_images_share_stays(workspace, folder):
    shutil.copy(folder / "dog.png", folder / "dog.jpg")
    removed_images.remove(workspace, "mine", ["dog.jpg"])
    assert {"dog.png", "dog.txt", "dog_mask.png"} <= set(files_of(folder))


@pytest.mark.parametrize("files", [[], ["dog_mask.png"], ["../mine/dog.png"], ["dog.txt"], ["dog.png", None]])
def test_only_images_of_the_set_can_be_named(workspace, folder, files):
    before = files_of(folder)
    with pytest.raises(ConfigError, match=r"no image (named|is selected)"):
        removed_images.remove(workspace, "mine", files)
    assert files_of(folder) == before
    assert removed_images.removals(workspace, "mine") == []


def test_links_beside_an_image_are_not_moved(workspace, folder, tmp_path):
    (tmp_path / "outside.txt").write_text("of somebody else")
    (folder / "cat.txt").symlink_to(tmp_path / "outside.txt")
    removed_images.remove(workspace, "mine", ["cat.png"])
    assert (folder / "cat.txt").is_symlink()
    assert (tmp_path / "outside.txt").read_text() == "of somebody else"


def test_an_image_whose_name_is_taken_comes_back_under_a_free_one(workspace, folder):
    before = files_of(folder)
    removed_images.remove(workspace, "mine", ["dog.png", "cat.png"])
    Image.new("RGB", (64, 64), "blue").save(folder / "dog.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "dog-2-mask.png")
    new = files_of(folder)
    assert removed_images.undo_remove(workspace, "mine") == "2 images"
    after = files_of(folder)
    assert {name: after[name] for name in new} == new
    for name in ("dog.png", "dog.txt", "dog.caption", "dog_mask.png", "dog-masklabel.png"):
        assert after[name.replace("dog", "dog-3")] == before[name]
    assert after["cat.png"] == before["cat.png"]
    assert len(after) == len(before) + 2
    assert removed_images.removals(workspace, "mine") == []
    removed_images.remove(workspace, "mine", ["dog.png"])
    removed_images.remove(workspace, "mine", ["dog-3.png"])
    assert removed_images.undo_remove(workspace, "mine") == "dog-3.png"
    assert removed_images.undo_remove(workspace, "mine") == "dog.png"
    assert files_of(folder) == after


def test_a_caption_of_another_image_is_not_replaced(workspace, folder):
    removed_images.remove(workspace, "mine", ["dog.png"])
    Image.new("RGB", (64, 64), "blue").save(folder / "dog.jpg")
    (folder / "dog.txt").write_text("a blue dog\n")
    assert removed_images.undo_remove(workspace, "mine") == "dog-2.png"
    captions = {path.name: image_sets.caption_of(path) for path in image_sets.images_of(folder)}
    assert captions == {"bird.png": "", "cat.png": "", "dog-2.png": "a dog", "dog.jpg": "a blue dog"}


def test_an_undo_replaces_no_mask(workspace, folder):
    removed_images.remove_masks(workspace, "mine", ["cat.png"])
    Image.new("L", (64, 64), 128).save(folder / "cat-mask.png")
    before = files_of(folder)
    with pytest.raises(ConfigError, match=r"now has another cat-mask\.png"):
        removed_images.undo_remove(workspace, "mine")
    assert files_of(folder) == before


def test_deletes_at_once_take_numbers_of_their_own(workspace, folder):
    names = [f"image-{number}.png" for number in range(40)]
    for name in names:
        Image.new("RGB", (64, 64)).save(folder / name)
    before = files_of(folder)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            done = list(threads.map(lambda name: removed_images.remove(workspace, "mine", [name]), names))
    finally:
        sys.setswitchinterval(interval)
    assert done == names
    assert len(removed_images.removals(workspace, "mine")) == len(names)
    for _ in names:
        removed_images.undo_remove(workspace, "mine")
    assert files_of(folder) == before


def test_masks_are_no_images_of_the_set_and_are_duplicated_with_it(workspace, folder):
    assert [path.name for path in image_sets.images_of(folder)] == ["bird.png", "cat.png", "dog.png"]
    masks = image_sets.masks_in(folder)
    assert {image.name: mask.name for image, mask in masks.items()} == {
        "cat.png": "cat-mask.png",
        "dog.png": "dog-masklabel.png",
    }
    image_sets.copy(workspace, "mine", "copied")
    copied = set(files_of(workspace.images / "copied"))
    assert copied == set(files_of(folder))


def test_the_check_names_masks_without_an_image_and_two_of_one(workspace, folder):
    Image.new("L", (64, 64)).save(folder / "fish-masklabel.png")
    found = image_sets.check_set(workspace, "mine", 64)
    assert ("fish-masklabel.png", "a mask without an image of its name", "remove or rename it") in found
    Image.new("RGB", (64, 64)).save(folder / "cat-mask.jpg")
    (problem,) = [what for file, what, _ in image_sets.check_set(workspace, "mine", 64) if file == "masks"]
    assert problem == "cat-mask.jpg and cat-mask.png are masks of one image: remove one of them"


def test_a_caption_named_after_the_whole_file_comes_back_with_its_image(workspace, folder):
    (folder / "bird.png.txt").write_text("a bird\n")
    removed_images.remove(workspace, "mine", ["bird.png"])
    Image.new("RGB", (64, 64), "blue").save(folder / "bird.png")
    (folder / "bird-2.png.txt").write_text("of no image\n")
    assert removed_images.undo_remove(workspace, "mine") == "bird-3.png"
    assert image_sets.caption_of(folder / "bird-3.png") == "a bird"
    assert image_sets.caption_of(folder / "bird.png") == ""


def test_names_that_differ_in_case_alone_come_back_apart(workspace, folder):
    for name, color in (("a.png", "red"), ("A.png", "green")):
        Image.new("RGB", (64, 64), color).save(folder / name)
    before = files_of(folder)
    removed_images.remove(workspace, "mine", ["a.png", "A.png"])
    for name in ("a.png", "A.png"):
        Image.new("RGB", (64, 64), "blue").save(folder / name)
    assert removed_images.undo_remove(workspace, "mine") == "2 images"
    after = files_of(folder)
    assert (after["A-2.png"], after["a-3.png"]) == (before["A.png"], before["a.png"])
    assert len(after) == len(before) + 2


def test_two_files_do_not_come_back_under_one_name(workspace, folder):
    Image.new("L", (64, 64), 128).save(folder / "CAT-mask.png")
    before = files_of(folder)
    removed_images.remove(workspace, "mine", ["cat.png"])
    Image.new("RGB", (64, 64), "blue").save(folder / "cat.png")
    assert removed_images.undo_remove(workspace, "mine") == "cat-2.png"
    after = files_of(folder)
    for name in ("cat.png", "cat-mask.png", "CAT-mask.png"):
        assert after[f"{name[:3]}-2{name[3:]}"] == before[name]
    assert len(after) == len(before) + 1
