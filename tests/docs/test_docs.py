"""The documents are true where a machine can tell: links, images, commands, options, presets."""

import json
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from helpers import GRALORA, ROOT

from gralora_diffusion.cli.main import COMMANDS
from gralora_diffusion.command_line import parser_of
from gralora_diffusion.config import GROUPS, TrainConfig
from gralora_diffusion.options import options_of
from gralora_diffusion.presets import PRESETS
from gralora_diffusion.unknown_options import FOREIGN

RESULTS = ROOT / "docs" / "experiments" / "results"  # printed by commands
DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if RESULTS not in path.parents),
]
COLUMNS = 160
FLAG = r"(?<![\w-])--[a-z][\w-]*"
PROGRAMS = ("gralora ", "accelerate ", "python ", "bash ")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def of_each_document(test):
    return pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)(test)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def slugs(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(path: Path) -> list[list[str]]:
    """The words of each command of a document, comments and continued lines resolved."""
    fenced = re.findall(r"^```(?:sh)?\n(.*?)^```$", path.read_text(), re.M | re.S)
    lines = "\n".join(fenced).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(PROGRAMS)]


@cache
def help_of(command: str) -> str:
    done = subprocess.run([*GRALORA, command, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documents_are_there():
    expected = "training sampling coming-from data formats evaluation speed gpu tiny_base experiments/README"
    assert {f"docs/{name}.md" for name in expected.split()} <= set(map(name_of, DOCUMENTS))


@of_each_document
def test_links_and_images_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        where = path.parent / file if file else path
        assert where.exists(), target
        assert not anchor or anchor in slugs(where), target


@of_each_document
def test_lines_are_short(path):
    long = [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > COLUMNS]
    assert not long, f"lines {long} have more than {COLUMNS} columns"


@of_each_document
def test_commands_parse(path):
    for program, *words in commands(path):
        if program == "gralora":
            check_gralora(*words)
        elif program == "accelerate":
            script = next(word for word in words if word.endswith(".py"))
            assert (ROOT / script).is_file()
            check_gralora("train", *words[words.index(script) + 1 :])
        elif program == "python" and words[0].startswith("scripts/"):
            source = (ROOT / words[0]).read_text()
            unknown = [flag for flag in flags_in(words) if f'"{flag}"' not in source]
            assert not unknown, f"{words[0]} does not know {unknown}"
        elif program == "bash":
            assert (ROOT / words[0]).is_file(), words[0]


def check_gralora(command: str, *words: str) -> None:
    if command.startswith("--"):
        assert command in ("--help", "--version")
        return
    assert command in COMMANDS, command
    if command == "train" and "--help" not in words:
        parser_of("").parse_args(words)
        return
    flags = set(re.findall(r"--\w[\w-]*", help_of(command))) if flags_in(words) else set()
    unknown = [flag for flag in flags_in(words) if flag not in flags]
    assert not unknown, f"gralora {command} does not know {unknown}"


def flags_in(words) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def test_every_training_option_is_explained():
    text = (ROOT / "docs" / "training.md").read_text()
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| `--"))
    missing = [
        flag for about in options_of(TrainConfig).values() for flag in about.flags if f"`{flag}`" not in rows
    ]
    assert not missing, missing
    titles = re.findall(r"^### (.*)$", text, re.M)
    assert [title.removesuffix(" options") for title in titles] == list(GROUPS)


def test_options_are_marked_where_a_run_may_be_resumed_with_others():
    text = (ROOT / "docs" / "training.md").read_text()
    for about in options_of(TrainConfig).values():
        (row,) = re.findall(rf"^\| `{about.flag}`.*$", text, re.M)
        cells = [cell.strip() for cell in row.replace("\\|", "").split("|")]
        assert (cells[3] == "R") == about.resumable, row


def test_no_option_is_made_up():
    """Every flag in training.md, and in the right column of coming-from.md, exists."""
    known = {flag for about in options_of(TrainConfig).values() for flag in about.flags}
    known |= {f"--no-{flag[2:]}" for flag in known}
    known |= {"--help", "--help_all", "--preset", "--num_processes", "--verbose", "--run"}
    known |= {"--flag", "--no-flag"}
    known |= set(re.findall(r"--\w[\w-]*", " ".join(help_of(command) for command in ("sample", "convert"))))
    known |= {"--fp32-vae", "--no-half-vae"}  # of other tools
    text = (ROOT / "docs" / "training.md").read_text()
    assert set(re.findall(FLAG, text)) <= known
    rows = (ROOT / "docs" / "coming-from.md").read_text().splitlines()
    ours = " ".join(row.split("|", 2)[2].replace("\\|", "") for row in rows if row.startswith("| "))
    assert set(re.findall(FLAG, ours)) <= known


def test_other_trainers_options_that_the_program_knows_are_explained():
    text = (ROOT / "docs" / "coming-from.md").read_text()
    missing = [flag for flag in FOREIGN if not re.search(rf"{flag}(?![\w-])", text)]
    assert not missing, missing


def test_every_option_of_kohyas_that_is_listed_gets_an_answer():
    """An option of the same name, or a sentence."""
    text = (ROOT / "docs" / "coming-from.md").read_text()
    section = text[text.index("## kohya sd-scripts") : text.index("### Folders")]
    left = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| "))
    found = set(re.findall(FLAG, left))
    assert len(found) > 80
    unanswered = found - parser_of("")._option_string_actions.keys() - FOREIGN.keys()
    assert not unanswered


def test_each_option_of_kohyas_has_one_answer():
    """A merge once left two, of which the later and older one was printed."""
    text = (ROOT / "docs" / "coming-from.md").read_text()
    section = text[text.index("## kohya sd-scripts") : text.index("### Folders")]
    left = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    listed = re.findall(r"`(--[^`]+)`", " ".join(left))
    pairs = json.loads(
        (ROOT / "gralora_diffusion" / "foreign_options.json").read_text(), object_pairs_hook=list
    )
    for flags in (listed, [flag for flag, _ in pairs]):
        assert sorted(flags) == sorted(set(flags))
    ours = parser_of("")._option_string_actions.keys()
    assert not ours & FOREIGN.keys()


@pytest.mark.parametrize("name", ["Dockerfile", "run.sh", "run.bat"])
def test_the_commands_of_scripts_that_install_the_package_exist(name):
    found = re.findall(r"gralora (\w+)(.*)", (ROOT / name).read_text())
    assert found
    for command, rest in found:
        check_gralora(command, *[word for word in rest.split() if word in ("--listen", "--auth", "--port")])


def others(options: dict) -> str:
    """The cell of a preset's options that have no column."""
    if "snr_gamma" in options:
        return f"`--snr_gamma {options['snr_gamma']:g}`"
    return "`--offload_unet`" if "offload_unet" in options else ""


def test_the_presets_are_those_of_the_program():
    text = (ROOT / "docs" / "training.md").read_text()
    rows = []
    for line in text.splitlines():
        if "-" in line:
            rows.append([cell.strip() for cell in line.split("|")[1:-1]])
    found = {row[0]: row[1:] for row in rows if row and row[0] in PRESETS}
    assert found.keys() == PRESETS.keys()
    for name, preset in PRESETS.items():
        options = preset["options"]
        accumulation = options.get("gradient_accumulation_steps", 1)
        assert options["mixed_precision"] == "bf16"
        assert found[name] == [
            str(options["rank"]),
            str(options["k"]),
            str(options["resolution"]),
            f"{options['train_batch_size']} x {accumulation}",
            "yes" if options.get("gradient_checkpointing") else "no",
            str(options["max_train_steps"]),
            others(options),
            f"{preset['forecast_gib']:g}",
        ]


def test_the_reports_of_the_experiments_name_runs_that_are_there():
    found = commands(ROOT / "docs" / "experiments" / "README.md")
    reports = [words for words in found if words[0] == "gralora" and "--report" in words]
    assert len(reports) >= 5
    for words in reports:
        assert (ROOT / words[words.index("--output") + 1] / "runs.jsonl").is_file(), words


def test_the_readme_has_no_interval_in_its_prose():
    text = without_code((ROOT / "README.md").read_text())
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    number = r"[+-]?\d*\.\d+"
    intervals = [line for line in prose if re.search(rf"{number} (to|\.\.) {number}", line)]
    assert not intervals, intervals


@pytest.mark.slow
def test_the_dry_run_of_the_training_guide_runs(tmp_path):
    (words,) = [words for words in commands(ROOT / "docs" / "training.md") if "--dry_run" in words]
    done = subprocess.run(
        [*GRALORA, *words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "56 layers" in done.stdout
    assert not list(tmp_path.iterdir())
