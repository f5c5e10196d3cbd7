"""metadata.csv and metadata.jsonl as spreadsheets and scripts write them: no caption is cut in silence."""

import json

import pytest
from PIL import Image

from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.metadata import read_metadata
from gralora_diffusion.data.text_files import lines_of
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError

NO_ENDS_OF_LINES = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # at which str.splitlines() ends lines


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


def captions(folder) -> dict[str, str]:
    return {image.path.name: image.caption for image in find_images(folder, "the prompt")}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file_name,text\na.png,a dog, running, park\n", "line 2 has 4 fields, and the first line names 2"),
        ('file_name,text\nb.png,"x\ny"\na.png,a, b\n', 'line 4 has 3 .* in quotes, "a dog, running"'),
        ("text,file_name\na dog, running,a.png\n", "line 2 has 3 fields"),
        ("file_name,text,text\na.png,x,y\n", "names the column 'text' twice: rename or remove one"),
        ("file_name,file_name,text\na.png,b.png,y\n", "names the column 'file_name' twice"),
        ("file_name;text\na.png;x\n", "its cells are separated by semicolons: save it with commas"),
        ("file_name\ttext\na.png\tx\n", "its cells are separated by tabs: save it with commas"),
        ("sep=,\nfile_name,text\na.png,x\n", "its first line sets a separator: remove it"),
        ("File_Name,text\na.png,x\n", "must name a column \"file_name\", and names 'File_Name', 'text'"),
        (
            "file_name,Text\na.png,x\n",
            "line 2 has no 'text' or 'caption', but 'Text': name one with",
        ),
    ],
)
def test_a_table_that_would_lose_words_is_one_sentence(folder, table, words):
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(ConfigError, match=words) as caught:
        captions(folder)
    assert "\n" not in str(caught.value)


def test_blanks_after_commas_do_not_matter(folder):
    (folder / "metadata.csv").write_text('file_name, text\n\na.png, "a dog, running"\nb.png, a "big" cat\n')
    assert captions(folder) == {"a.png": "a dog, running", "b.png": 'a "big" cat'}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_end_only_at_ends_of_lines(folder, end):
    text = f"one{NO_ENDS_OF_LINES}b.png,two"
    rows = ["file_name,text", f'a.png,"{text}"', f"b.png,x{NO_ENDS_OF_LINES}y", ""]
    (folder / "metadata.csv").write_bytes(end.join(rows).encode())
    found = {path.name: caption for path, caption in read_metadata(folder, None).items()}
    assert found == {"a.png": text, "b.png": f"x{NO_ENDS_OF_LINES}y"}


def test_lines_of_json_may_hold_them_too(folder):
    row = json.dumps(dict(file_name="a.png", text=f"x{NO_ENDS_OF_LINES[-3:]}y"), ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(f"{row}\n", encoding="utf-8")
    assert captions(folder) == {"a.png": "x y", "b.png": "the prompt"}


def test_lines_of_a_text():
    assert lines_of(f"a\nb\r\nc\rd{NO_ENDS_OF_LINES}e") == ["a", "b", "c", f"d{NO_ENDS_OF_LINES}e"]


@pytest.mark.parametrize("name", ["l.png", "l/deep.png"])
def test_a_loop_of_links_is_one_sentence(folder, name):
    (folder / "l").symlink_to("l")
    (folder / "l.png").symlink_to("l.png")
    (folder / "metadata.csv").write_text(f"file_name,text\n{name},x\n")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        captions(folder)


def test_a_loop_of_links_has_a_path(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    assert resolved(tmp_path / "loop") == tmp_path / "loop"
    (tmp_path / "link").symlink_to(tmp_path)
    assert resolved(tmp_path / "link") == tmp_path.resolve()


@pytest.mark.parametrize("name", ["Metadata.csv", "METADATA.JSONL"])
def test_a_list_in_another_case_is_not_dropped(folder, name):
    (folder / name).write_text('{"file_name": "a.png", "text": "x"}\n')
    if (folder / name.lower()).exists():
        pytest.skip("names here have no case")
    with pytest.raises(ConfigError, match=rf"{name} \(captions are read from {name.lower()}, in lower case"):
        captions(folder)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            '{"file_name": "a.png", "text": "x"},\n',
            "line 1 is not JSON: each line must be an object of",
        ),
        ('[\n{"file_name": "a.png", "text": "x"}\n]\n', "line 1 is not JSON: each line must be an object of"),
        ('{"file": "a.png", "text": "x"}\n', "line 1 has no \"file_name\", but 'file', 'text'"),
        ('["a.png"]\n', 'line 1 has no "file_name"'),
    ],
)
def test_lines_that_are_no_objects_with_a_file_name(folder, lines, words):
    (folder / "metadata.jsonl").write_text(lines)
    with pytest.raises(ConfigError, match=words):
        captions(folder)


@pytest.mark.parametrize("name", ["captions.csv", "Captions.json", "meta_cap.json", "captions.txt"])
def test_a_list_under_another_name_is_not_dropped(folder, name):
    (folder / name).write_text("file_name,text\na.png,x\n")
    with pytest.raises(ConfigError, match=rf"{name} \(a list of captions by its name, which is read as"):
        captions(folder)


@pytest.mark.parametrize("name", ["a.png:Zone.Identifier", "Icon\r", "ehthumbs.db"])
def test_files_of_an_operating_system_are_ignored(folder, name, capsys):
    (folder / name).write_text("[ZoneTransfer]")
    assert len(captions(folder)) == 2
    assert not capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".psd", ".tga", ".jp2"])
def test_other_formats_of_images_are_to_be_exported(folder, suffix):
    (folder / f"c{suffix}").write_bytes(b"8BPS")
    with pytest.raises(ConfigError, match="a format of images that is not read: export it as PNG or JPEG"):
        captions(folder)
