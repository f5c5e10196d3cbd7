"""The report of a sweep as Markdown tables, for a terminal or docs."""

import itertools
import statistics

from gralora_diffusion.evaluation.metric import Score
from gralora_diffusion.experiments.baseline_tables import (
    curves_table,
    differences_table,
    drift_table,
    front_table,
)
from gralora_diffusion.experiments.markdown import (
    PAIRED_HEAD,
    interval_of,
    markdown,
    number_cell,
    paired_cells,
)
from gralora_diffusion.experiments.rates import at_best_rate, rates_at_an_end
from gralora_diffusion.experiments.settings import (
    HELD_OUT_LOSS,
    by_setting,
    known_scores,
    paired_differences,
    per_run,
    per_unit,
    second_score,
)

VERDICT = (
    "Verdict, for test runs only: win or loss if the interval excludes zero and the second encoder's "
    "mean difference (second) has the same sign; Holm's correction is not part of it."
)
COSTS = (  # column, field of a run's result, unit, format
    ("s/step", "seconds_per_step", 1, ".3f"),
    ("peak MiB", "peak_memory", 2**20, ".0f"),
    ("file kB", "file_bytes", 1000, ".0f"),
)


def sweep_report(
    done: list[dict], score: Score, baselines: list[str], unit: str = "seed", front: Score | None = None
) -> str:
    """All tables that these runs give."""
    second = second_score(done, score)
    title = f"score: {score}" + (f"; second: {second}" if second else "")
    parts = [
        (title, settings_table(done, score, unit)),
        (f"score, from rank to rank, paired by {unit}", ranks_table(done, score, unit)),
        (f"score, from rate to rate of a test, paired by {unit}", rates_table(done, score, unit)),
    ]
    for baseline in baselines:
        against = f"minus that of {baseline}, paired by {unit}"
        choice = "each at the rate that is best in its validation runs"
        parts += [
            (f"score, {against}, {choice}", differences_table(done, score, baseline, unit)),
            (f"loss on held-out noise, {against}", curves_table(done, score, baseline, unit)),
            (f"drift at equal score, {against}", drift_table(done, score, baseline, unit)),
        ]
        if front:
            table = front_table(done, score, baseline, unit, front)
            parts.append((f"{front} at equal score, {against}", table))
    blocks = [f"**{title[0].upper()}{title[1:]}**\n\n{table}" for title, table in parts if table]
    text = "\n\n".join(blocks)
    return f"{text}\n\n{VERDICT}" if "| verdict" in text else text


def settings_table(done: list[dict], score: Score, unit: str) -> str:
    """Every setting with its score and costs; below, failures and what qualifies the numbers."""
    second = second_score(done, score)
    measured = set().union(*done)
    costs = [cost for cost in COSTS if cost[1] in measured]
    with_losses = score != HELD_OUT_LOSS and HELD_OUT_LOSS in known_scores(done)
    head = ["part", "method", "rank", "lr", f"{unit}s", "score", "95 % interval"]
    if second:
        head.append("second")
    if with_losses:
        head.append(str(HELD_OUT_LOSS))
    head += ["parameters", *(name for name, *_ in costs)]
    rows = []
    for setting, runs in by_setting(done).items():
        scored = [entry for entry in runs if score in entry.get("scores", {})]
        values = per_unit(per_run(scored, score), unit)
        mean = f"{statistics.mean(values):.4f}" if values else "failed"
        row = [setting.part, setting.label, setting.rank, f"{setting.lr:g}", len(values), mean]
        row.append(interval_of(values))
        if second:
            row.append(mean_cell(scored, second, ".4f"))
        if with_losses:
            row.append(mean_cell(scored, HELD_OUT_LOSS, ".5f"))
        row.append(f"{runs[0]['parameters']:,}")
        for _, name, divisor, form in costs:
            found = [entry[name] / divisor for entry in scored if name in entry]
            row.append(number_cell(statistics.median(found) if found else None, form))
        rows.append(row)
    table = markdown(head, rows)
    notes = "\n".join(notes_on(done, score, unit))
    return f"{table}\n\n{notes}" if notes else table


def mean_cell(runs: list[dict], score: Score, form: str) -> str:
    values = per_run(runs, score).values()
    return format(statistics.mean(values), form) if values else ""


def notes_on(done: list[dict], score: Score, unit: str) -> list[str]:
    notes = []
    for runs in by_setting(done).values():
        notes += [f"- {entry['name']} failed: {entry['failed']}" for entry in runs if "failed" in entry]
    at_zero = Score(score.metric, score.encoder, 0.0)
    for part in sorted({entry["run"]["part"] for entry in done}):
        runs = [entry for entry in done if entry["run"]["part"] == part]
        if base := per_unit(per_run(runs, at_zero), unit):
            notes.append(f"- {part}: the base itself, with no adapter, scores {statistics.mean(base):.4f}")
    if ends := rates_at_an_end(done, score):
        notes.append(f"- by this score the best rate is at an end of the range tried: {', '.join(ends)}")
    return notes


def ranks_table(done: list[dict], score: Score, unit: str) -> str:
    """What the next higher rank gains, each at its best rate."""
    lines = {}
    for setting, runs in at_best_rate(done, score).items():
        key = setting.any_rate._replace(rank=0)
        lines.setdefault(key, []).append((setting.rank, runs))
    rows = []
    for setting, ranks in lines.items():
        for (low, before), (high, after) in itertools.pairwise(ranks):
            values = paired_differences(per_run(after, score), per_run(before, score), unit)
            if values:
                step = f"{low} to {high}"
                rows.append([setting.part, setting.label, step, len(values), *paired_cells(values)])
    return markdown(["part", "method", "rank", f"{unit}s", *PAIRED_HEAD], rows)


def rates_table(done: list[dict], score: Score, unit: str) -> str:
    """Where a method was tested at several learning rates: what that choice alone is worth."""
    lines = {}
    for setting, runs in by_setting([entry for entry in done if score in entry.get("scores", {})]).items():
        if setting.part == "test":
            lines.setdefault(setting.any_rate, []).append((setting.lr, runs))
    rows = []
    for setting, rates in lines.items():
        for (low, before), (high, after) in itertools.pairwise(rates):
            values = paired_differences(per_run(after, score), per_run(before, score), unit)
            if values:
                step = f"{low:g} to {high:g}"
                rows.append([setting.label, setting.rank, step, len(values), *paired_cells(values)])
    return markdown(["method", "rank", "lr", f"{unit}s", *PAIRED_HEAD], rows)
