"""What a sweep found: means with their intervals and paired differences from a baseline, as Markdown tables.

A run's score is the mean over its images; what counts as one is a seed, or a subject (the mean of its seeds).
"""

import itertools
import re
import statistics

from gralora_diffusion.evaluation.statistics import holm, p_value, t_interval
from gralora_diffusion.experiments.budget import EXCESS, TOLERANCE
from gralora_diffusion.experiments.methods import family
from gralora_diffusion.options import ConfigError

BLOCK = 20  # steps of training loss that are shown as one
HELD_OUT_LOSS = "held-out loss"  # a score of runs that hold images out
BEYOND = "beyond the budget"  # no verdict
SECONDARY = re.compile(r" at [\d.]+$")  # a score at another strength than 1


def label(method: str, k: int) -> str:
    return f"{method} k{k}" if k else method


def by_setting(done: list[dict]) -> dict[tuple, list[dict]]:
    """{(part, rank, method, k, learning rate, steps): its runs, one for each seed and subject}"""
    groups = {}
    for entry in done:
        run = entry["run"]
        groups.setdefault(
            (run["part"], run["rank"], run["method"], run.get("k") or 0, run["lr"], run["steps"]), []
        ).append(entry)
    return dict(sorted(groups.items()))


def lower_is_better(score: str) -> bool:
    return "loss" in score or score.startswith("drift")


def first_score(done: list[dict]) -> str:
    scores = [s for d in done for s in d.get("scores", {}) if "loss" not in s and not SECONDARY.search(s)]
    if not scores:
        raise ConfigError("the sweep holds no finished runs to choose or report from")
    return scores[0]


def second_score(done: list[dict], score: str) -> str | None:
    """The same score in the next encoder."""
    kind = score.partition(", ")[0]
    others = [
        s
        for d in done
        for s in d.get("scores", {})
        if s.startswith(f"{kind}, ") and s != score and not SECONDARY.search(s)
    ]
    return others[0] if others else None


def per_run(runs: list[dict], score: str) -> dict[tuple, float]:
    """{(subject, seed): the mean over the run's images}"""
    return {
        (r["run"].get("subject"), r["run"]["seed"]): statistics.mean(r["scores"][score])
        for r in runs
        if score in r.get("scores", {})
    }


def per_unit(values: dict[tuple, float], unit: str) -> list[float]:
    """One value for each seed, or for each subject."""
    groups = {}
    for (subject, seed), value in values.items():
        groups.setdefault(subject if unit == "subject" else seed, []).append(value)
    return [statistics.mean(group) for group in groups.values()]


def gaps(mine: dict[tuple, float], base: dict[tuple, float], unit: str) -> list[float]:
    return per_unit({key: mine[key] - base[key] for key in mine if key in base}, unit)


def at_best_rate(done: list[dict], score: str) -> dict[tuple, list[dict]]:
    """{(part, rank, method, k, steps): its runs} at one learning rate for each: of those it has, the best in the validation runs.

    A rate at which a run failed is worse than any at which none did.  Of the others, those with the most subjects and seeds are compared, over
    what all of these have.  Raises ConfigError for test runs at several rates without validation, and for rates that have none in common.
    """
    groups, settings, best = by_setting([d for d in done if score in d.get("scores", {})]), {}, {}
    failed = set(by_setting([d for d in done if "failed" in d]))
    for (part, *setting, lr, steps), runs in groups.items():
        settings.setdefault((part, *setting, steps), {})[lr] = runs
    for key, rates in settings.items():
        part, rank, method, k, steps = key
        validation = {lr: ("validation", rank, method, k, lr, steps) for lr in rates}
        tried = [lr for lr in rates if validation[lr] in groups] or list(rates)
        if len(tried) > 1 and part == "test" and validation[tried[0]] not in groups:
            raise ConfigError(
                f"{label(method, k)} at rank {rank} has test runs at several rates and no validation runs to choose by"
            )
        sound = [lr for lr in tried if validation[lr] not in failed] or tried
        values = {lr: per_run(groups.get(validation[lr], rates[lr]), score) for lr in sound}
        most = max(map(len, values.values()))
        values = {lr: found for lr, found in values.items() if len(found) == most}
        common = sorted(set.intersection(*map(set, values.values())), key=str)
        if not common:
            raise ConfigError(
                f"{label(method, k)} at rank {rank}: no subject and seed has runs at all of the rates {', '.join(f'{lr:g}' for lr in values)}"
            )
        means = {lr: statistics.mean(found[key] for key in common) for lr, found in values.items()}
        best[key] = rates[(min if lower_is_better(score) else max)(means, key=means.get)]
    return best


def tuned(runs: list[dict], done: list[dict], score: str | None, elsewhere: bool) -> list[dict]:
    """The runs at the learning rate that is best in the validation runs of the same rank, k, and method or head of its family.

    elsewhere: those are another sweep's, of other images and perhaps other steps.
    """
    settings = {run["setting"] for run in runs}
    done = [
        d for d in done if d["run"]["part"] == "validation" and (elsewhere or d["run"]["setting"] in settings)
    ]
    best = {
        (key[1:-1], None if elsewhere else key[-1]): found[0]["run"]["lr"]
        for key, found in at_best_rate(done, score or first_score(done)).items()
    }
    kept, rates = [], {run["lr"] for run in runs}
    for run in runs:
        key = (run["rank"], family(run["method"]), run["k"] or 0), None if elsewhere else run["steps"]
        if key not in best:
            raise ConfigError(
                f"--tuned: {family(run['method'])} at rank {run['rank']} has no validation runs with these options yet; make them first"
            )
        if best[key] not in rates:
            raise ConfigError(
                f"--tuned: the best rate of {family(run['method'])} at rank {run['rank']} is {best[key]:g}: add it to --lrs"
            )
        kept += [run] if run["lr"] == best[key] else []
    return kept


def at_the_end(done: list[dict], score: str) -> list[str]:
    """The settings whose best validation rate is the lowest or the highest that was tried, so that a better one may lie beyond."""
    done, found = [d for d in done if d["run"]["part"] == "validation"], []
    tried = {}
    for part, rank, method, k, lr, steps in by_setting(done):
        tried.setdefault((part, rank, method, k, steps), []).append(lr)
    for (part, rank, method, k, steps), runs in at_best_rate(done, score).items():
        rates, best = tried[part, rank, method, k, steps], runs[0]["run"]["lr"]
        if len(rates) > 1 and best in (min(rates), max(rates)):
            found.append(f"{label(method, k)} at rank {rank} ({best:g})")
    return found


def differences(done: list[dict], score: str, baseline: str, unit: str = "seed") -> list[dict]:
    """Each setting less the baseline's of the same rank, part and steps, both at their best rate, paired: mean, interval, p, and Holm's p.

    verdict: win or loss where the interval lies on one side of zero, the second encoder's mean has the same sign and no run failed;
    none for what trains more parameters than the budget allows: full fine-tuning.
    """
    rows, settings, second = [], at_best_rate(done, score), second_score(done, score)
    sign = -1 if lower_is_better(score) else 1
    bases = {
        (part, rank, steps): runs
        for (part, rank, method, k, steps), runs in settings.items()
        if label(method, k) == baseline
    }
    for (part, rank, method, k, steps), runs in settings.items():
        base = bases.get((part, rank, steps))
        if base is None or label(method, k) == baseline:
            continue
        found = gaps(per_run(runs, score), per_run(base, score), unit)
        if not found:
            continue
        lr, interval = runs[0]["run"]["lr"], t_interval(found)
        other = gaps(per_run(runs, second), per_run(base, second), unit) if second else []
        failed = any("failed" in r for r in by_setting(done)[part, rank, method, k, lr, steps])
        row = dict(
            part=part,
            rank=rank,
            method=label(method, k),
            lr=lr,
            base_lr=base[0]["run"]["lr"],
            n=len(found),
            mean=statistics.mean(found),
            interval=interval,
        )
        row |= dict(p=p_value(found), second=statistics.mean(other) if other else None, against=baseline)
        apart = interval is not None and interval[0] * interval[1] > 0
        clear = apart and (not other or row["mean"] * row["second"] > 0)
        won = row["mean"] * sign > 0
        none = "encoders disagree" if apart else "no difference found"
        row["verdict"] = (
            ("no win: a run failed" if failed and won else "win" if won else "loss") if clear else none
        )
        if runs[0]["parameters"] > base[0]["parameters"] * (1 + EXCESS) / (1 - TOLERANCE):
            row["verdict"] = BEYOND
        rows.append(row)
    for part in {row["part"] for row in rows}:
        mine = [
            row for row in rows if row["part"] == part and row["p"] is not None and row["verdict"] != BEYOND
        ]
        for row, p in zip(mine, holm([row["p"] for row in mine]), strict=True):
            row["holm"] = p
    return rows


def curve_at(points: list[tuple[float, float]], x: float) -> float:
    """y at x on the straight lines through these points, in order of x; the end's y beyond an end."""
    points = sorted(points)
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def reached(curve: list[list[float]], loss: float) -> float | None:
    """The step at which a curve of [step, loss] first is at this loss, on straight lines between its points; None if it never is."""
    if curve[0][1] <= loss:
        return curve[0][0]
    for (s0, l0), (s1, l1) in itertools.pairwise(curve):
        if l1 <= loss:
            return s0 + (s1 - s0) * (l0 - loss) / (l0 - l1)
    return None


def drift_at_equal_score(mine: dict, base: dict, score: str) -> float | None:
    """A run's drift less the baseline run's, at the highest score that both have: each followed over its strengths, from the base on.

    None where one of them scores no better than the base itself, which has no drift at all.
    """
    drift, ends, curves = "drift, " + score.partition(", ")[2], [], []
    for scores in (mine["scores"], base["scores"]):
        strengths = sorted(
            float(name.rpartition(" at ")[2])
            for name in scores
            if SECONDARY.search(name) and SECONDARY.sub("", name) == score
        )
        means = {
            s: (
                statistics.mean(scores[f"{score} at {s:g}"]),
                statistics.mean(scores[f"{drift} at {s:g}"]) if s else 0.0,
            )
            for s in strengths
        }
        means[1.0] = statistics.mean(scores[score]), statistics.mean(scores[drift])
        curves.append([means[s] for s in sorted(means)])
        ends.append(means[1.0][0])
    if min(ends) <= curves[0][0][0]:
        return None
    first_crossings = (
        next(pair for pair in itertools.pairwise(curve) if pair[0][0] <= min(ends) <= pair[1][0])
        for curve in curves
    )
    mine_there, base_there = (curve_at(list(pair), min(ends)) for pair in first_crossings)
    return mine_there - base_there


def front_of(runs: list[dict], score: str, other: str, unit: str) -> dict[tuple, list[tuple[float, float]]]:
    """{(subject, seed): its points (score, other)}: the base's, where it was drawn, then one for each learning rate from the lowest on.

    With subjects as the unit a point is the mean over the seeds, and the seed of the key is None.
    """
    points, fronts = {}, {}
    for r in (r for r in runs if score in r.get("scores", {})):
        key = r["run"].get("subject"), None if unit == "subject" else r["run"]["seed"]
        for at, suffix in ((r["run"]["lr"], ""), (0, " at 0")):
            if {score + suffix, other + suffix} <= r["scores"].keys():
                pair = (
                    statistics.mean(r["scores"][score + suffix]),
                    statistics.mean(r["scores"][other + suffix]),
                )
                points.setdefault((at, key), []).append(pair)
    for (_, key), pairs in sorted(points.items(), key=lambda item: item[0][0]):
        fronts.setdefault(key, []).append(
            tuple(statistics.mean(values) for values in zip(*pairs, strict=True))
        )
    return fronts


def above(mine: list[tuple], base: list[tuple]) -> float | None:
    """How much higher one front lies than another, on average over the scores that both cover; None where they share none."""
    low, high = (
        max(min(p[0] for p in front) for front in (mine, base)),
        min(max(p[0] for p in front) for front in (mine, base)),
    )
    if low >= high:
        return None
    places = [low + (high - low) * (i + 0.5) / 200 for i in range(200)]
    return statistics.mean(curve_at(mine, x) - curve_at(base, x) for x in places)


def blocks(losses: list[float]) -> list[float]:
    """The means of 20 steps each; what is left over at the end goes to the last."""
    starts = range(0, max(1, len(losses) // BLOCK) * BLOCK, BLOCK)
    return [
        statistics.mean(losses[s : s + BLOCK] if s + 2 * BLOCK <= len(losses) else losses[s:]) for s in starts
    ]


def in_short(entry: dict) -> dict:
    """A line of runs.jsonl with the mean of each score, and of each block of losses, in place of all values: the report says the same."""
    if "scores" not in entry or "in_short" in entry:
        return entry
    scores = {name: [round(statistics.mean(values), 6)] for name, values in entry["scores"].items()}
    return entry | dict(scores=scores, losses=[round(x, 5) for x in blocks(entry["losses"])], in_short=True)


def shown_losses(entry: dict) -> list[float]:
    return entry["losses"] if "in_short" in entry else blocks(entry["losses"])


def check_settings(done: list[dict]) -> None:
    """Raises ConfigError when runs of different steps, bases, images, prompts or encoders lie in one table, where they would be compared."""
    settings = {}
    for run in (d["run"] for d in done):
        settings.setdefault((run.get("subject"), run["steps"]), set()).add(run.get("setting"))
    if len(steps := sorted({d["run"]["steps"] for d in done})) > 1:
        raise ConfigError(
            f"these runs have {' and '.join(map(str, steps))} steps: choose with --steps, they would look alike in a table"
        )
    if any(len(found) > 1 for found in settings.values()):
        raise ConfigError(
            "these runs differ in base, images, prompts, encoders or batch: give each set of options an --output of its own"
        )


def check_baseline(done: list[dict], baseline: str) -> None:
    known = {label(d["run"]["method"], d["run"].get("k") or 0) for d in done}
    if baseline not in known:
        raise ConfigError(f"no run is of the baseline {baseline!r}; there are: {'; '.join(sorted(known))}")


def check_score(done: list[dict], score: str | None) -> None:
    known = {s for d in done for s in d.get("scores", {})}
    if score is not None and score not in known:
        raise ConfigError(f"no run has the score {score!r}; there are: {'; '.join(sorted(known))}")
