"""What, which base, which card: the options that follow, the warnings, and what is offered."""

import pytest
from train_form import form_values

from gralora_diffusion.presets import PRESETS
from gralora_diffusion.ui import card, train_questions
from gralora_diffusion.ui.config_form import FIELDS, placeholder, to_config
from gralora_diffusion.ui.train_questions import THIS, Answers, with_answers
from gralora_diffusion.ui.workspace import BUNDLED, EMBEDDED, SDXL

GIB = 2**30


@pytest.fixture
def device(monkeypatch):
    """A function that sets the device of this computer."""
    return lambda name, free: monkeypatch.setattr(card, "_found", [(name, free)])


@pytest.mark.parametrize(
    ("answers", "free", "preset"),
    [
        (Answers("subject", None, "12gb"), None, None),
        (Answers("subject", SDXL, "12gb"), None, "subject-12gb"),
        (Answers("style", SDXL, "24gb"), 4 * GIB, "style-24gb"),
        (Answers("style", SDXL, THIS), 16 * GIB, "style-16gb"),
        (Answers("subject", "models/x", THIS), 139 * GIB, "subject-24gb"),
        (Answers("subject", SDXL, THIS), 2 * GIB, "subject-6gb"),
        (Answers("subject", SDXL, THIS), None, None),
        (Answers("<b>", SDXL, THIS), 16 * GIB, None),
        (Answers("style", SDXL, "../x"), None, "style-8gb"),
    ],
)
def test_the_preset_follows_from_the_answers(device, answers, free, preset):
    device("a card", free)
    assert train_questions.preset_of(answers) == preset


def test_no_1024_pixels_on_the_demo_model(workspace):
    """Its values come back when it is chosen again, whatever was recommended for SDXL."""
    start = form_values()
    sdxl = start | dict(pretrained_model_name_or_path=SDXL)
    filled = with_answers(sdxl, None, Answers("subject", SDXL, "12gb"), workspace)
    config = to_config(filled, workspace)
    assert (config.resolution, config.adapter.rank) == (1024, PRESETS["subject-12gb"]["options"]["rank"])
    back = filled | dict(pretrained_model_name_or_path=EMBEDDED)
    for what in ("subject", "style"):
        again = with_answers(back, SDXL, Answers(what, None, "24gb"), workspace)
        assert again == start


def test_what_was_changed_by_hand_stays_when_the_card_changes(workspace):
    sdxl = form_values(pretrained_model_name_or_path=SDXL)
    filled = with_answers(sdxl, None, Answers("subject", SDXL, "12gb"), workspace)
    changed = filled | dict(rank=7, seed=5)
    other = with_answers(changed, SDXL, Answers("style", SDXL, "24gb"), workspace)
    assert (other["rank"], other["seed"], other["max_train_steps"]) == (7, 5, "1500")


def test_placeholders_follow_the_base():
    shown = [placeholder(FIELDS["learning_rate"], base) for base in (None, SDXL)]
    assert shown == ["0.001", "0.0001"]
    assert [placeholder(FIELDS["resolution"], base) for base in (None, SDXL)] == ["64", "1024"]


OF_BASE = ("demo model cannot learn photos",)
OF_CARD = ("has no GPU", "may be too small")


@pytest.mark.parametrize(
    ("answers", "images", "found", "words"),
    [
        (Answers("subject", None, THIS), BUNDLED, ("CPU", None), ""),
        (Answers("subject", None, THIS), "mine", ("CPU", None), "demo model cannot learn photos"),
        (Answers("subject", SDXL, THIS), "mine", ("CPU", None), "has no GPU"),
        (Answers("subject", SDXL, "12gb"), "mine", ("CPU", None), ""),
        (Answers("subject", SDXL, THIS), "mine", ("-", None), ""),
        (Answers("style", SDXL, THIS), "mine", ("small", 2 * GIB), "may be too small"),
        (Answers("style", SDXL, THIS), "mine", ("large", 20 * GIB), ""),
    ],
)
def test_warnings(device, answers, images, found, words):
    device(*found)
    warnings = train_questions.base_warning_of(answers.base, images), train_questions.card_warning_of(answers)
    assert [bool(warning) for warning in warnings] == [words in OF_BASE, words in OF_CARD]
    assert words in "".join(warnings)


def test_the_card_is_displayed_with_the_sizes_that_have_presets(device):
    device("NVIDIA X, 12.0 GiB", 11 * GIB)
    shown = [text for text, _ in train_questions.card_choices("style")]
    assert shown == ["This computer: NVIDIA X, 12.0 GiB", "8 GB", "12 GB", "16 GB", "24 GB"]


def test_real_bases_and_own_files_are_offered(workspace):
    (workspace.models / "mine.safetensors").write_bytes(b"")
    shown = workspace.base_choices()
    assert [value for _, value in shown] == [EMBEDDED, SDXL, "mine.safetensors"]
    assert shown[0][0] == "Demo model (64 px emoji)"
    assert workspace.base(SDXL) == SDXL
