"""The folders of the page, and the names that a browser may send."""

import pytest

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets
from gralora_diffusion.ui.workspace import new_name

BAD_NAMES = [
    "../x",
    "/etc/x",
    "a/b",
    "..",
    "",
    "a\0b",
    "a\nb",
    "CON",
    "nul.txt",
    "x" * 300,
    "--help",
    "$(id)",
    ";rm",
    "%2e%2e",
    ".hidden",
    "a.",
    "a..b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be named"):
        new_name(name, "a run")


@pytest.mark.parametrize("name", ["my zorvo", " my zorvo ", "my   zorvo", "my-zorvo"])
def test_spaces_in_a_new_name_become_hyphens_whatever_it_names(name, workspace):
    for what in ("a run", "a dataset", "the file"):
        assert new_name(name, what) == "my-zorvo"
    with pytest.raises(ConfigError, match="a run named my-zorvo already exists"):
        new_name(name, "a run", ["My-Zorvo"])
    assert image_sets.create(workspace, name) == "my-zorvo"
    assert image_sets.rename(workspace, "my-zorvo", "red hero") == "red-hero"
    assert image_sets.copy(workspace, "red-hero", name) == "my-zorvo"


def test_only_what_is_there_can_be_named(workspace, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    (workspace.runs / "link").symlink_to(tmp_path / "outside")
    (workspace.runs / "true").mkdir()
    (workspace.runs / "true" / "config.json").write_text("{}")
    (workspace.runs / "true" / "adapter.safetensors").symlink_to("/etc/passwd")
    assert workspace.run_names() == ["true"]
    assert workspace.adapter_names() == []
    for ask in (workspace.run, workspace.adapter, workspace.image_set):
        for name in ("link", "../outside", "/etc", "true/../link", "true/adapter.safetensors"):
            with pytest.raises(ConfigError):
                ask(name)
