"""Captions in metadata.jsonl: the page shows and edits what training reads, and keeps all else in it."""

import json
import shutil

import pytest
from PIL import Image

from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, image_uploads, metadata_rows, removed_images

LINES = [
    '{"file_name": "a.png", "text": "a dog", "source": "zoo", "score": 0.1}',
    "",
    '{"score": 1e3,   "file_name":"b.png","caption":"a häuschen"}\r',
    '{"file_name": "deep/c.png", "text": "a hidden cat"}',
]


@pytest.fixture
def folder(workspace):
    """A dataset `mine` of a.png and b.png, and deep/c.png, with a line of metadata.jsonl each."""
    folder = workspace.images / image_sets.create(workspace, "mine")
    (folder / "deep").mkdir()
    for number, file in enumerate(("a.png", "b.png", "deep/c.png")):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / file)
    (folder / "metadata.jsonl").write_text("\n".join(LINES) + "\n", newline="")
    return folder


def shown(folder) -> dict[str, str]:
    return {path.name: image_sets.caption_of(path) for path in image_sets.images_of(folder)}


def trained(folder) -> dict[str, str]:
    return {image.path.name: image.caption for image in find_images(folder, "of the prompt")}


def lines(folder) -> list[str]:
    return (folder / "metadata.jsonl").read_bytes().decode().split("\n")


def test_the_page_shows_what_training_reads(folder):
    assert shown(folder) == {"a.png": "a dog", "b.png": "a häuschen"}
    assert trained(folder) == shown(folder) | {"c.png": "a hidden cat"}
    (folder / "a.txt").write_text("from its own file")
    (folder / "b.txt").write_text("\n")
    assert shown(folder) == {"a.png": "from its own file", "b.png": "a häuschen"}
    assert trained(folder) == shown(folder) | {"c.png": "a hidden cat"}


def test_an_edit_changes_its_own_line_alone(workspace, folder):
    assert image_sets.save_captions(workspace, "mine", {"b.png": " a  house ", "a.png": "a dog"}) == ["b.png"]
    before, after = [*LINES, ""], lines(folder)
    assert [before[n] == after[n] for n in range(5)] == [True, True, False, True, True]
    assert json.loads(after[2]) == {"score": 1e3, "file_name": "b.png", "caption": "a house"}
    assert trained(folder)["b.png"] == "a house"
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "deep", "metadata.jsonl"]


def test_all_captions_of_the_file_are_edited_at_once(workspace, folder):
    (folder / "a.txt").write_text("")
    image_sets.add_prefix(workspace, "mine", "sks,")
    assert shown(folder) == {"a.png": "sks, a dog", "b.png": "sks, a häuschen"}
    assert image_sets.replace_in_captions(workspace, "mine", "sks, ", "") == 2
    image_sets.save_captions(workspace, "mine", {"a.png": "", "b.png": "b"})
    assert shown(folder) == {"a.png": "", "b.png": "b"}
    assert trained(folder) == {"a.png": "of the prompt", "b.png": "b", "c.png": "a hidden cat"}


def test_a_caption_that_would_appear_in_place_of_a_deleted_one_is_named(workspace, folder):
    (folder / "a.txt").write_text("from its own file")
    with pytest.raises(ConfigError, match=r"metadata\.jsonl would be the caption of a\.png"):
        image_sets.save_captions(workspace, "mine", {"a.png": ""})
    with pytest.raises(ConfigError, match="the limit is 2000"):
        image_sets.save_captions(workspace, "mine", {"a.png": "new", "b.png": "x" * 2001})
    assert shown(folder) == {"a.png": "from its own file", "b.png": "a häuschen"}


def test_a_removed_image_takes_its_line_with_it_and_brings_it_back(workspace, folder):
    removed_images.remove(workspace, "mine", ["a.png"])
    assert lines(folder) == [*LINES[1:], ""]
    assert trained(folder) == {"b.png": "a häuschen", "c.png": "a hidden cat"}
    Image.new("RGB", (64, 64), "blue").save(folder / "a.png")
    assert removed_images.undo_remove(workspace, "mine") == "a-2.png"
    row = json.loads(LINES[0]) | dict(file_name="a-2.png")
    assert json.loads(lines(folder)[-2]) == row
    assert trained(folder)["a-2.png"] == "a dog"
    assert trained(folder)["a.png"] == "of the prompt"


def test_a_duplicate_has_the_lines_of_its_images(workspace, folder):
    image_sets.copy(workspace, "mine", "copied")
    copied = workspace.images / "copied"
    assert shown(copied) == shown(folder)
    assert trained(copied) == {"a.png": "a dog", "b.png": "a häuschen"}
    assert json.loads(lines(copied)[0]) == json.loads(LINES[0])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]\n",
        "[" * 100_000,
        '{"file_name": "../../secret.png", "text": "x"}\n',
        '{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}\n',
        '{"file_name": "a\\u0000.png", "text": "x"}\n',
    ],
)
def test_a_damaged_file_is_named_by_the_check_and_stays(workspace, folder, text):
    (folder / "metadata.jsonl").write_text(text)
    assert shown(folder) == {"a.png": "", "b.png": ""}
    found = [
        finding for finding in image_sets.check_set(workspace, "mine", 64) if finding[0] == "metadata.jsonl"
    ]
    assert len(found) == 1
    assert str(folder) not in found[0][1]
    image_sets.save_captions(workspace, "mine", {"a.png": "typed"})
    removed_images.remove(workspace, "mine", ["b.png"])
    assert shown(folder) == {"a.png": "typed"}
    assert (folder / "metadata.jsonl").read_text() == text


def test_a_csv_file_is_edited_and_keeps_its_other_cells(workspace, folder):
    (folder / "metadata.jsonl").unlink()
    table = 'file_name,score,text\na.png,1,"a dog, sitting"\nb.png,2,"two\nlines"\ndeep/c.png,3,cat\n'
    (folder / "metadata.csv").write_text(table)
    assert shown(folder) == {"a.png": "a dog, sitting", "b.png": "two lines"}
    image_sets.save_captions(workspace, "mine", {"a.png": 'a "big" dog'})
    edited = table.replace('"a dog, sitting"', '"a ""big"" dog"')
    assert (folder / "metadata.csv").read_text() == edited
    removed_images.remove(workspace, "mine", ["a.png"])
    assert trained(folder) == {"b.png": "two lines", "c.png": "cat"}
    removed_images.undo_remove(workspace, "mine")
    assert trained(folder) == {"a.png": 'a "big" dog', "b.png": "two lines", "c.png": "cat"}
    assert (folder / "metadata.csv").read_text().endswith('\na.png,1,"a ""big"" dog"\n')


def test_a_link_is_not_read(workspace, folder, tmp_path):
    (folder / "metadata.jsonl").rename(tmp_path / "outside.jsonl")
    (folder / "metadata.jsonl").symlink_to(tmp_path / "outside.jsonl")
    assert metadata_rows.captions_in(folder) == {}
    image_sets.save_captions(workspace, "mine", {"a.png": "typed"})
    assert (tmp_path / "outside.jsonl").read_bytes().decode() == "\n".join(LINES) + "\n"


def test_an_uploaded_file_gives_its_captions_to_its_images(workspace, folder, tmp_path):
    image_sets.create(workspace, "new")
    upload = tmp_path / "upload"
    upload.mkdir()
    Image.new("RGB", (64, 64), "red").save(upload / "my dog.png")
    Image.new("RGB", (64, 64), "blue").save(upload / "cat.png")
    (upload / "cat.txt").write_text("a cat of its own file")
    rows = [
        dict(file_name=f"train/{name}", text=f"text of {name}")
        for name in ("my dog.png", "cat.png", "no.png")
    ]
    (upload / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (upload / "other.jsonl").write_text("{}\n")
    added, notes = image_uploads.add(workspace, "new", sorted(upload.iterdir()))
    assert added == 2
    assert shown(workspace.images / "new") == {
        "cat.png": "a cat of its own file",
        "my-dog.png": "text of my dog.png",
    }
    assert sorted(notes) == [
        "metadata.jsonl: 1 line without an image of that name",
        "other.jsonl was left out: only metadata.jsonl or metadata.csv may hold the captions of several "
        "images",
    ]


def test_a_csv_file_with_odd_cells_is_read_by_training_as_it_was_after_an_edit(workspace, folder):
    """Blanks after commas, lines within cells, and characters at which str.splitlines() ends lines."""
    (folder / "metadata.jsonl").unlink()
    odd = "cat\u2028deep/c.png,\x85x"
    table = (
        f'file_name, text, note\na.png, "a dog, sitting"," b"\nb.png,"two\rlines",\ndeep/c.png,"{odd}",1\n'
    )
    (folder / "metadata.csv").write_text(table, encoding="utf-8", newline="")
    before = trained(folder)
    assert before == {"a.png": "a dog, sitting", "b.png": "two lines", "c.png": "cat deep/c.png, x"}
    image_sets.save_captions(workspace, "mine", {"a.png": "a dog, running"})
    assert trained(folder) == before | {"a.png": "a dog, running"}
    assert metadata_rows.rows_of(folder, ["a.png", "b.png", "deep/c.png"]) == [
        {"file_name": "a.png", "text": "a dog, running", "note": " b"},
        {"file_name": "b.png", "text": "two\rlines", "note": ""},
        {"file_name": "deep/c.png", "text": odd, "note": "1"},
    ]
    removed_images.remove(workspace, "mine", ["b.png"])
    removed_images.undo_remove(workspace, "mine")
    assert trained(folder) == before | {"a.png": "a dog, running"}


def test_a_csv_file_that_training_refuses_is_not_edited(workspace, folder):
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text\na.png,a dog, running\n")
    assert metadata_rows.captions_in(folder) == {}
    assert "line 2 has 3 fields" in metadata_rows.problem_in(folder)
    image_sets.save_captions(workspace, "mine", {"a.png": "typed"})
    assert (folder / "metadata.csv").read_text() == "file_name,text\na.png,a dog, running\n"


def test_a_removed_line_with_a_line_separator_comes_back(workspace, folder):
    row = dict(file_name="a.png", text="a\u2028dog", source="x\x85y")
    (folder / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    removed_images.remove(workspace, "mine", ["a.png"])
    removed_images.undo_remove(workspace, "mine")
    assert json.loads(lines(folder)[-2]) == row
    assert trained(folder)["a.png"] == "a dog"


@pytest.mark.parametrize("character", ["\u2028", "\x0b", "\x0c", "\x85", "\r", '"', " "])
def test_an_edit_of_a_csv_file_leaves_odd_characters_of_other_lines(workspace, folder, character):
    (folder / "metadata.jsonl").unlink()
    quoted = (character * 2 if character == '"' else character) + "x"
    table = f'file_name,text\na.png,a dog\nb.png,"{quoted}"\ndeep/c.png,a cat\n'
    (folder / "metadata.csv").write_text(table, encoding="utf-8", newline="")
    image_sets.save_captions(workspace, "mine", {"a.png": "new"})
    assert metadata_rows.problem_in(folder) is None
    assert shown(folder)["a.png"] == "new"
    assert metadata_rows.rows_of(folder, ["b.png"]) == [dict(file_name="b.png", text=f"{character}x")]


def test_all_images_of_a_csv_file_are_removed_and_come_back(workspace, folder):
    shutil.rmtree(folder / "deep")
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text\na.png,a dog\nb.png,a house\n")
    removed_images.remove(workspace, "mine", ["a.png", "b.png"])
    assert (folder / "metadata.csv").read_text() == "file_name,text\n"
    removed_images.undo_remove(workspace, "mine")
    assert trained(folder) == {"a.png": "a dog", "b.png": "a house"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "metadata.csv"]


def test_a_line_comes_back_into_a_csv_file_without_its_columns(workspace, folder):
    removed_images.remove(workspace, "mine", ["a.png"])
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text\nb.png,a house\n")
    removed_images.undo_remove(workspace, "mine")
    assert shown(folder) == {"a.png": "a dog", "b.png": "a house"}
    (row,) = metadata_rows.rows_of(folder, ["a.png"])
    assert row == dict(file_name="a.png", text="a dog", source="zoo", score="0.1")


@pytest.mark.parametrize("name", ["./a.png", "{folder}/a.png"])
def test_a_line_is_found_whatever_path_it_names(workspace, folder, name):
    name = name.format(folder=folder)
    (folder / "metadata.jsonl").write_text(json.dumps(dict(file_name=name, text="a dog")) + "\n")
    assert image_sets.save_captions(workspace, "mine", {"a.png": "new"}) == ["a.png"]
    assert shown(folder)["a.png"] == "new"
    image_sets.copy(workspace, "mine", "copied")
    assert trained(workspace.images / "copied")["a.png"] == "new"
    removed_images.remove(workspace, "mine", ["a.png"])
    assert (folder / "metadata.jsonl").read_text().strip() == ""
    removed_images.undo_remove(workspace, "mine")
    assert trained(folder)["a.png"] == "new"


def test_an_image_with_half_a_character_in_its_line_is_removed_edited_and_duplicated(workspace, folder):
    line = r'{"file_name": "a.png", "text": "a dog \ud83d", "note": "\ud83d"}'
    (folder / "metadata.jsonl").write_text(line + "\n")
    assert shown(folder)["a.png"] == "a dog ?"
    assert image_sets.save_captions(workspace, "mine", {"a.png": "a dog ?"}) == []
    image_sets.copy(workspace, "mine", "copied")
    removed_images.remove(workspace, "mine", ["a.png"])
    removed_images.undo_remove(workspace, "mine")
    assert lines(folder) == lines(workspace.images / "copied") == [line, ""]
    image_sets.save_captions(workspace, "mine", {"a.png": "a cat \ud83d", "b.png": "b \ud83d"})
    assert json.loads(lines(folder)[0]) == json.loads(line) | dict(text="a cat ?")
    assert (folder / "b.txt").read_text() == "b ?\n"


@pytest.mark.parametrize("name", ["metadata.csv", "a.txt", "a.json"])
def test_an_upload_without_words_deletes_no_caption(workspace, folder, tmp_path, name):
    (folder / "a.txt").write_text("my caption\n")
    content = {"metadata.csv": "file_name,text\na.png,\n", "a.txt": "\n", "a.json": '{"caption": " "}'}
    (tmp_path / name).write_text(content[name])
    note = {"metadata.csv": "metadata.csv: 1 line without a caption"}
    _, notes = image_uploads.add(workspace, "mine", [tmp_path / name])
    assert notes == [note.get(name, f"{name} was left out: it holds no text")]
    assert (folder / "a.txt").read_text() == "my caption\n"
