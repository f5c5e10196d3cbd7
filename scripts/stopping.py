"""Does --keep_best stop before over-training? The best steps against the last, on other noise and prompts.

    python scripts/stopping.py --state build/stopping    # train, generate, score; the same command resumes
    python scripts/stopping.py --report    # the tables alone, from docs/experiments/results/stopping

Over-training: prompt similarity falls while subject similarity no longer rises. verdict() was fixed before
the runs of TEST, and LONG was added with the same rule after them. One run of a seed serves both rules: they
choose a step and change nothing of the training.
"""

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

import demo_sweep
import torch

from gralora_diffusion.cli import demo
from gralora_diffusion.command_line import parse
from gralora_diffusion.evaluation.statistics import mean_and_interval, t_interval
from gralora_diffusion.experiments.results import append_result, read_results
from gralora_diffusion.training.best import best_of
from gralora_diffusion.training.run_folder import read_evaluations
from gralora_diffusion.training.train import train

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "stopping"
LAST, LOSS, SCORE = "the last step", "--keep_best loss", "--keep_best score"
RULES = (SCORE, LOSS)  # the first is the primary one
*SUBJECT, PROMPT = demo_sweep.SCORES


class Part(NamedTuple):
    """Training seeds, none of demo_sweep.py's, with whose selection the score was chosen; their setting."""

    seeds: tuple[int, ...]
    steps: int
    rate: float
    every: int = 50  # steps between evaluations
    images: int = 1  # sample images per prompt
    rules: tuple[str, ...] = RULES


TEST = Part(tuple(range(311, 321)), demo.STEPS, demo.RATE)
LONG = Part(tuple(range(321, 331)), 2 * demo.STEPS, demo.RATE, 100, 2, (SCORE,))
EARLIER = Part((301, 302, 303), 600, 1e-3)  # the demo's setting before
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
        for part in (EARLIER, TEST, LONG):
            for seed in part.seeds:
                make(args.state / f"seed-{seed}", seed, part)
    text = "\n".join(report())
    (KEPT / "table.md").write_text(f"{text}\n")
    print(text)


def report() -> list[str]:
    """The tables of all parts, with the verdicts."""
    found = []
    for part in (TEST, LONG):
        found += [*lines(part), "", verdict(part), ""]
    return [*found, *lines(EARLIER)]


def make(run: Path, seed: int, part: Part) -> None:
    """Train, then generate and score what is missing in KEPT."""
    kept = {entry["run"]["rule"]: entry for entry in read_results(KEPT) if entry["run"]["seed"] == seed}
    if {LAST, *part.rules} <= set(kept):
        return
    words = f"--seed {seed} --learning_rate {part.rate} --max_train_steps {part.steps}"
    words += f" --gralora_rank 64 --checkpointing_steps {part.every} --validation_steps {part.every}"
    words += f" --num_validation_images {part.images} --validation_split 0.2 --keep_best score"
    words += f" --output_dir {run}"
    train(parse("", words.split()))
    history = read_evaluations(run)
    chosen = {LAST: part.steps}
    for rule in part.rules:
        chosen[rule] = best_of(history, rule.split()[-1])["step"]
    for rule, step in chosen.items():
        if rule in kept:
            continue
        scores = scores_at(run, seed, step)
        (line,) = (line for line in history if line["step"] == step)
        seen = {name: line[name] for name in ("validation_loss", "subject", "prompt", "copies", "score")}
        about = dict(seed=seed, rule=rule)
        append_result(KEPT, {"run": about, "step": step, "means": scores, "in_the_run": seen})


def scores_at(run: Path, seed: int, step: int) -> dict[str, float]:
    """Of a step's images, which two rules may have chosen."""
    for entry in read_results(KEPT):
        if entry["run"]["seed"] == seed and entry["step"] == step:
            return entry["means"]
    return demo_sweep.scored(run / f"images-{step}", PROMPTS, seed, run / f"checkpoint-{step}")


def value(seed: int, rule: str, score: str | None) -> float:
    """A score of the images of one seed, or the step that the rule chose."""
    (entry,) = (e for e in read_results(KEPT) if e["run"] == dict(seed=seed, rule=rule))
    return entry["step"] if score is None else entry["means"][score]


def gains(part: Part, rule: str, score: str) -> list[float]:
    """The score of the step that a rule chose less that of the last step, of each seed."""
    return [value(seed, rule, score) - value(seed, LAST, score) for seed in part.seeds]


def bca_interval(values: list[float]) -> tuple[float, float]:
    found = mean_and_interval(torch.tensor(values))
    return found["low"], found["high"]


def lines(part: Part) -> list[str]:
    """A table: means over the seeds, then each rule less the last step, with Student's t and by BCa."""
    table = [f"| {len(part.seeds)} seeds | steps | {' | '.join(demo_sweep.SCORES)} |", "|---" * 5 + "|"]
    for rule in (LAST, *part.rules):
        steps = ", ".join(str(value(seed, rule, None)) for seed in part.seeds)
        steps = steps if rule != LAST else str(part.steps)
        cells = []
        for score in demo_sweep.SCORES:
            mean = statistics.mean(value(seed, rule, score) for seed in part.seeds)
            cells.append(demo_sweep.short(f"{mean:.3f}"))
        table.append(f"| {rule} | {steps} | {' | '.join(cells)} |")
    for rule in part.rules:
        for name, interval in (("t", t_interval), ("BCa", bca_interval)):
            cells = []
            for score in demo_sweep.SCORES:
                found = gains(part, rule, score)
                low, high = interval(found)
                text = f"{statistics.mean(found):+.3f} ({low:+.3f} to {high:+.3f})"
                cells.append(demo_sweep.short(text))
            table.append(f"| {rule} minus {LAST}, 95 % {name} | | {' | '.join(cells)} |")
    return table


def verdict(part: Part) -> str:
    """The rule: is the primary step's prompt similarity higher, and does subject similarity rise after it?"""
    prompt = gains(part, SCORE, PROMPT)
    if min(t_interval(prompt)[0], bca_interval(prompt)[0]) <= 0:
        return f"{SCORE}: no gain in prompt similarity found."
    rising = []
    for score in SUBJECT:
        found = gains(part, SCORE, score)
        if min(t_interval(found)[1], bca_interval(found)[1]) < 0:
            rising.append(score)
    if rising:
        rise = "rises" if len(rising) == 1 else "rise"
        return f"{SCORE}: higher prompt similarity, but afterward {' and '.join(rising)} still {rise}."
    return f"{SCORE}: it stops before over-training sets in."


if __name__ == "__main__":
    main()
