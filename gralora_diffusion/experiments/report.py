"""The report of a sweep, beside its runs or in another folder: tables, plots, and a short runs.jsonl."""

from pathlib import Path

from gralora_diffusion.console import counted
from gralora_diffusion.evaluation.metric import find_score
from gralora_diffusion.experiments.plots import PLOTS, plot_sweep
from gralora_diffusion.experiments.results import RESULTS, line_of, read_results, shortened
from gralora_diffusion.experiments.settings import (
    check_baseline,
    check_settings,
    choose_score,
    known_scores,
)
from gralora_diffusion.experiments.tables import sweep_report
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError


def select(folder: Path, **among: list) -> list[dict]:
    """The finished runs whose options are among the given ones; an empty list stands for all.

    Raises ConfigError where there are runs and none is selected.
    """
    finished = read_results(folder)
    done = []
    for entry in finished:
        if all(entry["run"].get(name) in values for name, values in among.items() if values):
            done.append(entry)
    if finished and not done:
        raise ConfigError(
            f"{folder} holds {counted(len(finished), 'run')}, and none is of the given --methods, --ranks, "
            "--k, --lrs, --steps, --outliers and --outlier_slices"
        )
    return done


def report_sweep(
    done: list[dict],
    folder: Path,
    score: str | None = None,
    baselines: list[str] | None = None,
    unit: str = "seed",
    front: str | None = None,
    keep_runs: bool = False,
) -> tuple[str, list[Path]]:
    """Write table.md and the plots: (the tables, the plots' paths).  keep_runs: runs.jsonl in short too."""
    check_settings(done)
    for baseline in baselines or []:
        check_baseline(done, baseline)
    chosen = choose_score(done, score)
    other = find_score(front, known_scores(done)) if front else None
    text = sweep_report(done, chosen, baselines or ["lora"], unit, other)
    if keep_runs:
        write_text(folder / RESULTS, "".join(line_of(shortened(entry)) for entry in done))
    write_text(folder / "table.md", text + "\n")
    written = plot_sweep(done, chosen, folder, unit, other)
    for path in {folder / f"{name}.png" for name in PLOTS}.difference(written):
        path.unlink(missing_ok=True)  # an earlier report's
    return text, written
