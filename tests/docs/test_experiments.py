"""The tables of the experiments hold what the commands beside them print."""

import re
import shlex
import sys
from string import Template

import pytest
from helpers import ROOT, SCRIPTS

from gralora_diffusion.cli import compare, demo

sys.path.insert(0, str(SCRIPTS))

import demo_sweep
import outliers
import prior
import ranking
import ranking_tables
import stopping
import tasks

DOCUMENT = (ROOT / "docs" / "experiments" / "README.md").read_text()
SECTIONS = {
    section.splitlines()[0]: section
    for section in re.split(r"^## ", DOCUMENT, flags=re.M)
    if "\ngralora compare --report" in section
}
NUMBER = r"([+-]?\d*\.\d+)"
CELL = re.compile(rf"{NUMBER} \({NUMBER} to {NUMBER}\)")  # as the document writes a mean and its interval
PRINTED = re.compile(rf"{NUMBER} \| +{NUMBER} to {NUMBER}")  # as the report does


def reports(section: str) -> list[list[str]]:
    """The words of each report command, with shell variables filled in."""
    variables = dict(re.findall(r'^(\w+)="(.*)"$', section, re.M))
    lines = section.replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("gralora compare --report")]
    return [shlex.split(Template(line).substitute(variables), comments=True)[2:] for line in commands]


def numbers(found: tuple[str, ...]) -> list[float]:
    return [float(text) for text in found]


def is_printed(cell: tuple[str, ...], printed: list[list[float]]) -> bool:
    """Whether a report has these three numbers, to the digits of the cell; one decimal means thousandths."""
    decimals = len(cell[0].partition(".")[2])
    unit, scale = (1e-4, 1e-3) if decimals == 1 else (10**-decimals, 1)
    wanted = [number * scale for number in numbers(cell)]
    for row in printed:
        if all(abs(a - b) <= 0.51 * unit + 1e-12 for a, b in zip(wanted, row, strict=True)):
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_intervals_are_printed_by_the_commands(title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    section = re.sub(r"<details>.*?</details>", "", SECTIONS[title], flags=re.S)
    cells = [cell for line in section.splitlines() if line.startswith("|") for cell in CELL.findall(line)]
    assert cells
    for words in reports(section):
        words[words.index("--keep") + 1] = str(tmp_path)
        compare.main(words)
    printed = [numbers(found) for found in PRINTED.findall(capsys.readouterr().out)]
    missing = [cell for cell in cells if not is_printed(cell, printed)]
    assert not missing, missing


def test_every_experiment_has_a_report():
    assert len(SECTIONS) == 5


def test_the_demos_table_is_what_its_sweep_prints():
    printed = demo_sweep.lines()
    assert (demo_sweep.KEPT / "table.md").read_text().splitlines() == printed
    section = re.split(r"^## Demo$", DOCUMENT, flags=re.M)[1].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| test")]
    assert rows == [line for line in printed if line.startswith("| test")]


def test_the_demo_trains_as_its_sweep_chose():
    assert demo_sweep.chosen() == (demo.STEPS, demo.RATE)


def test_the_table_of_when_to_stop_is_what_its_script_prints():
    printed = stopping.report()
    assert (stopping.KEPT / "table.md").read_text().splitlines() == printed
    section = re.split(r"^## When to stop$", DOCUMENT, flags=re.M)[1].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows == [line for line in printed if line.startswith("|")]


def test_the_table_of_the_prior_is_what_its_script_prints():
    test, ignored = prior.lines(prior.TEST), prior.lines(prior.IGNORED)
    assert (prior.KEPT / "table.md").read_text().splitlines() == [*test, "", *ignored]
    section = re.split(r"^## Prior$", DOCUMENT, flags=re.M)[1].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("|")] == [*test, *ignored]


def test_the_table_of_tasks_is_what_its_script_prints(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(tasks, "save_figure", lambda *_, **__: None)
    monkeypatch.setattr(tasks, "write_text", lambda *_: None)
    printed = tasks.report()
    assert (tasks.KEPT / "table.md").read_text() == f"{printed}\n"
    section = re.split(r"^## Tasks$", DOCUMENT, flags=re.M)[1].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows == [line for line in printed.splitlines() if line.startswith("|")]
    low, high = re.search(r"(\d+) to (\d+) %", printed).groups()
    effects = re.findall(r"(\d\.\d\d) with", printed)
    words = " ".join(section.split())
    assert f"{low} to {high} %" in words
    assert f"{effects[0]}, {effects[1]} and {effects[2]} thousandths" in words


def test_the_table_of_the_ranking_is_what_its_script_prints(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(ranking_tables, "save_figure", lambda *_, **__: None)
    monkeypatch.setattr(ranking_tables, "write_text", lambda *_: None)
    printed = ranking_tables.report(ranking.KEPT, ranking.planned())
    assert (ranking.KEPT / "table.md").read_text() == f"{printed}\n"
    section = re.split(r"^## Ranking$", DOCUMENT, flags=re.M)[1].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert set(rows) <= set(printed.splitlines())
    at_other_rate = re.search(r"primary comparison: (.*)\.$", printed, re.M)[1]
    ahead, share = re.search(r"ahead of LoRA in (\d+) \((\d+) %\)", printed).groups()
    rates = re.search(r"^\| our-lora +\| attention.*$", printed, re.M)[0]
    words = " ".join(section.split())
    assert at_other_rate in words
    assert f"{ahead} of 320 cases ({share} %)" in words
    assert "({2} and {3})".format(*re.findall(r"[\d.]+", rates)) in words


@pytest.mark.parametrize(
    ("title", "name"), [("Outliers", "style"), ("Outliers in the training loss", "robot")]
)
def test_the_differences_of_the_outliers_are_those_of_its_report(title, name, monkeypatch):
    pytest.importorskip("matplotlib")
    for plot in ("plot", "plot_conditions"):
        monkeypatch.setattr(outliers.Tables, plot, lambda *_: None)
    monkeypatch.setattr(outliers, "write_text", lambda *_: None)
    task = outliers.TASKS[name]
    printed = outliers.report(task)
    section = re.split(rf"^## {title}$", DOCUMENT, flags=re.M)[1].partition("\n## ")[0]
    cells = re.findall(r"[+-]\d+\.\d\d \([^)]*\)", section)
    assert cells
    assert all(cell in printed for cell in cells)
    assert (task.kept / "table.md").read_text() == f"{printed}\n"


def test_the_losses_by_rate_and_k_are_printed_by_the_reports():
    section = re.split(r"^## Rate and k$", DOCUMENT, flags=re.M)[1].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| (training|held-out) loss", line)]
    assert len(rows) == 7
    for row in rows:
        name = "robot" if "training" in row else "style"
        table = (outliers.TASKS[name].kept / "table.md").read_text()
        printed = next(line for line in table.splitlines() if row_of_arm(line, row.split("|")[2].strip()))
        assert re.findall(r"\d+\.\d\d", row) == re.findall(r"\d+\.\d\d(?= )", printed)[-row.count(".") :]


def row_of_arm(line: str, arm: str) -> bool:
    """Whether a line of the rates' table is this arm's of rank 64 on the base without outliers."""
    cells = [cell.strip() for cell in line.split("|")]
    return cells[1:5] == ["1", "", "64", arm]
