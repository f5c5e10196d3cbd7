"""What the page's code may hold, what it writes, and what a refused run marks on it."""

import ast
import csv
import json
import re
from pathlib import Path

import pytest

import gralora_diffusion.ui
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError, options_of
from gralora_diffusion.training import dry_run
from gralora_diffusion.ui import forecasts
from gralora_diffusion.ui.grid import save_table
from gralora_diffusion.ui.image_sets import COPYING
from gralora_diffusion.ui.mistakes import mistake_updates

UI = Path(gralora_diffusion.ui.__file__).parent


def test_dark_rules_have_one_selector():
    """Gradio's prefix makes the others of a list match nothing."""
    styles = "".join(re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S) for path in UI.glob("*.css"))
    selectors = re.findall(r"([^{}]*)\{", styles)
    dark = [selector for selector in selectors if ".dark" in selector]
    assert len(dark) > 5
    assert not [selector for selector in dark if "," in selector]


def test_a29_cells_are_no_formulas(workspace):
    paths = save_table(workspace, ["name"], [["=HYPERLINK(1)"], ["@SUM"], ["-1+1"], ["+1"], ["plain"], [3.5]])
    with open(paths[0], newline="") as file:
        cells = [row[0] for row in csv.reader(file)][1:]
    assert cells == ["'=HYPERLINK(1)", "'@SUM", "'-1+1", "'+1", "plain", "3.5"]


def test_a3_the_page_imports_no_training_and_runs_nothing_it_is_given():
    files = list(UI.glob("*.py"))
    assert len(files) > 20
    for path in files:
        text = path.read_text()
        for word in (
            "import pickle",
            "shell=True",
            "os.system",
            " eval(",
            " exec(",
            "trust_remote_code",
            "weights_only=False",
            "yaml.load",
            "GoogleFont",
        ):
            assert word not in text, (path, word)
        modules = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
        assert "gralora_diffusion.training.train" not in modules


@pytest.mark.parametrize("option", ["rank", "instance_data_dir", None])
def test_a_refused_forecast_marks_its_field(workspace, monkeypatch, option):
    """At once, and while the same config is on the form."""

    def refuse(*_, **__):
        raise ConfigError("this run is impossible", option=option)

    monkeypatch.setattr(dry_run, "plan", refuse)
    config = TrainConfig(seed=31415)
    assert forecasts.known_refusal(config, workspace) is None
    with pytest.raises(ConfigError, match="this run is impossible") as refusal:
        forecasts.estimate_of(config, workspace)
    known = forecasts.known_refusal(config, workspace)
    label = f"“{options_of(TrainConfig)[option].label}”: " if option else ""
    assert str(known) == f"{label}this run is impossible"
    expected = [[f"option-{option}", str(known)]] if option else []
    for error in (refusal.value, known):
        assert error.option == option
        assert json.loads(mistake_updates(error)[1]) == expected


def test_the_page_has_the_words_that_gradio_lacks(page):
    """Or it would say "common.complete" when a run of a handler has ended."""
    config = page.config()
    assert config["i18n_translations"]["en"]["common.complete"] == "Done"
    texts = {part["props"].get("elem_id"): part["props"].get("value") for part in config["components"]}
    assert "or to a new one if the chosen one is robot" in texts["drop-help"]
    assert "`models`, which is beside `runs` and `images` in the page's folder" in texts["no-captioner"]


def test_a_copy_that_was_killed_is_deleted_before_the_page_answers(page):
    """conftest.py has put one there."""
    assert (page.home / "images").is_dir()
    assert list((page.home / "images").glob(f"{COPYING}*")) == []


def test_the_estimate_is_renewed_when_train_is_opened(page):
    """A run of the same work may have ended since, with other times."""
    config = page.config()
    parts = {part["id"]: part["props"] for part in config["components"]}
    renewed = set()
    for event in config["dependencies"]:
        for target, name in event["targets"]:
            if name == "select" and parts[target].get("label") == "Train":
                renewed |= {parts[output].get("elem_id") for output in event["outputs"]}
    assert {"estimate-time", "estimate-memory", "estimate-files", "problem"} <= renewed


@pytest.mark.parametrize(("field", "button"), [("new-run-name", "rename-run"), ("new-set", "create-set")])
def test_enter_in_a_new_name_does_what_its_button_does(page, field, button):
    assert page.function_of(field, "submit") == page.function_of(button, "click")
