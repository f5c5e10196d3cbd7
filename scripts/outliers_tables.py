"""The tables and the plot of scripts/outliers.py: losses, chosen rates, and paired differences from LoRA."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gralora_diffusion.evaluation.metric import Score
from gralora_diffusion.evaluation.statistics import p_value, t_interval
from gralora_diffusion.experiments.markdown import markdown
from gralora_diffusion.experiments.plots import half_width, line_style, save_figure
from gralora_diffusion.experiments.rates import at_best_rate
from gralora_diffusion.experiments.settings import Setting, by_setting, per_run

LORA, K2, K4, K8 = "our-lora", "gralora k2", "gralora k4", "gralora k8"
BESIDE = ("rslora", "dora", "pissa", "gora")
SEEDS = 5  # of the test runs
STRONG, SLICES = 1000, 4
CONDITIONS = (
    (1, 0),
    (STRONG, 1),
    (STRONG, SLICES),
)  # (scale, slices with an outlier) that rates are tuned at


class Arm(NamedTuple):
    """A method at a rank, in tables."""

    label: str
    rank: int


class Case(NamedTuple):
    """A comparison of all arms: the outliers in the base, and at which scale their rates were tuned."""

    rank: int
    scale: float
    slices: int
    tuned_at: float


def arm_of(setting: Setting) -> Arm:
    return Arm(setting.label, setting.rank)


def planted(setting: Setting) -> tuple[float, int]:
    return setting.outliers, setting.slices


def of_part(done: list[dict], part: str) -> list[dict]:
    return [entry for entry in done if entry["run"]["part"] == part]


def best_rates(done: list[dict], score: Score, scale: float, slices: int) -> dict[Arm, float]:
    """The rate of the lowest loss on the validation runs with outliers of this scale."""
    found = {}
    for setting in at_best_rate(of_part(done, "validation"), score):
        if planted(setting) == (scale, slices if scale > 1 else 0):
            found[arm_of(setting)] = setting.lr
    return found


@dataclass(frozen=True)
class Tables:
    """All tables of the runs `done` by a loss; cases: the comparisons, those without runs among them."""

    done: list[dict]
    score: Score
    cases: list[Case]

    def text(self) -> str:
        name = self.score.metric.name
        parts = [
            (
                f"Chosen rates, by the mean {name} of the validation seeds 0 and 1 (finished runs)",
                self.rates(),
            ),
            (f"{name.capitalize()} x 1000, mean over the seeds", self.losses()),
            ("Minus LoRA's with the same seed, x 1000, 95 % t-intervals", self.differences()),
            ("How much more outliers hurt LoRA than the blocks, x 1000", self.interactions()),
            ("Test runs at other rates, x 1000", self.other_rates()),
        ]
        return "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts if table)

    def tests(self) -> dict[Setting, list[dict]]:
        return by_setting(of_part(self.done, "test"))

    def cases_with_runs(self) -> list[Case]:
        found = {(setting.rank, *planted(setting)) for setting in self.tests()}
        return sorted(case for case in self.cases if case[:3] in found)

    def arms(self, rank: int) -> list[Arm]:
        labels = {setting.label for setting in self.tests() if setting.rank == rank}
        return [Arm(label, rank) for label in (LORA, K2, K4, K8, *BESIDE) if label in labels]

    def losses_of(self, arm: Arm, scale: float, slices: int, tuned_at: float) -> dict[tuple, float]:
        """{(subject, seed): 1000 x loss} of the arm's test runs at the rate that was chosen there."""
        rate = best_rates(self.done, self.score, tuned_at, max(slices, 1)).get(arm)
        wanted = arm, (scale, slices if scale > 1 else 0), rate
        for setting, runs in self.tests().items():
            if (arm_of(setting), planted(setting), setting.lr) == wanted:
                return {key: 1000 * value for key, value in per_run(runs, self.score).items()}
        return {}

    def rates(self) -> str:
        validation = by_setting(of_part(self.done, "validation"))
        tried = sorted({setting.lr for setting in validation})
        rows = []
        for scale, slices in CONDITIONS:
            for arm, best in best_rates(self.done, self.score, scale, slices).items():
                cells = dict.fromkeys(tried, "")
                for setting, runs in validation.items():
                    if (arm_of(setting), planted(setting)) == (arm, (scale, slices)):
                        cells[setting.lr] = self.mean_text(runs)
                rows.append([scale, slices or "", arm.rank, arm.label, f"{best:g}", *cells.values()])
        heads = [f"loss at {rate:g}" for rate in tried]
        return markdown(["outliers", "slices", "rank", "arm", "best rate", *heads], rows)

    def mean_text(self, runs: list[dict]) -> str:
        """1000 x the mean loss, or how many of the runs failed."""
        values = list(per_run(runs, self.score).values())
        failed = len(runs) - len(values)
        return f"{failed} failed" if failed else f"{1000 * statistics.mean(values):.2f}"

    def losses(self) -> str:
        rows = []
        for case in self.cases_with_runs():
            for arm in self.arms(case.rank):
                values = list(self.losses_of(arm, *case[1:]).values())
                if values:
                    spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
                    cells = [len(values), f"{statistics.mean(values):.2f}", spread]
                    rows.append([*case_cells(case), arm.label, *cells])
        return markdown(["rank", "outliers", "slices", "rate tuned at", "arm", "seeds", "mean", "sd"], rows)

    def differences(self) -> str:
        rows = []
        for case in self.cases_with_runs():
            base = self.losses_of(Arm(LORA, case.rank), *case[1:])
            for arm in self.arms(case.rank):
                values = paired(self.losses_of(arm, *case[1:]), base)
                if arm.label != LORA and values:
                    p = f"{p_value(values):.2g}" if len(values) == SEEDS else ""
                    cells = [f"{len(values)} of {SEEDS}", interval_text(values), p]
                    rows.append([*case_cells(case), arm.label, *cells])
        heads = ["rank", "outliers", "slices", "rate tuned at", "arm", "seeds", "difference", "p"]
        return markdown(heads, rows)

    def interactions(self) -> str:
        """(arm - LoRA with outliers) - (arm - LoRA without), each at the rates tuned there."""
        rows = []
        for rank in sorted({setting.rank for setting in self.tests()}):
            for arm in self.arms(rank)[1:]:
                gaps = {}
                for scale, slices in CONDITIONS:
                    own = self.losses_of(arm, scale, slices, scale)
                    base = self.losses_of(Arm(LORA, rank), scale, slices, scale)
                    gaps[scale, slices] = {key: own[key] - base[key] for key in own if key in base}
                for first, second, name in (
                    ((STRONG, 1), (1, 0), f"{STRONG} minus none"),
                    ((STRONG, SLICES), (STRONG, 1), f"{SLICES} slices minus one, at {STRONG}"),
                ):
                    values = paired(gaps[first], gaps[second])
                    if values:
                        seeds = f"{len(values)} of {SEEDS}"
                        rows.append([rank, arm.label, name, seeds, interval_text(values)])
        return markdown(["rank", "arm", "outliers", "seeds", "change of the difference from LoRA"], rows)

    def other_rates(self) -> str:
        """Test runs of no case: at rates that were tried afterwards, or with cases that are not complete."""
        rows = []
        for setting, runs in self.tests().items():
            arm = arm_of(setting)
            rates = [best_rates(self.done, self.score, *place).get(arm) for place in CONDITIONS]
            if setting.lr not in rates:
                mean = self.mean_text(runs)
                cells = [
                    f"{setting.outliers:g}",
                    setting.slices or "",
                    arm.label,
                    f"{setting.lr:g}",
                    len(runs),
                ]
                rows.append([arm.rank, *cells, mean])
        return markdown(["rank", "outliers", "slices", "arm", "rate", "seeds", "mean"], rows) if rows else ""

    def plot(self, file: Path) -> None:
        """Loss against the outliers' scale, at the rates tuned at 1000 and at 1."""

        def fill(*axes) -> None:
            for axis, tuned_at in zip(axes, (STRONG, 1), strict=True):
                axis.set(xlabel=f"scale of the outliers; rates tuned at {tuned_at}", xscale="log")
                axis.set_ylabel(f"{self.score.metric.name} x 1000")
                for number, label in enumerate((LORA, K2, K4, K8)):
                    self.plot_arm(axis, Arm(label, 64), tuned_at, number)

        save_figure(file, fill, columns=2)

    def plot_conditions(self, file: Path) -> None:
        """Validation loss against the rate without outliers, and test loss under every condition."""

        def fill(by_rate, by_condition) -> None:
            by_rate.set(xlabel="learning rate, without outliers", xscale="log", yscale="log")
            by_rate.set_ylabel(f"{self.score.metric.name} x 1000")
            by_condition.set_xlabel("outliers, each arm at its own best rate")
            names = ["none", "one channel", f"one in each of {SLICES} slices"]
            by_condition.set_xticks(range(len(CONDITIONS)), names)
            for number, label in enumerate((LORA, K2, K4, K8)):
                self.plot_rates(by_rate, Arm(label, 64), number)
                self.plot_points(by_condition, Arm(label, 64), number)

        save_figure(file, fill, columns=2)

    def plot_rates(self, axis, arm: Arm, number: int) -> None:
        means = {}
        for setting, runs in by_setting(of_part(self.done, "validation")).items():
            values = per_run(runs, self.score).values()
            if (arm_of(setting), planted(setting)) == (arm, (1, 0)) and len(values) == len(runs):
                means[setting.lr] = 1000 * statistics.mean(values)
        if means:
            axis.plot(list(means), list(means.values()), label=arm.label, **line_style(number))

    def plot_points(self, axis, arm: Arm, number: int) -> None:
        for place, (scale, slices) in enumerate(CONDITIONS):
            values = list(self.losses_of(arm, scale, slices, scale).values())
            if values:
                spread = half_width(values)
                style = line_style(number) | dict(linestyle="none")
                x = place + 0.08 * (number - 1.5)
                label = arm.label if place == 0 else None
                axis.errorbar(x, statistics.mean(values), spread, capsize=3, label=label, **style)

    def plot_arm(self, axis, arm: Arm, tuned_at: float, number: int) -> None:
        means = {}
        for scale in sorted({case.scale for case in self.cases}):
            values = list(self.losses_of(arm, scale, 1, tuned_at).values())
            if values:
                means[scale] = statistics.mean(values), half_width(values)
        shift = 1 + 0.04 * (number - 1.5)
        places = [scale * shift for scale in means]
        heights, spreads = zip(*means.values(), strict=True) if means else ((), ())
        axis.errorbar(places, heights, spreads, capsize=3, label=arm.label, **line_style(number))


def case_cells(case: Case) -> list:
    return [case.rank, f"{case.scale:g}", case.slices or "", case.tuned_at]


def paired(first: dict, second: dict) -> list[float]:
    return [first[key] - second[key] for key in sorted(first, key=str) if key in second]


def interval_text(values: list[float]) -> str:
    """The mean with its interval, or without where a seed failed or has not run."""
    if len(values) < SEEDS:
        return f"{statistics.mean(values):+.2f}, without interval"
    low, high = t_interval(values)
    return f"{statistics.mean(values):+.2f} ({low:+.2f} to {high:+.2f})"
