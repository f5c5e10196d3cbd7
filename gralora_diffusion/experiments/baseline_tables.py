"""Tables of every setting against a baseline: score, loss curves, drift, and fronts over learning rates."""

import statistics

from gralora_diffusion.evaluation.metric import Score
from gralora_diffusion.evaluation.score_rows import NO_INTERVAL
from gralora_diffusion.evaluation.statistics import holm, p_value
from gralora_diffusion.experiments.analysis import differences_from
from gralora_diffusion.experiments.fronts import (
    drift_at_equal_score,
    drift_by_same_encoder,
    front_of,
    mean_height_above,
    step_at_loss,
)
from gralora_diffusion.experiments.markdown import (
    PAIRED_HEAD,
    interval_cell,
    interval_of,
    markdown,
    number_cell,
    paired_cells,
)
from gralora_diffusion.experiments.rates import with_baseline
from gralora_diffusion.experiments.settings import (
    by_setting,
    paired_differences,
    pairing_key,
    per_run,
    per_unit,
)


def differences_table(done: list[dict], score: Score, baseline: str, unit: str) -> str:
    found = differences_from(done, score, baseline, unit)
    rows = []
    for d in found:
        setting = d.setting
        compared = sum(other.setting.part == setting.part and other.holm is not None for other in found)
        row = [setting.part, setting.label, setting.rank, f"{setting.lr:g}", f"{d.base_lr:g}", d.n]
        row += [
            f"{d.mean:+.4f}",
            NO_INTERVAL if d.n == 1 else interval_cell(d.interval, "+.4f"),
            number_cell(d.p, ".3f"),
        ]
        row.append("" if d.holm is None else f"{d.holm:.3f} of {compared}")
        row.append(number_cell(d.second, "+.4f"))
        row.append(d.verdict if setting.part == "test" else "")
        rows.append(row)
    head = [
        "part",
        "method",
        "rank",
        "lr",
        f"lr of {baseline}",
        f"{unit}s",
        *PAIRED_HEAD,
        "Holm's p",
        "second",
    ]
    return markdown([*head, "verdict"], rows)


def curves_table(done: list[dict], score: Score, baseline: str, unit: str) -> str:
    """The held-out loss at the end, and the steps to the loss that the baseline ends with.

    The cost of a gradient pass is in batches run forward and backward + batches run forward alone.
    """
    rows = []
    for setting, runs, base, _ in with_baseline(done, score, baseline):
        base_ends = {pairing_key(entry): entry["curve"][-1][1] for entry in base if "curve" in entry}
        curves = {pairing_key(entry): entry["curve"] for entry in runs if "curve" in entry}
        curves = {key: curve for key, curve in curves.items() if key in base_ends}
        if not curves:
            continue
        ends = {key: curve[-1][1] for key, curve in curves.items()}
        values = paired_differences(ends, base_ends, unit)
        steps = [step_at_loss(curve, base_ends[key]) for key, curve in curves.items()]
        there = [step for step in steps if step is not None]
        passes = [e["gradients"] for e in runs if "gradients" in e and pairing_key(e) in curves]
        row = [setting.part, setting.label, setting.rank, len(values)]
        row += [f"{statistics.mean(ends.values()):.5f}", f"{statistics.mean(values):+.5f}"]
        row.append("" if setting.label == baseline else interval_of(values, "+.5f"))
        row.append(f"{statistics.median(there):.0f}" if there else "never")
        row.append(f"{len(there)} of {len(steps)}")
        row.append(cost_of_gradients(passes))
        rows.append(row)
    head = ["part", "method", "rank", f"{unit}s", "loss at the end", "mean", "95 % interval"]
    head += [f"steps to the loss of {baseline}", "runs that reach it", "gradient batches + evaluations"]
    return markdown(head, rows)


def cost_of_gradients(passes: list[dict]) -> str:
    if not passes:
        return "0"
    batches = statistics.mean(cost["batches"] for cost in passes)
    forward_alone = statistics.mean(cost["looks"] for cost in passes)
    return f"{batches:.0f} + {forward_alone:.0f}"


def drift_table(done: list[dict], score: Score, baseline: str, unit: str) -> str:
    """Where the base was scored too: drift at full strength, and its difference at equal score."""
    drift = drift_by_same_encoder(score)
    at_zero = Score(score.metric, score.encoder, 0.0)
    rows = []
    for setting, runs, base, _ in with_baseline(done, score, baseline):
        base_runs = {pairing_key(entry): entry for entry in base}
        pairs = {pairing_key(entry): entry for entry in runs if pairing_key(entry) in base_runs}
        scored = [entry["scores"] for entry in (*pairs.values(), *base_runs.values())]
        if not pairs or not all(at_zero in scores and drift in scores for scores in scored):
            continue
        mean_drift = statistics.mean(per_unit(per_run(list(pairs.values()), drift), unit))
        row = [setting.part, setting.label, setting.rank, f"{mean_drift:.4f}"]
        found = {key: drift_at_equal_score(entry, base_runs[key], score) for key, entry in pairs.items()}
        known = {key: difference for key, difference in found.items() if difference is not None}
        if setting.label == baseline:
            row += ["", "", "", ""]
        elif not known:
            row += ["none scores above the base", "", "", ""]
        else:
            row += [f"{len(known)} of {len(found)}", *paired_cells(per_unit(known, unit))]
        rows.append(row)
    head = ["part", "method", "rank", "drift at strength 1", "runs above the base", "mean at equal score"]
    return markdown([*head, *PAIRED_HEAD[1:]], rows)


def front_table(done: list[dict], score: Score, baseline: str, unit: str, front: Score) -> str:
    """A method's curve over its learning rates against the baseline's.

    A unit whose curves share no score is left out of n.
    """
    groups, bases = {}, {}
    for setting, runs in by_setting(done).items():
        groups.setdefault(setting.any_rate, []).extend(runs)
    for setting, runs in groups.items():
        if setting.label == baseline:
            bases[setting.part, setting.rank, setting.steps] = runs
    compared = []  # (setting, a value for each unit)
    for setting, runs in groups.items():
        base = bases.get((setting.part, setting.rank, setting.steps))
        if base is None or setting.label == baseline:
            continue
        curves, base_curves = (front_of(group, score, front, unit) for group in (runs, base))
        heights = {}
        for key in curves.keys() & base_curves.keys():
            heights[key] = mean_height_above(curves[key], base_curves[key])
        values = per_unit({key: heights[key] for key in curves if heights.get(key) is not None}, unit)
        if values:
            compared.append((setting, values))
    tested = [p_value(values) for _, values in compared]
    corrected = iter(holm([p for p in tested if p is not None]))
    rows = []
    for (setting, values), p in zip(compared, tested, strict=True):
        holms = "" if p is None else f"{next(corrected):.3f} of {len(compared)}"
        rows.append([setting.part, setting.label, setting.rank, len(values), *paired_cells(values), holms])
    return markdown(["part", "method", "rank", f"{unit}s", *PAIRED_HEAD, "Holm's p"], rows)
