"""The choice of a learning rate for each setting, by its validation runs."""

import statistics
from typing import NamedTuple

from gralora_diffusion.evaluation.metric import Score
from gralora_diffusion.experiments.methods import tuned_as
from gralora_diffusion.experiments.settings import Setting, by_setting, choose_score, per_run
from gralora_diffusion.options import ConfigError


def at_best_rate(done: list[dict], score: Score) -> dict[Setting, list[dict]]:
    """{setting: its runs} at the best validation rate of each part, rank, method, k and steps.

    Of the rates it has, those at which no run failed come first.  Of these, those with the most subjects and
    seeds are compared, over what all of them have.  Raises ConfigError for test runs at several rates without
    validation, and for rates that have no subject and seed in common.
    """
    groups = by_setting([entry for entry in done if score in entry.get("scores", {})])
    failed = set(by_setting([entry for entry in done if "failed" in entry]))
    rates = {}
    for setting in groups:
        rates.setdefault(setting.any_rate, []).append(setting)
    best = {}
    for candidates in rates.values():
        setting = best_of(candidates, groups, failed, score)
        best[setting] = groups[setting]
    return best


def best_of(candidates: list[Setting], groups: dict, failed: set[Setting], score: Score) -> Setting:
    """The best of settings that differ in the rate alone."""
    name = f"{candidates[0].label} at rank {candidates[0].rank}"
    validation = {setting: setting._replace(part="validation") for setting in candidates}
    tried = [setting for setting in candidates if validation[setting] in groups]
    if not tried:
        if len(candidates) > 1 and candidates[0].part == "test":
            raise ConfigError(f"{name} has test runs at several rates and no validation runs to choose by")
        tried = candidates
    # A rate at which a run failed is worse than any at which none did.
    sound = [setting for setting in tried if validation[setting] not in failed] or tried
    values = {}
    for setting in sound:
        values[setting] = per_run(groups.get(validation[setting], groups[setting]), score)
    most = max(map(len, values.values()))
    values = {setting: found for setting, found in values.items() if len(found) == most}
    common = sorted(set.intersection(*map(set, values.values())), key=str)
    if not common:
        given = ", ".join(f"{setting.lr:g}" for setting in values)
        raise ConfigError(f"{name}: no subject and seed has runs at all of the rates {given}")
    merits = {}  # higher is better
    for setting, found in values.items():
        merits[setting] = score.metric.sign * statistics.mean(found[key] for key in common)
    return max(merits, key=merits.get)


def tuned(runs: list[dict], done: list[dict], score: Score | None, elsewhere: bool) -> list[dict]:
    """The runs at the rate that is best in the validation runs of the same rank, k and method.

    Methods that take another one's rate take its best.  elsewhere: the validation runs are another sweep's,
    of other images and perhaps other steps.  Raises ConfigError where there are none, or --lrs lacks the
    rate.
    """
    settings = {run["setting"] for run in runs}
    done = [entry for entry in done if entry["run"]["part"] == "validation"]
    if not elsewhere:
        done = [entry for entry in done if entry["run"]["setting"] in settings]
    best = {}
    for setting in at_best_rate(done, score or choose_score(done)):
        best[rate_key(setting, setting.method, elsewhere)] = setting.lr
    given = {run["lr"] for run in runs}
    kept = []
    for run in runs:
        method = tuned_as(run["method"])
        name = f"--tuned: {method} at rank {run['rank']}"
        key = rate_key(Setting.of(run), method, elsewhere)
        if key not in best:
            raise ConfigError(
                f"{name} has no validation runs with these options yet; make them first", option="tuned"
            )
        if best[key] not in given:
            raise ConfigError(f"{name} is best at the rate {best[key]:g}: add it to --lrs", option="lrs")
        if run["lr"] == best[key]:
            kept.append(run)
    return kept


def rate_key(setting: Setting, method: str, any_steps: bool) -> Setting:
    """What a learning rate is chosen for: the validation setting of this method, at whatever rate."""
    steps = 0 if any_steps else setting.steps
    return setting.any_rate._replace(method=method, part="validation", steps=steps)


def rates_at_an_end(done: list[dict], score: Score) -> list[str]:
    """The settings whose best validation rate is the lowest or highest tried: a better one may be beyond."""
    done = [entry for entry in done if entry["run"]["part"] == "validation"]
    tried = {}
    for setting in by_setting(done):
        tried.setdefault(setting.any_rate, []).append(setting.lr)
    found = []
    for setting in at_best_rate(done, score):
        rates = tried[setting.any_rate]
        if len(rates) > 1 and setting.lr in (min(rates), max(rates)):
            found.append(f"{setting.label} at rank {setting.rank} ({setting.lr:g})")
    return found


class Compared(NamedTuple):
    """A setting's runs at its best rate, and the baseline's of the same part, rank and steps, at its own."""

    setting: Setting
    runs: list[dict]
    base: list[dict]
    base_lr: float


def with_baseline(done: list[dict], score: Score, baseline: str) -> list[Compared]:
    """All settings that have a baseline, the baseline itself among them."""
    settings = at_best_rate(done, score)
    bases = {}
    for setting in settings:
        if setting.label == baseline:
            bases[setting.base] = setting
    found = []
    for setting, runs in settings.items():
        base = bases.get(setting.base)
        if base is not None:
            found.append(Compared(setting, runs, settings[base], base.lr))
    return found
