"""Does --keep_best stop before over-training? The best steps against the last, on other noise and prompts.

    python scripts/stopping.py --state build/stopping    # train, generate, score; the same command resumes
    python scripts/stopping.py --report    # the table alone, from docs/experiments/results/stopping

One run of a seed serves both rules: they choose a step and change nothing of the training.
"""

import argparse
import statistics
from pathlib import Path

import demo_sweep

from gralora_diffusion.command_line import parse
from gralora_diffusion.evaluation.statistics import t_interval
from gralora_diffusion.experiments.results import append_result, read_results
from gralora_diffusion.training.best import best_of
from gralora_diffusion.training.run_folder import read_evaluations
from gralora_diffusion.training.train import train

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "stopping"
SEEDS = (301, 302, 303)  # none of demo_sweep.py's, with whose selection the score was chosen
STEPS, EVERY = 600, 50
LAST, LOSS, SCORE, BASE = "the last step", "--keep_best loss", "--keep_best score", "the base"
PROMPTS = [" ".join(prompt.split()) for prompt in demo_sweep.TEST.prompts.split("|")]


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument(
        "--state", type=Path, default=Path("build/stopping"), help="folder of runs and images"
    )
    parser.add_argument("--report", action="store_true", help="print the table of the runs that are kept")
    args = parser.parse_args()
    if not args.report:
        KEPT.mkdir(parents=True, exist_ok=True)
        for seed in SEEDS:
            make(args.state / f"seed-{seed}", seed)
    table = "\n".join(lines())
    (KEPT / "table.md").write_text(f"{table}\n")
    print(table)


def make(run: Path, seed: int) -> None:
    """Train, then generate and score what is missing in KEPT."""
    words = (
        f"--seed {seed} --max_train_steps {STEPS} --checkpointing_steps {EVERY} --validation_steps {EVERY} "
    )
    words += f"--validation_split 0.2 --keep_best score --output_dir {run}"
    train(parse("", words.split()))
    history = read_evaluations(run)
    chosen = {BASE: 0, LAST: STEPS}
    for rule, by in ((LOSS, "loss"), (SCORE, "score")):
        chosen[rule] = best_of(history, by)["step"]
    for rule, step in chosen.items():
        about = dict(seed=seed, rule=rule)
        if any(entry["run"] == about for entry in read_results(KEPT)):
            continue
        adapter = run / f"checkpoint-{step}" if step else None
        scores = demo_sweep.scored(run / f"images-{step}", PROMPTS, seed, adapter)
        (line,) = (line for line in history if line["step"] == step)
        seen = {name: line[name] for name in ("validation_loss", "subject", "prompt", "copies", "score")}
        append_result(KEPT, {"run": about, "step": step, "means": scores, "in_the_run": seen})


def value(seed: int, rule: str, score: str | None) -> float:
    """A score of the images of one seed, or the step that the rule chose."""
    (entry,) = (e for e in read_results(KEPT) if e["run"] == dict(seed=seed, rule=rule))
    return entry["step"] if score is None else entry["means"][score]


def lines() -> list[str]:
    """The table: means over the seeds, then each rule less the last step, with Student's t."""
    table = [f"| {len(SEEDS)} seeds | steps | {' | '.join(demo_sweep.SCORES)} |", "|---" * 5 + "|"]
    for rule in (BASE, LAST, LOSS, SCORE):
        steps = ", ".join(str(value(seed, rule, None)) for seed in SEEDS)
        means = [statistics.mean(value(seed, rule, score) for seed in SEEDS) for score in demo_sweep.SCORES]
        table.append(
            f"| {rule} | {steps} | {' | '.join(demo_sweep.short(f'{mean:.3f}') for mean in means)} |"
        )
    for rule in (LOSS, SCORE):
        cells = []
        for score in demo_sweep.SCORES:
            gains = [value(seed, rule, score) - value(seed, LAST, score) for seed in SEEDS]
            low, high = t_interval(gains)
            text = f"{statistics.mean(gains):+.3f} ({low:+.3f} to {high:+.3f})"
            cells.append(demo_sweep.short(text))
        table.append(f"| {rule} minus {LAST}, 95 % t | | {' | '.join(cells)} |")
    return table


if __name__ == "__main__":
    main()
