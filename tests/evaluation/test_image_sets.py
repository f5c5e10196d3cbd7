"""Images, their prompts and their partners, found in folders."""

from pathlib import Path

import pytest
from PIL import Image

from gralora_diffusion.evaluation.image_sets import ImageSet, images_in, match_partners, prompts_for
from gralora_diffusion.options import ConfigError


def paths(folder: str, names: str) -> list[Path]:
    return [Path(folder, name) for name in names.split()]


@pytest.mark.parametrize(
    ("mine", "others", "partners", "how"),
    [
        ("a.png b.png", "b.png a.png", "a.png b.png", "by name"),
        ("00.jpg 00.png", "00.png 00.jpg", "00.jpg 00.png", "by name"),  # one stem, two images
        ("a.png b.png", "b.jpg a.jpg", "a.jpg b.jpg", "by name"),
        ("0.png 1.png", "true-1.png true-0.png", "true-1.png true-0.png", "by order"),
        ("0.png 10.png 1.png", "10.png 00.png 01.png", "00.png 10.png 01.png", "by name"),
    ],
)
def test_partners_are_found_by_name_then_by_order(mine, others, partners, how):
    run = ImageSet("r", paths("out", mine))
    assert match_partners(run, paths("true", others)) == (paths("true", partners), how)


@pytest.mark.parametrize(
    ("mine", "others", "words"),
    [
        ("a.png b.png", "a.png c.png", "r and true share some names, such as a, but not each"),
        ("00.jpg 00.png", "00.webp 01.png", "share some names, such as 0, but not each"),
        ("00.jpg 00.png", "00.webp 00.bmp", "share some names, such as 0, but not each exactly once"),
        ("a.png b.png c.png", "a.png b.png", "r has 3 images and true has 2"),
    ],
)
def test_partners_that_are_in_doubt_are_refused(mine, others, words):
    with pytest.raises(ConfigError, match=words):
        match_partners(ImageSet("r", paths("out", mine)), paths("true", others))


def test_images_and_prompts_are_found_in_order(tmp_path):
    for name in ("10.png", "9.png", "base-2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    images = images_in(tmp_path)
    assert [path.name for path in images] == ["9.png", "10.png", "base-2.png"]
    assert [path.name for path in images_in(tmp_path / "base-*.png")] == ["base-2.png"]
    assert prompts_for(images) is None
    file = tmp_path / "prompts"
    file.write_text("\ufeffa dog\n\na cat\n# a note\nan emu\n", encoding="utf-8")
    assert prompts_for(images, file) == ["a dog", "a cat", "an emu"]
    twice = ["a dog", "a dog", "a cat", "a cat", "an emu", "an emu"]
    assert prompts_for([*images, *images], file) == twice
    with pytest.raises(ConfigError, match="3 prompts for 2 images"):
        prompts_for(images[:2], file)
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts_for(images, tmp_path / "gone")
    with pytest.raises(ConfigError, match="holds no images"):
        images_in(tmp_path / "nowhere")
    for name in ("10", "9", "base-2"):
        (tmp_path / f"{name}.txt").write_text(f"caption  of {name}\nand another line")
    assert prompts_for(images) == ["caption of 9", "caption of 10", "caption of base-2"]
