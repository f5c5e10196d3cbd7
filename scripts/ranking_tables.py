"""The tables of ranking.py: every method against LoRA, and what small benchmarks would have said."""

import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tasks import interval_text, learned_styles

from gralora_diffusion.console import counted
from gralora_diffusion.evaluation.statistics import holm, p_value
from gralora_diffusion.experiments.markdown import markdown
from gralora_diffusion.experiments.methods import tuned_as
from gralora_diffusion.experiments.plots import half_width, save_figure
from gralora_diffusion.experiments.results import read_results
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError

SEEDS = (2, 3, 4, 5, 6)
PRIMARY = "gralora k2"
LORA = "our-lora"
FULL = "full"
ALL_LINEAR = "all-linear"
ALL_LINEAR_RANK, ITS_BUDGET = (
    6,
    16,
)  # the rank with which all linear layers have nearly that budget's parameters
# Tested beside the chosen rate, after the primary comparison was known; without a p.
OTHER_RATES = {("our-lora", None, 16): (3e-3,), ("gralora", 2, 16): (1e-3,)}
AT_OTHER_RATE = " at "
HEADS = ["method", "parameters", "rate", "loss x 1000", "less LoRA's, 95 % t", "styles ahead", "Holm's p"]


class Entry(NamedTuple):
    """What the tables need of a run."""

    loss: float  # x 1000
    base: float  # before training
    batches: list[float]  # of eight noisy images each
    rate: float
    parameters: int


Runs = dict[tuple[str, int], Entry]  # by style and seed


def report(folder: Path, planned: dict[int, int]) -> str:
    """All tables, written to table.md.  Raises ConfigError without test runs.

    planned: {rank: how many arms Holm's correction is for}, also of those that have not been run.
    """
    parts, styles = [], learned_styles()
    entries = read_results(folder)
    done = runs_at_tuned_rates(entries, styles)
    if not done:
        raise ConfigError(f"{folder} holds no test runs to report")
    for rank in sorted({budget_of(entry["run"]) for entry in done}):
        arms, incomplete = arms_of(done, rank, len(styles))
        if LORA not in arms:
            continue
        parts.append(f"Rank {rank}: {counted(len(styles), 'style')}, the mean over {len(SEEDS)} seeds each")
        parts.append(ranking_table(arms, styles, planned[rank]))
        plot = partial(plot_differences, arms=arms, styles=styles)
        save_figure(folder / f"differences-rank-{rank}.png", plot, columns=1)
        if incomplete:
            parts.append(f"Not complete, and left out: {', '.join(incomplete)}.")
        if PRIMARY in arms:
            parts += at_other_rates(arms, styles)
            parts.append(small_benchmarks(arms))
    if not parts:
        raise ConfigError(f"{folder} does not hold all runs of LoRA at any rank yet")
    if rates := rates_table(entries):
        parts += ["Loss x 1000 by rate on the style where rates are chosen, mean of two seeds", rates]
    text = "\n\n".join(parts)
    write_text(folder / "table.md", text + "\n")
    return text


def runs_at_tuned_rates(entries: list[dict], styles: list[str]) -> list[dict]:
    """The test runs of these styles, each method's at the rate that is best in its validation runs.

    Those at OTHER_RATES are among them.  Others are in the sweeps that tasks.py shares, or were made before a
    rate was tried.
    """
    best = {}
    for key, runs in tuning_runs(entries).items():
        losses = losses_by_rate(runs)
        best[key] = min(losses, key=losses.get, default=None)
    found = []
    for entry in entries:
        run = entry["run"]
        if run["part"] != "test" or entry["task"] not in styles or run["seed"] not in SEEDS:
            continue
        _, *sizes = arm_key(run)
        others = OTHER_RATES.get((run["method"], run["k"], run["rank"]), ())
        if run["lr"] == best.get((tuned_as(run["method"]), *sizes), run["lr"]) or run["lr"] in others:
            found.append(entry)
    return found


def tuning_runs(entries: list[dict]) -> dict[tuple, list[dict]]:
    """{arm_key: its runs on the style where rates are chosen}"""
    found: dict[tuple, list[dict]] = {}
    for entry in entries:
        if entry["run"]["part"] == "validation" and entry["run"]["method"] != FULL:
            found.setdefault(arm_key(entry["run"]), []).append(entry)
    return found


def rates_table(entries: list[dict]) -> str:
    """A row for each arm and rank, a column for each rate; a rate at which a run failed has none."""
    by_arm = {key: losses_by_rate(runs) for key, runs in tuning_runs(entries).items()}
    rates = sorted(set().union(*by_arm.values()))
    rows = []
    for (method, k, targets, rank), losses in sorted(by_arm.items(), key=str):
        name = f"{method} k{k}" if k else method
        cells = [f"{1000 * losses[rate]:.2f}" if rate in losses else "" for rate in rates]
        rows.append([name, targets, rank, *cells])
    return markdown(["method", "layers", "rank", *[f"{rate:g}" for rate in rates]], rows)


def arm_key(run: dict) -> tuple:
    return run["method"], run["k"], run["targets"], run["rank"]


def losses_by_rate(runs: list[dict]) -> dict[float, float]:
    """{rate: mean loss after the last step}; without the rates at which a run failed."""
    found = {}
    for entry in runs:
        found.setdefault(entry["run"]["lr"], []).append(entry)
    sound = {rate: runs for rate, runs in found.items() if all("curve" in entry for entry in runs)}
    return {rate: statistics.mean(entry["curve"][-1][1] for entry in runs) for rate, runs in sound.items()}


def arms_of(done: list[dict], rank: int, styles: int) -> tuple[dict[str, Runs], list[str]]:
    """({arm: its runs} of those with a run for every style and seed, the others as text)."""
    found: dict[str, Runs] = {}
    failed: dict[str, int] = {}
    for entry in done:
        run = entry["run"]
        if budget_of(run) != rank and run["method"] != FULL:
            continue
        name = label(run)
        runs = found.setdefault(name, {})
        if "failed" in entry:
            failed[name] = failed.get(name, 0) + 1
            continue
        runs[entry["task"], run["seed"]] = Entry(
            loss=1000 * entry["curve"][-1][1],
            base=1000 * entry["curve"][0][1],
            batches=entry["scores"][HELD_OUT_LOSS],
            rate=run["lr"],
            parameters=entry["parameters"],
        )
    wanted = styles * len(SEEDS)
    whole = {name: runs for name, runs in found.items() if len(runs) == wanted}
    incomplete = []
    for name in sorted(found.keys() - whole.keys()):
        words = f", {failed[name]} failed" if name in failed else ""
        incomplete.append(f"{name} ({len(found[name])} of {wanted} runs{words})")
    return whole, incomplete


def budget_of(run: dict) -> int:
    """The rank of a LoRA of the attention with as many parameters."""
    return ITS_BUDGET if run["targets"] == ALL_LINEAR else run["rank"]


def label(run: dict) -> str:
    name = f"{run['method']} k{run['k']}" if run["k"] else run["method"]
    if run["targets"] == ALL_LINEAR:
        return f"{name}, {ALL_LINEAR}"
    if run["lr"] in OTHER_RATES.get((run["method"], run["k"], run["rank"]), ()):
        return f"{name}{AT_OTHER_RATE}{run['lr']:g}"
    return name


def ranking_table(arms: dict[str, Runs], styles: list[str], planned: int) -> str:
    """The lowest loss first.  The primary comparison has its own p, the others Holm's among themselves."""
    order = sorted(arms, key=lambda name: mean_loss(arms[name]))
    others = [name for name in order if name not in (LORA, PRIMARY, FULL) and AT_OTHER_RATE not in name]
    ps = [p_value(less_lora(arms, name, styles)) for name in others]
    missing = [1.0] * (planned - len(ps))
    corrected = dict(zip(others, holm([*ps, *missing]), strict=False))
    rows = []
    for name in order:
        runs = list(arms[name].values())
        rate = " ".join(f"{rate:g}" for rate in sorted({run.rate for run in runs}))
        row = [name, f"{runs[0].parameters:,}", rate, f"{mean_loss(arms[name]):.2f}"]
        if name == LORA:
            rows.append([*row, "", "", ""])
            continue
        values = less_lora(arms, name, styles)
        p = p_value(values) if name == PRIMARY else corrected.get(name)
        words = "" if p is None else f"{p:.3f}" + (" (primary, alone)" if name == PRIMARY else "")
        ahead = sum(value < 0 for value in values)
        rows.append([*row, interval_text(values), ahead, words])
    base = statistics.mean(run.base for run in arms[LORA].values())
    rows.append(["the base, untouched", "0", "", f"{base:.2f}", "", "", ""])
    return markdown(HEADS, rows)


def plot_differences(axis, arms: dict[str, Runs], styles: list[str]) -> None:
    """Each style's difference from LoRA, and the mean with its interval; the lowest loss at the top."""
    order = sorted((name for name in arms if name != LORA), key=lambda name: -mean_loss(arms[name]))
    for place, name in enumerate(order):
        values = less_lora(arms, name, styles)
        axis.scatter(values, [place] * len(values), s=12, color="C0", alpha=0.5)
        mean = statistics.mean(values)
        axis.errorbar([mean], [place], xerr=half_width(values), color="C1", marker="o", capsize=3)
    axis.scatter([], [], s=12, color="C0", alpha=0.5, label="a style, mean of 5 seeds")
    axis.errorbar([], [], xerr=[], color="C1", marker="o", label="mean, 95 % t-interval")
    axis.axvline(0, color="gray", linewidth=1)
    axis.set_yticks(range(len(order)), order)
    axis.set_xlabel("held-out loss less LoRA's, x 1000 (negative is better)")


def mean_loss(runs: Runs) -> float:
    return statistics.mean(run.loss for run in runs.values())


def less_lora(arms: dict[str, Runs], name: str, styles: list[str]) -> list[float]:
    """For each style, the mean over the seeds of the difference from LoRA with the same seed."""
    means = []
    for style in styles:
        pairs = [(arms[name][style, seed], arms[LORA][style, seed]) for seed in SEEDS]
        means.append(statistics.mean(run.loss - lora.loss for run, lora in pairs))
    return means


def at_other_rates(arms: dict[str, Runs], styles: list[str]) -> list[str]:
    """The primary comparison with LoRA at the rates beside its own: a sentence each."""
    found = []
    for name in arms:
        if name.startswith(f"{LORA}{AT_OTHER_RATE}"):
            pair = {PRIMARY: arms[PRIMARY], LORA: arms[name]}
            words = interval_text(less_lora(pair, PRIMARY, styles))
            found.append(f"{PRIMARY} less {name}, known after the primary comparison: {words}.")
    return found


def small_benchmarks(arms: dict[str, Runs]) -> str:
    """How often one style, one seed and eight noisy images name another winner than all runs do."""
    competing = {name: runs for name, runs in arms.items() if name != FULL and AT_OTHER_RATE not in name}
    best = min(competing, key=lambda name: mean_loss(competing[name]))
    wins = dict.fromkeys(competing, 0)
    count = ahead = 0
    for place, run in competing[LORA].items():
        for batch in range(len(run.batches)):
            losses = {name: runs[place].batches[batch] for name, runs in competing.items()}
            wins[min(losses, key=losses.get)] += 1
            ahead += losses[PRIMARY] < losses[LORA]
            count += 1
    others = count - wins[best]
    text = f"Of {count} benchmarks of one style, one seed and eight noisy images, {others} "
    text += f"({100 * others / count:.0f} %) name another winner than {best}, which has the lowest mean; "
    text += f"{PRIMARY} is ahead of LoRA in {ahead} ({100 * ahead / count:.0f} %)."
    rows = [[name, wins[name], f"{100 * wins[name] / count:.0f} %"] for name in competing]
    rows.sort(key=lambda row: -row[1])
    return text + "\n\n" + markdown(["method", "small benchmarks won", "share"], rows)
