"""The report of a sweep for people: Markdown tables, in a terminal or in docs."""

import itertools
import statistics

from gralora_diffusion.evaluation.statistics import holm, p_value, t_interval
from gralora_diffusion.experiments.analysis import (
    HELD_OUT_LOSS,
    above,
    at_best_rate,
    at_the_end,
    by_setting,
    check_score,
    differences,
    drift_at_equal_score,
    front_of,
    gaps,
    label,
    per_run,
    per_unit,
    reached,
    second_score,
)

VERDICT = (
    "Verdict, of test runs alone: win or loss where the interval leaves out zero and the second encoder's mean difference (second) has the "
    "same sign; Holm's correction is not in it."
)
COSTS = (
    ("s/step", "seconds_per_step", 1, ".3f"),
    ("peak MiB", "peak_memory", 2**20, ".0f"),
    ("file kB", "file_bytes", 1000, ".0f"),
)


def summary(
    done: list[dict], score: str, baselines: list[str], unit: str = "seed", front: str | None = None
) -> str:
    """All tables that these runs give.  Raises ConfigError for a score that no run has."""
    check_score(done, score)
    check_score(done, front)
    second = second_score(done, score)
    parts = [
        (f"score: {score}" + (f"; second: {second}" if second else ""), settings_table(done, score, unit)),
        (f"score, from rank to rank, paired by {unit}", ranks_table(done, score, unit)),
        (f"score, from rate to rate of a test, paired by {unit}", rates_table(done, score, unit)),
    ]
    for baseline in baselines:
        against = f"less that of {baseline}, paired by {unit}"
        parts += [
            (
                f"score, {against}, each at one rate: of those that it has, the best in its validation runs",
                gaps_table(done, score, baseline, unit),
            ),
            (f"loss on held-out noise, {against}", curves_table(done, score, baseline, unit)),
            (f"drift at equal score, {against}", drift_table(done, score, baseline, unit)),
            (f"{front} at equal score, {against}", front_table(done, score, baseline, unit, front)),
        ]
    text = "\n\n".join(f"**{title[0].upper()}{title[1:]}**\n\n{text}" for title, text in parts if text)
    return f"{text}\n\n{VERDICT}" if "| verdict" in text else text


def markdown(head: list[str], rows: list[list]) -> str:
    """A table whose columns line up, numbers to the right; empty without rows."""
    if not rows:
        return ""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    words = [i for i in range(len(head)) if any(cell[:1].isalpha() for cell in (row[i] for row in cells[1:]))]
    lines = [
        "| "
        + " | ".join(
            c.ljust(w) if i in words else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rule = (
        "|"
        + "|".join("-" * (w + 2) if i in words else "-" * (w + 1) + ":" for i, w in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def shown(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def settings_table(done: list[dict], score: str, unit: str) -> str:
    second, rows, notes = second_score(done, score), [], []
    measured = [cost for cost in COSTS if any(cost[1] in d for d in done)]
    losses = score != HELD_OUT_LOSS and any(HELD_OUT_LOSS in d.get("scores", {}) for d in done)
    head = [
        "part",
        "method",
        "rank",
        "lr",
        f"{unit}s",
        "score",
        "95 % interval",
        *["second"] * bool(second),
        *[HELD_OUT_LOSS] * losses,
    ]
    head += ["parameters", *(name for name, *_ in measured)]
    for (part, rank, method, k, lr, _), runs in by_setting(done).items():
        good = [r for r in runs if score in r.get("scores", {})]
        values = per_unit(per_run(good, score), unit)
        mean = f"{statistics.mean(values):.4f}" if values else "failed"
        line = [part, label(method, k), rank, f"{lr:g}", len(values), mean, shown(t_interval(values))]
        line += [f"{statistics.mean(per_run(good, second).values()):.4f}" if good else ""] if second else []
        line += (
            [f"{statistics.mean(per_run(good, HELD_OUT_LOSS).values()):.5f}" if good else ""]
            if losses
            else []
        )
        costs = [([r[name] / one for r in good if name in r], form) for _, name, one, form in measured]
        rows.append(
            [
                *line,
                f"{runs[0]['parameters']:,}",
                *(number(statistics.median(found) if found else None, form) for found, form in costs),
            ]
        )
        notes += [f"- {r['name']} failed: {r['failed']}" for r in runs if "failed" in r]
    for part in sorted({d["run"]["part"] for d in done}):
        if base := per_unit(per_run([d for d in done if d["run"]["part"] == part], f"{score} at 0"), unit):
            notes.append(f"- {part}: the base itself, with no adapter, scores {statistics.mean(base):.4f}")
    ends = at_the_end(done, score)
    notes += (
        [f"- by this score the best rate is at the end of those tried: {', '.join(ends)}"] if ends else []
    )
    return "\n".join([markdown(head, rows), *([""] if notes else []), *notes])


def gaps_table(done: list[dict], score: str, baseline: str, unit: str) -> str:
    found, rows = differences(done, score, baseline, unit), []
    for d in found:
        line = [
            d["part"],
            d["method"],
            d["rank"],
            f"{d['lr']:g}",
            f"{d['base_lr']:g}",
            d["n"],
            f"{d['mean']:+.4f}",
            shown(d["interval"], "+"),
        ]
        line.append(number(d["p"], ".3f"))
        number_of = sum(other["part"] == d["part"] and "holm" in other for other in found)
        holms = f"{d['holm']:.3f} of {number_of}" if "holm" in d else ""
        rows.append([*line, holms, number(d["second"], "+.4f"), d["verdict"] if d["part"] == "test" else ""])
    head = [
        "part",
        "method",
        "rank",
        "lr",
        f"lr of {baseline}",
        f"{unit}s",
        "mean",
        "95 % interval",
        "p",
        "Holm's p",
        "second",
        "verdict",
    ]
    return markdown(head, rows)


def ranks_table(done: list[dict], score: str, unit: str) -> str:
    rows, lines = [], {}
    for (part, rank, method, k, steps), runs in at_best_rate(done, score).items():
        lines.setdefault((part, method, k, steps), []).append((rank, runs))
    for (part, method, k, _), ranks in lines.items():
        for (low, before), (high, after) in itertools.pairwise(ranks):
            if found := gaps(per_run(after, score), per_run(before, score), unit):
                rows.append([part, label(method, k), f"{low} to {high}", *mean_of(found)])
    return markdown(["part", "method", "rank", f"{unit}s", "mean", "95 % interval", "p"], rows)


def rates_table(done: list[dict], score: str, unit: str) -> str:
    """Where one method was tested at several learning rates: what that choice alone is worth."""
    rows, lines = [], {}
    for (part, rank, method, k, lr, steps), runs in by_setting(
        [d for d in done if score in d.get("scores", {})]
    ).items():
        if part == "test":
            lines.setdefault((rank, method, k, steps), []).append((lr, runs))
    for (rank, method, k, _), rates in lines.items():
        for (low, before), (high, after) in itertools.pairwise(rates):
            if found := gaps(per_run(after, score), per_run(before, score), unit):
                rows.append([label(method, k), rank, f"{low:g} to {high:g}", *mean_of(found)])
    return markdown(["method", "rank", "lr", f"{unit}s", "mean", "95 % interval", "p"], rows)


def mean_of(found: list[float]) -> list:
    """n, mean, interval and p of differences, as cells."""
    return [
        len(found),
        f"{statistics.mean(found):+.4f}",
        shown(t_interval(found), "+"),
        number(p_value(found), ".3f"),
    ]


def with_baseline(done: list[dict], score: str, baseline: str) -> list[tuple]:
    """[(part, rank, method, its runs, the baseline's runs)], at the best rates; the baseline itself among them."""
    settings = at_best_rate(done, score)
    bases = {
        (part, rank, steps): runs
        for (part, rank, method, k, steps), runs in settings.items()
        if label(method, k) == baseline
    }
    return [
        (part, rank, label(method, k), runs, bases[part, rank, steps])
        for (part, rank, method, k, steps), runs in settings.items()
        if (part, rank, steps) in bases
    ]


def keyed(runs: list[dict]) -> dict[tuple, dict]:
    return {(r["run"].get("subject"), r["run"]["seed"]): r for r in runs}


def curves_table(done: list[dict], score: str, baseline: str, unit: str) -> str:
    """The loss at the end and its difference, and when a run's loss is where the baseline's is at its end: steps, and batches of gradients before."""
    rows = []
    for part, rank, method, runs, base in with_baseline(done, score, baseline):
        theirs = {key: r["curve"][-1][1] for key, r in keyed(base).items() if "curve" in r}
        mine = {key: r for key, r in keyed(runs).items() if "curve" in r and key in theirs}
        if not mine:
            continue
        ends = {key: r["curve"][-1][1] for key, r in mine.items()}
        found = gaps(ends, theirs, unit)
        steps = [reached(r["curve"], theirs[key]) for key, r in mine.items()]
        there = [s for s in steps if s is not None]
        pass_ = [r["gradients"] for r in mine.values() if "gradients" in r]
        cost = (
            f"{statistics.mean(g['batches'] for g in pass_):.0f} + {statistics.mean(g['looks'] for g in pass_):.0f}"
            if pass_
            else "0"
        )
        line = [
            part,
            method,
            rank,
            len(found),
            f"{statistics.mean(ends.values()):.5f}",
            f"{statistics.mean(found):+.5f}",
        ]
        interval = t_interval(found)
        line.append(
            "" if interval is None or method == baseline else f"{interval[0]:+.5f} to {interval[1]:+.5f}"
        )
        rows.append(
            [
                *line,
                f"{statistics.median(there):.0f}" if there else "never",
                f"{len(there)} of {len(steps)}",
                cost,
            ]
        )
    head = [
        "part",
        "method",
        "rank",
        f"{unit}s",
        "loss at the end",
        "mean",
        "95 % interval",
        f"steps to the loss of {baseline}",
    ]
    return markdown([*head, "runs that reach it", "gradient batches + looks"], rows)


def drift_table(done: list[dict], score: str, baseline: str, unit: str) -> str:
    """Where the base's images were drawn too: drift at full strength, and its difference on the way from the base to full strength."""
    rows = []
    for part, rank, method, runs, base in with_baseline(done, score, baseline):
        theirs, name = keyed(base), "drift, " + score.partition(", ")[2]
        mine = {key: r for key, r in keyed(runs).items() if key in theirs}
        if not mine or not all(
            f"{score} at 0" in r["scores"] and name in r["scores"] for r in (*mine.values(), *theirs.values())
        ):
            continue
        pairs = {key: drift_at_equal_score(r, theirs[key], score) for key, r in mine.items()}
        found = per_unit({key: gap for key, gap in pairs.items() if gap is not None}, unit)
        line = [
            part,
            method,
            rank,
            f"{statistics.mean(per_unit(per_run(list(mine.values()), name), unit)):.4f}",
        ]
        if method == baseline:
            rows.append([*line, "", "", "", ""])
        elif not found:
            rows.append([*line, "none scores above the base", "", "", ""])
        else:
            compared = f"{sum(gap is not None for gap in pairs.values())} of {len(pairs)}"
            rows.append(
                [
                    *line,
                    compared,
                    f"{statistics.mean(found):+.4f}",
                    shown(t_interval(found), "+"),
                    number(p_value(found), ".3f"),
                ]
            )
    return markdown(
        [
            "part",
            "method",
            "rank",
            "drift at strength 1",
            "runs above the base",
            "mean at equal score",
            "95 % interval",
            "p",
        ],
        rows,
    )


def front_table(done: list[dict], score: str, baseline: str, unit: str, front: str | None) -> str:
    """A method's curve over its learning rates against the baseline's; a unit whose curves share no score is left out of n."""
    if front is None:
        return ""
    groups, rows = {}, []
    for (part, rank, method, k, _, steps), runs in by_setting(done).items():
        groups.setdefault((part, rank, label(method, k), steps), []).extend(runs)
    for (part, rank, method, steps), runs in groups.items():
        base = groups.get((part, rank, baseline, steps))
        if base is None or method == baseline:
            continue
        mine, theirs = front_of(runs, score, front, unit), front_of(base, score, front, unit)
        found = {key: above(mine[key], theirs[key]) for key in mine if key in theirs}
        pairs = per_unit({key: gap for key, gap in found.items() if gap is not None}, unit)
        if pairs:
            rows.append(
                [
                    part,
                    method,
                    rank,
                    len(pairs),
                    f"{statistics.mean(pairs):+.4f}",
                    shown(t_interval(pairs), "+"),
                    p_value(pairs),
                ]
            )
    corrected = holm([row[-1] for row in rows if row[-1] is not None])
    rows = [[*row, f"{corrected.pop(0):.3f} of {len(rows)}" if row[-1] is not None else ""] for row in rows]
    rows = [[*cells, number(p, ".3f"), holms] for *cells, p, holms in rows]
    return markdown(["part", "method", "rank", f"{unit}s", "mean", "95 % interval", "p", "Holm's p"], rows)
