"""The report: its tables and plots, and the same from the short runs that are kept."""

import importlib.util
import itertools

import pytest
from PIL import Image
from sweeps import COPY, DONE, DRIFT, PAIRED, SUBJECT, at, failed, finished

from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.evaluation.statistics import p_value, t_interval
from gralora_diffusion.experiments.plots import plot_sweep
from gralora_diffusion.experiments.report import report_sweep
from gralora_diffusion.experiments.results import means_of_blocks, shortened
from gralora_diffusion.experiments.tables import sweep_report
from gralora_diffusion.options import ConfigError


def test_ranks_and_rates_are_paired_seed_by_seed():
    """Neighbors, the later less the earlier, by hand; rates of tests alone."""
    done = [finished("lora", 1e-3, seed, v, "test") for seed, v in enumerate((0.5, 0.6, 0.4))]
    done += [finished("lora", 3e-3, seed, v, "test") for seed, v in enumerate((0.52, 0.61, 0.45))]
    done += [finished("lora", 1e-3, seed, v) for seed, v in enumerate((0.6, 0.5))]
    done += [finished("lora", 1e-3, seed, v, rank=8) for seed, v in enumerate((0.7, 0.9))]
    lines = [line.replace(" ", "") for line in sweep_report(done, PAIRED, ["lora"]).splitlines()]
    gains = [0.02, 0.01, 0.05]
    low, high = t_interval(gains)
    assert f"|lora|4|0.001to0.003|3|+0.0267|{low:+.4f}to{high:+.4f}|{p_value(gains):.3f}|" in lines
    gains = [0.1, 0.4]
    low, high = t_interval(gains)
    assert f"|validation|lora|4to8|2|+0.2500|{low:+.4f}to{high:+.4f}|{p_value(gains):.3f}|" in lines


def test_the_table_has_everything():
    text = sweep_report([*DONE, failed("mora", 1.0, 0)], PAIRED, ["lora"])
    assert "- mora-0 failed: the loss of step 2 is not finite" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| test") and "+0.1600" in line]
    assert "gralora k2" in line
    ends = "gralora k2 at rank 4 (0.001), lora at rank 4 (0.01)"
    assert f"the best rate is at an end of the range tried: {ends}" in text


def test_one_value_has_no_interval_and_the_table_says_so():
    text = sweep_report([entry for entry in DONE if entry["run"]["seed"] == 0], PAIRED, ["lora"])
    rows = [line for line in text.splitlines() if line.startswith("| test")]
    assert rows
    assert all("n = 1: no interval" in row for row in rows if "gralora" in row)


def test_a_report_of_copy_names_the_method_that_copies_less(tmp_path):
    done = []
    for method, value in (("lora", 0.5), ("loha", 0.4), ("oft", 0.6)):
        for seed in (0, 1, 2):
            entry = finished(method, 1e-3, seed, value + 0.01 * seed, "test")
            entry["scores"][COPY] = entry["scores"][PAIRED]
            done.append(entry)
    text, _ = report_sweep(done, tmp_path, score="copy")
    verdicts = {line.split("|")[2].strip(): line for line in text.splitlines() if "| 0.001 |" in line}
    assert "**Score: copy, X**" in text
    assert verdicts["loha"].rstrip(" |").endswith("| win")
    assert verdicts["oft"].rstrip(" |").endswith("| loss")
    with pytest.raises(ConfigError, match="no run has the score 'copying'; known: copy, X; held-out loss"):
        report_sweep(done, tmp_path, score="copying")


PROMPT = Score(METRICS["prompt"], "Y")


def runs_of_subjects() -> list[dict]:
    """Two methods at two rates; oft has more prompt score and drift, by another amount for each subject."""
    done = []
    gains = {"cat": 0.1, "dog": 0.2, "can": 0.15}
    for (subject, gain), seed, (lr, x) in itertools.product(
        gains.items(), (0, 1), ((1e-3, 0.4), (1e-2, 0.6))
    ):
        for method, more in (("lora", 0), ("oft", gain)):
            entry = finished(method, lr, seed, x, subject=subject)
            entry["scores"] = {SUBJECT: [x], PROMPT: [1 - x + more], DRIFT: [x / 10 + more]}
            entry["scores"] |= {at(SUBJECT, 0): [0.2], at(PROMPT, 0): [0.8]}
            done.append(entry)
    return done


def line_with(text: str, word: str) -> str:
    (line,) = [line for line in text.splitlines() if word in line]
    return line


def test_the_report_of_subjects_has_their_front(tmp_path):
    done = runs_of_subjects()
    text = sweep_report(done, SUBJECT, ["lora"], "subject", PROMPT)
    assert "- validation: the base itself, with no adapter, scores 0.2000" in text
    drift, _, front = text.partition("Drift at equal score")[2].partition("**Prompt, Y at equal score")
    line = line_with(front, "oft")
    assert " of 1 |" in line
    assert "| +0.1125 |" in line  # three quarters of the gain: none at the base, all from the first rate on
    assert " +0.1500 |" in line_with(drift, "oft")  # at the same similarity: the mean of 0.1, 0.2 and 0.15
    assert "front.png" in [p.name for p in plot_sweep(done, SUBJECT, tmp_path, "subject", PROMPT)]


def test_what_is_kept_gives_the_same_report():
    done = []
    for entry in DONE:
        end = 0.4 if entry["run"]["method"] == "gralora" else 0.5
        done.append(entry | dict(curve=[[0, 1.0], [3, end]], losses=[0.01 * i for i in range(50)]))
    short = [shortened(entry) for entry in done]
    text = sweep_report(done, PAIRED, ["lora"])
    assert sweep_report(short, PAIRED, ["lora"]) == text
    assert [shortened(entry) for entry in short] == short
    assert short[0]["losses"] == pytest.approx([0.095, 0.345])  # steps 1 to 20, and the thirty that are left
    assert means_of_blocks([1.0, 2.0]) == [1.5]
    after = text.partition("held-out noise")[2].splitlines()
    (line,) = [line for line in after if "test" in line and "gralora" in line]
    assert [cell.strip() for cell in line.split("|")][5:7] == ["0.40000", "-0.10000"]
    assert "| 2 of 2 |" in " ".join(line.split())


def test_a_report_without_matplotlib_has_its_tables_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    (tmp_path / "loss.png").touch()  # of an earlier report
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text, plots = report_sweep(DONE, tmp_path)
    assert (tmp_path / "table.md").read_text() == f"{text}\n"
    assert (plots, list(tmp_path.glob("*.png"))) == ([], [])
    assert "pip install 'gralora-diffusion[plots]'" in capsys.readouterr().err


def test_plots(tmp_path):
    done = [*DONE, *(finished("lora", 1e-2, seed, 0.7, rank=8) for seed in (0, 1))]
    paths = plot_sweep(done, PAIRED, tmp_path)
    assert [p.name for p in paths] == ["score-rank.png", "score-parameters.png", "loss.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.convert("L").getextrema() != (255, 255)
