"""metadata.jsonl and metadata.csv in upper case, and other files that are not read: each is named."""

import zipfile

import pytest
from PIL import Image

from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.metadata import METADATA_CSV
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets, image_uploads
from gralora_diffusion.ui.caption_files import caption_of

LISTS = {
    "Metadata.csv": "file_name,text\na.png,a photo of sks dog\n",
    "metadata.CSV": "file_name,text\na.png,a photo of sks dog\n",
    "METADATA.JSONL": '{"file_name": "a.png", "text": "a photo of sks dog"}\n',
}


@pytest.fixture
def folder(workspace):
    folder = workspace.images / image_sets.create(workspace, "mine")
    for name in "abc":
        Image.new("RGB", (64, 64), (ord(name), 0, 0)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a dog\n")
    return folder


@pytest.mark.parametrize("name", LISTS)
def test_the_check_names_a_list_of_another_case(workspace, folder, name):
    """As training does, which refuses it."""
    assert image_sets.check_set(workspace, "mine", 64) == []
    (folder / name).write_text(LISTS[name])
    with pytest.raises(ConfigError, match=name):
        find_images(folder, None)
    ((file, found, advice),) = image_sets.check_set(workspace, "mine", 64)
    assert file == name
    assert found == f"captions are read from {name.lower()}, in lower case: rename it"
    assert advice == "training refuses it: rename or remove it"


def test_the_check_names_whatever_else_is_not_read(workspace, folder):
    for name in ("b2.txt", "photo.cr2", "notes.md", "captions.csv", "prices.csv", "a.tags", "Thumbs.db"):
        (folder / name).write_text("x")
    findings = {file: (found, advice) for file, found, advice in image_sets.check_set(workspace, "mine", 64)}
    refused = {file for file, (_, advice) in findings.items() if advice.startswith("training refuses it")}
    assert refused == {"b2.txt", "photo.cr2", "a.tags", "captions.csv"}
    assert findings.keys() - refused == {"notes.md", "prices.csv"}
    with pytest.raises(ConfigError) as error:
        find_images(folder, None)
    assert all(name in str(error.value) for name in refused)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", LISTS)
def test_an_uploaded_list_of_another_case_is_read(workspace, folder, tmp_path, name, zipped):
    upload = tmp_path / name
    upload.write_text(LISTS[name])
    if zipped:
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            archive.write(upload, f"folder/{name}")
        upload = tmp_path / "all.zip"
    assert image_uploads.add(workspace, "mine", [upload]) == (0, [])
    assert caption_of(folder / "a.png") == "a photo of sks dog"


def test_other_lists_and_two_in_an_archive_are_named(workspace, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, text in [*LISTS.items(), ("captions.csv", "x"), (METADATA_CSV.upper(), "x")]:
            archive.writestr(name, text)
    _, notes = image_uploads.add(workspace, "mine", [tmp_path / "all.zip"])
    assert len(notes) == 5
    assert "captions.csv was left out: only metadata.jsonl or metadata.csv may hold the captions" in notes[-2]
    assert sum("remove one of the two" in note for note in notes) == 4
    assert caption_of(folder / "a.png") == "a dog"
