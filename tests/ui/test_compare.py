"""Compare: grids of prompts, what is the best, and blind votes."""

import json

import pytest
from PIL import Image

from gralora_diffusion.evaluation.statistics import rate_interval
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.image_text import OWN, PARAMETERS, save_image
from gralora_diffusion.ui import blind
from gralora_diffusion.ui.blind import Comparison, Trial
from gralora_diffusion.ui.grid import Axes, Cell
from gralora_diffusion.ui.scores import (
    BEHIND_BASE,
    BEST,
    BEST_BUT,
    BEST_MEAN,
    HEAD,
    OF_BASE,
    table,
    verdict,
    with_short_encoders,
)
from gralora_diffusion.ui.tab_blind import groups as blind_groups
from gralora_diffusion.ui.workspace import Workspace


def test_a_grid_has_a_row_for_each_prompt_and_adapter():
    cells = Axes(["a", "b"], ["one", "two"], [0.0, 1.0], 2).cells(5)
    assert len(cells) == 16
    assert [(c.prompt, c.adapter, c.strength, c.seed) for c in cells[:5]] == [
        ("a", "one", 0.0, 5),
        ("a", "one", 0.0, 6),
        ("a", "one", 1.0, 5),
        ("a", "one", 1.0, 6),
        ("a", "two", 0.0, 5),
    ]
    with pytest.raises(ConfigError, match="5 prompts x 2 adapters x 2 strengths x 5 seeds are too many"):
        Axes(["p"] * 5, ["one", "two"], [0, 1], 5).cells(0)
    with pytest.raises(ConfigError, match="choose at least one adapter"):
        Axes(["a"], [], [1], 1).cells(0)


def entry(run, mean, low=None, high=None, score="subject", encoder="imagenet", against=("x",)):
    numbers = dict(n=4, mean=mean, sd=0.1, low=low, high=high)
    return dict(run=run, score=score, label=score, encoder=encoder, against=list(against)) | numbers


def test_the_best_of_each_score_is_marked_and_never_the_base():
    entries = [
        entry("one at 0", 0.99, 0.98, 1),
        entry("one at 1", 0.5, 0.45, 0.55),
        entry("two at 1", 0.8, 0.75, 0.85),
        entry("one at 1", 0.5, 0.4, 0.6, "copy"),
        entry("two at 1", 0.8, 0.6, 0.9, "copy"),
        entry("one at 1", 0.5, encoder="embedded"),
        entry("two at 1", 0.4, encoder="embedded"),
        entry("two at 1", 0.9, 0.8, 1, "diversity", against=("y",)),
        entry("one at 1", 0.9, 0.8, 1, "prompt"),
        entry("two at 1", 0.9, 0.8, 1, "prompt"),
        entry("one at 1", 0.3, 0.2, 0.4, "prompt", "embedded", against=("x",)),
        entry("two at 1", 0.7, 0.6, 0.8, "prompt", "embedded", against=("y",)),  # no score of these images
    ]
    rows = table(entries, {"one at 0"})
    assert all(len(row) == len(HEAD) for row in rows)
    marks = [row[-1] for row in rows]
    # the copy score is better where it is lower; alone, and of equals, none is the best
    behind = BEST + BEHIND_BASE
    assert marks == [OF_BASE, "", behind, BEST_BUT, "", BEST_MEAN, "", "", "", "", "", BEST]


def test_a_mark_never_contradicts_its_row():
    """Without an interval nothing is starred, and the base is named where its mean is better still."""
    entries = [
        entry("one at 0", 0.4659),
        entry("one at 0.5", 0.4444),
        entry("one at 1", 0.41),
        entry("one at 0", 0.2, score="copy"),
        entry("one at 0.5", 0.3, 0.25, 0.35, score="copy"),
        entry("one at 1", 0.5, 0.45, 0.55, score="copy"),
        entry("one at 0", 0.1, 0.05, 0.15, score="prompt"),
        entry("one at 0.5", 0.3, 0.25, 0.35, score="prompt"),
        entry("one at 1", 0.5, 0.45, 0.55, score="prompt"),
    ]
    rows = table(entries, {"one at 0"})
    assert [row[-1] for row in rows] == [
        "base, not ranked",
        "best mean, base better",
        "",
        "base, not ranked",
        "★ best, base better",
        "",
        "base, not ranked",
        "",
        "★ best",
    ]
    for row in rows:
        assert "★" not in row[-1] or "no interval" not in " ".join(row)
        better = row[HEAD.index("better")]
        assert better == ("lower" if row[HEAD.index("score")] == "copy" else "higher")


def test_the_base_has_one_row_where_it_is_the_same_for_several_adapters():
    """Against the images of each adapter it has one for each."""
    entries = [
        entry("one at 0", 0.4, against=("x",)),
        entry("one at 0", 0.2, score="prompt", against=("x",)),
        entry("one at 1", 0.5, score="prompt", against=("x",)),
        entry("two at 0", 0.4, against=("y",)),
        entry("two at 0", 0.2, score="prompt", against=("y",)),
        entry("two at 1", 0.5, score="prompt", against=("y",)),
    ]
    of_base = {"one at 0", "two at 0"}
    rows = [(row[0], row[1], row[-1]) for row in table(entries, of_base)]
    assert rows == [
        ("one at 0", "subject", OF_BASE),
        ("two at 0", "subject", OF_BASE),
        ("base", "prompt", OF_BASE),
        ("one at 1", "prompt", ""),
        ("two at 1", "prompt", ""),
    ]
    for each in entries:
        each["against"] = ["x"]
    assert [row[0] for row in table(entries, of_base)] == ["base", "base", "one at 1", "two at 1"]


def test_the_marks_are_said_in_sentences():
    entries = [
        entry("one at 0", 0.9),
        entry("one at 1", 0.5, 0.4, 0.6),
        entry("two at 1", 0.8, 0.7, 0.9),
        entry("one at 1", 0.5, 0.4, 0.6, score="prompt"),
        entry("two at 1", 0.8, 0.55, 0.9, score="prompt"),
        entry("one at 1", 0.6, score="diversity"),
        entry("two at 1", 0.5, score="diversity"),
        entry("one at 1", 0.5, score="copy"),
        entry("two at 1", 0.5, score="copy"),
    ]
    alone = "has the best mean; there is no interval that says how much of it is chance"
    assert verdict(table(entries, {"one at 0"})).splitlines() == [
        "- subject (imagenet): **two at 1** is best; the base is better still",
        "- prompt (imagenet): **two at 1** has the best mean, but intervals overlap, so that may be chance",
        f"- diversity (imagenet): **one at 1** {alone}",
    ]


def test_a_blind_comparison_is_first_of_two_adapters_at_their_highest_strength():
    def chosen(*cells):
        first, second = blind_groups([Cell(*cell, 0, "p") for cell in cells])
        return first["value"], second["value"]

    two = [("one", 0.0), ("one", 0.5), ("one", 1.0), ("two", 0.0), ("two", 0.5), ("two", 1.0)]
    assert chosen(*two) == ("one at 1", "two at 1")
    assert chosen(*two[:3]) == ("one at 0.5", "one at 1")
    assert chosen(*two[1:2]) == ("one at 0.5", None)
    assert blind_groups(None)[0]["value"] is None


def test_the_page_has_short_names_of_encoders_and_files_have_long_ones():
    name = "EfficientNet-Lite2 (ImageNet classes)"
    rows = table([entry("one at 1", 0.5, encoder=name), entry("one at 1", 0.5, encoder="mine")], set())
    place = HEAD.index("encoder")
    assert [row[place] for row in rows] == [name, "mine"]
    assert [row[place] for row in with_short_encoders(rows)] == ["ImageNet", "mine"]


@pytest.fixture
def cells(workspace):
    """Two adapters with three seeds of one prompt, red and blue, as files with the adapter's name in them."""
    found = []
    for adapter, color in (("one", "red"), ("two", "blue")):
        for seed in range(3):
            image = Image.new("RGB", (64, 64), color)
            image.info |= {PARAMETERS: f"<lora:{adapter}:1>", OWN: adapter}
            path = workspace.root / f"{adapter}-{seed}.png"
            save_image(image, path)
            found.append(Cell(adapter, 1.0, seed, "a robot", str(path)))
    return found


def color_of(path) -> str:
    with Image.open(path) as image:
        assert not image.info, "a text names the adapter"
        return "red" if image.convert("RGB").getpixel((9, 9)) == (255, 0, 0) else "blue"


def test_votes_count_for_the_image_that_was_chosen_over_a_restart(workspace, cells):
    """The red one is always chosen, wherever it is."""
    blind.start(workspace, cells, "one at 1", "two at 1")
    seen = []
    for number in range(3):
        comparison = blind.load(Workspace(workspace.root))
        assert not comparison.ended
        assert comparison.votes == number
        left, right = blind.sides_of(workspace, comparison.current)
        assert {color_of(left), color_of(right)} == {"red", "blue"}
        assert "one" not in f"{left.name}{right.name}"
        seen.append(comparison.current.seed)
        choice = "left" if color_of(left) == "red" else "right"
        shown = comparison.current.id
        comparison = blind.vote(workspace, shown, choice)
        assert blind.vote(workspace, shown, "tie") == comparison  # a second click
    assert sorted(seen) == [0, 1, 2]
    assert comparison.ended
    low, _ = rate_interval(3, 3)
    text = blind.result_text(blind.load(workspace))
    assert text.startswith(
        f"one at 1 was chosen over two at 1 in 3 of 3 votes: 100 %, 95 % interval {100 * low:.0f} to"
    )
    assert "not clearly preferred: the interval includes 50 %" in text


def test_sides_and_order_are_random(workspace, cells):
    found = set()
    for _ in range(30):
        comparison = blind.start(workspace, cells, "one at 1", "two at 1")
        found.add((tuple(t.seed for t in comparison.trials), tuple(t.swapped for t in comparison.trials)))
    assert len(found) > 5
    assert len(list(blind.folder_of(workspace).iterdir())) == 7  # of the last one alone


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ("L" * 10 + "R", "A was chosen over B in 10 of 11 votes: 91 %, 95 % interval 59 to 100 %"),
        ("L" * 10 + "R", "clearly preferred."),
        ("RRL", "B was chosen over A in 2 of 3 votes: 67 %"),
        ("LRT", "Equal: A and B have 1 vote each (50 %, 95 % interval 1 to 99 %). 1 tie not counted."),
        ("TT", "No preference between A and B: 2 ties."),
    ],
)
def test_the_result_is_the_share_of_decided_votes(votes, words):
    kinds = dict(L="left", R="right", T="tie")
    trials = tuple(Trial("a", n, ("x", "y"), False, kinds[vote]) for n, vote in enumerate(votes))
    text = blind.result_text(Comparison(("A", "B"), trials, ended=True))
    assert words in text
    swapped = tuple(Trial("a", n, ("x", "y"), True, kinds[vote]) for n, vote in enumerate(votes))
    mirrored = blind.result_text(Comparison(("B", "A"), swapped, ended=True))
    if "chosen" in words or "clearly" in words:
        assert mirrored == text


def test_what_a_browser_sends_for_a_blind_comparison_is_checked(workspace, cells):
    for names in (("one at 1", "one at 1"), ("one at 1", "three at 1"), ("../x", "one at 1")):
        with pytest.raises(ConfigError, match=r"choose two"):
            blind.start(workspace, cells, *names)
    assert not blind.folder_of(workspace).exists()
    for action in (lambda: blind.vote(workspace, 0, "left"), lambda: blind.end(workspace)):
        with pytest.raises(ConfigError, match="there is no blind comparison"):
            action()
    older = blind.start(workspace, cells, "one at 1", "two at 1").current.id
    shown = blind.start(workspace, cells, "one at 1", "two at 1").current.id
    with pytest.raises(ConfigError, match="vote at least once"):
        blind.end(workspace)
    for vote in ("LEFT", None, 1, ["left"]):
        with pytest.raises(ConfigError, match="the vote is"):
            blind.vote(workspace, shown, vote)
    for other in (None, -1, 0, "0", [0], older):
        assert blind.vote(workspace, other, "left").votes == 0
    blind.vote(workspace, shown, "tie")
    assert blind.end(workspace).ended
    assert blind.vote(workspace, shown, "left").votes == 1


@pytest.mark.parametrize(
    "change",
    [
        dict(trials=[]),
        dict(trials={}),
        dict(names=["a"]),
        dict(
            trials=[dict(prompt="a", seed=1, images=["../../secret.png", "x.png"], swapped=True, vote=None)]
        ),
        "[",
        "[1]",
    ],
)
def test_a_state_that_is_none_is_no_comparison(workspace, cells, change):
    blind.start(workspace, cells, "one at 1", "two at 1")
    (workspace.root / "secret.png").touch()
    path = blind.folder_of(workspace) / "state.json"
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    assert blind.load(workspace) is None
