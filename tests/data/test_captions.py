"""Captions as people have them: files of other trainers, encodings, lines, wildcards."""

import codecs
import collections

import pytest
from PIL import Image

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import caption_at
from gralora_diffusion.data.captions import Variation, forms_of
from gralora_diffusion.data.dataset import caption_counts, instance_images
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.wildcards import FORMS, has_wildcards, wildcard_forms
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.prompt_weights import parse_weights, split_at_commas

TEXT = "a caf\u00e9, \u201csks\u201d dog"


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (64, 64), (100 * number, 50, 50)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("the other one")
    return tmp_path


def first_caption(folder, prompt="the prompt", **options) -> str:
    return find_images(folder, prompt, **options)[0].caption


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        TEXT.encode("cp1252"),
    ],
    ids=["utf-8", "BOM", "UTF-16 LE", "UTF-16 BE", "UTF-32", "cp1252"],
)
@pytest.mark.parametrize("suffix", [".txt", ".caption", ".CAPTION"])
def test_encodings_are_recognized(folder, capsys, content, suffix):
    (folder / f"a{suffix}").write_bytes(content)
    assert first_caption(folder) == TEXT
    guessed = "not UTF-8 are read as cp1252: a" in capsys.readouterr().err
    assert guessed == (content == TEXT.encode("cp1252"))


def test_json_and_metadata_have_the_same_encodings(folder):
    (folder / "a.json").write_bytes('{"caption": "un café"}'.encode("utf-16"))
    assert first_caption(folder) == "un café"
    (folder / "a.json").unlink()
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "deux cafés"}'.encode("utf-16"))
    assert first_caption(folder) == "deux cafés"


@pytest.mark.parametrize("content", [b"", b" \r\n\t\n", codecs.BOM_UTF8])
@pytest.mark.parametrize("name", ["a.txt", "a.caption"])
def test_an_empty_file_is_no_caption(folder, capsys, content, name):
    (folder / name).write_bytes(content)
    assert first_caption(folder) == "the prompt"
    assert f"'the prompt' replaces empty captions in {folder}: {name}" in capsys.readouterr().err
    (folder / "a.json").write_text('{"tags": ["from", "tags"]}')
    assert first_caption(folder) == "from, tags"
    (folder / "a.json").write_text('{"caption": ""}')
    with pytest.raises(ConfigError, match=rf"a.png \(its caption in {name} is empty, and there is no --inst"):
        first_caption(folder, None)


def test_of_several_lines_the_first_is_used_and_the_others_are_an_option(folder, capsys):
    (folder / "a.txt").write_text("\n one, red\r\n\n two\n")
    assert first_caption(folder) == "one, red"
    assert "(--caption_lines join or random uses all lines)" in capsys.readouterr().err
    assert first_caption(folder, lines="join") == "one, red two"
    drawn = first_caption(folder, lines="random")
    assert forms_of(drawn, Variation()) == ["one, red", "two"]
    assert set(forms_of(drawn, Variation(shuffle_captions=True))) == {"one, red", "red, one", "two"}
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("caption", "forms"),
    [
        ("a {red|blue} dog", ["a red dog", "a blue dog"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("a {big |}dog", ["a big dog", "a dog"]),
        ("{a|{b|c}}", ["a", "b", "a", "c"]),
        ("{{a|b}} {only}", ["{a|b} only"]),
        ("{} dog", ["{} dog"]),
    ],
)
def test_wildcards_have_forms(caption, forms):
    assert wildcard_forms(caption) == forms
    assert has_wildcards(caption) == (len(forms) > 1)


def test_many_forms_are_drawn_by_the_caption_alone():
    caption = "{a|b|c|d} {a|b|c|d} {a|b|c|d}"
    forms = wildcard_forms(caption)
    assert len(forms) == FORMS
    assert forms == wildcard_forms(caption)
    assert len(set(forms)) > FORMS / 2
    assert "{" not in "".join(forms)


def test_a_wildcard_is_drawn_by_seed_and_position():
    variation = Variation(caption_wildcards=True)
    drawn = [caption_at("a {red|blue} dog", position, 3, variation) for position in range(400)]
    assert drawn == [caption_at("a {red|blue} dog", position, 3, variation) for position in range(400)]
    counts = collections.Counter(drawn)
    assert counts.keys() == {"a red dog", "a blue dog"}
    assert abs(counts["a red dog"] - 200) < 50
    other = [caption_at("a {red|blue} dog", position, 4, variation) for position in range(400)]
    assert other != drawn


def test_wildcards_are_off_by_default_and_noted(folder, capsys):
    (folder / "a.txt").write_text("a {red|blue} dog")
    config = TrainConfig(instance_data_dir=str(folder))
    assert instance_images(config)[0].caption == "a {red|blue} dog"
    assert "{a|b} is left as it is in 1 caption: a.png (--caption_wildcards" in capsys.readouterr().err
    instance_images(TrainConfig(instance_data_dir=str(folder), caption_wildcards=True))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("caption", ["a {2$$red|blue} dog", "{0.5::x|0.3::y} dog", "a {red|3::blue} dog"])
def test_wildcards_with_numbers_are_refused(folder, caption):
    (folder / "a.txt").write_text(caption)
    config = TrainConfig(instance_data_dir=str(folder), caption_wildcards=True)
    with pytest.raises(ConfigError, match=r"the caption of a.png has .* which --caption_wildcards does not"):
        instance_images(config)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("[trigger] on a lawn", "a placeholder such as [trigger] is trained on as text in 1 caption: a.png"),
        ("a photo of [Name], [filewords]", "a placeholder such as [trigger]"),
        ("a dog <lora:x:0.8>", "<lora:...> is trained on as text"),
        ("a __color__ dog", "the name of a wildcard file is trained on as text"),
        ("# made by a tagger", "a comment at its beginning is trained on as text"),
        ("a [red] dog #1, snake_case, a__b", None),
    ],
)
def test_what_other_programs_replace_is_noted(folder, capsys, caption, words):
    (folder / "a.txt").write_text(caption)
    instance_images(TrainConfig(instance_data_dir=str(folder)))
    notes = capsys.readouterr().err
    assert words in notes if words else not notes


def test_tags_within_brackets_that_set_weights_are_shuffled_together():
    caption = r"a dog, (red hair, long:1.3), sun \(hot, dry\), [x, y"
    forms = forms_of(caption, Variation(shuffle_captions=True), weighted=True)
    assert len(forms) > 1
    for form in forms:
        assert ("red hair, long", 1.3) in parse_weights(form)
        assert sorted(split_at_commas(form.replace(", ", ","))) == sorted(
            ["a dog", "(red hair,long:1.3)", r"sun \(hot", r"dry\)", "[x", "y"]
        )
    plain = forms_of(caption, Variation(shuffle_captions=True))
    assert any("(red hair, long:1.3)" not in form for form in plain)  # plain text


@pytest.mark.parametrize("name", ["a.png.txt", "a.PNG.caption", "a.png.TXT", "a.png.json"])
def test_a_caption_may_name_the_whole_image_file(folder, name):
    """As taggers write them that add an ending to the image's name; a.txt comes before a.png.txt."""
    if name.startswith("a.PNG"):
        (folder / "a.png").rename(folder / "a.PNG")
    (folder / name).write_text('{"caption": "a dog"}' if name.endswith("json") else "a dog")
    assert first_caption(folder) == "a dog"
    (folder / "a.txt").write_text("another dog")
    assert first_caption(folder) == "another dog"


@pytest.mark.parametrize("suffix", [".cap", ".tags", ".text", ".wd14", ".prompt"])
def test_what_has_a_captions_place_and_another_ending_says_how_it_is_named(folder, suffix):
    (folder / f"a{suffix}").write_text("a dog")
    with pytest.raises(ConfigError, match=rf"a{suffix} \(neither .* by its name: captions end in .txt, .ca"):
        first_caption(folder)


def test_a_guessed_encoding_shows_what_it_gives(folder, capsys):
    """Of Cyrillic, cp1252 makes other letters, which no program can know to be wrong."""
    (folder / "a.txt").write_bytes("фото собаки".encode("cp1251"))
    first_caption(folder)
    assert "read as cp1252: a.txt (the first: 'ôîòî ñîáàêè')" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "words"), [(".txt", "a dog"), (".json", '{"caption": "a dog"}')])
def test_an_empty_file_hides_none_of_the_same_kind(tmp_path, suffix, words):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / f"a{suffix}").write_text('{"caption": ""}' if suffix == ".json" else "\n")
    (tmp_path / f"a.png{suffix}").write_text(words)
    (found,) = find_images(tmp_path, "the prompt")
    assert found.caption == "a dog"


def test_a_second_file_with_another_caption_is_named(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
        (tmp_path / f"{name}.txt").write_text("a dog")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "b.txt").write_text("a  dog\n")
    assert [found.caption for found in find_images(tmp_path, "x")] == ["a cat", "a dog"]
    note = next(line for line in capsys.readouterr().err.splitlines() if "not used" in line)
    assert "a.png.txt (a.txt is used)" in note
    assert "b.png" not in note


@pytest.mark.parametrize("other", ["a.caption", "a.json", "metadata.csv"])
def test_a_source_of_another_kind_with_another_caption_is_named(folder, capsys, other):
    contents = {"a.json": '{"caption": "a cat"}', "metadata.csv": "file_name,text\na.png,a cat\n"}
    (folder / "a.txt").write_text("a dog")
    (folder / other).write_text(contents.get(other, "a cat"))
    assert first_caption(folder) == "a dog"
    name = other if other.startswith("a") else "metadata.jsonl or metadata.csv"
    assert f"{name} (a.txt is used)" in capsys.readouterr().err
    (folder / "a.txt").write_text("a cat")
    assert first_caption(folder) == "a cat"
    assert not capsys.readouterr().err


def test_a_file_of_another_program_beside_a_caption_does_not_matter(folder, capsys):
    (folder / "a.txt").write_text("a dog")
    (folder / "a.json").write_text('{"width": 64}')
    assert first_caption(folder) == "a dog"
    assert not capsys.readouterr().err


def test_captions_are_counted_by_their_source(tmp_path):
    for name in "abcde":
        Image.new("RGB", (64, 64), (10 * ord(name) % 256, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "b.txt").write_text("a cat on a sofa")
    (tmp_path / "c.txt").write_text(" ")
    config = TrainConfig(instance_data_dir=str(tmp_path), instance_prompt="a dog")
    counts = caption_counts(config, instance_images(config))
    assert counts == "2 from files, 3 from --instance_prompt"
    assert caption_counts(TrainConfig(), instance_images(TrainConfig())) == "6 from files"
