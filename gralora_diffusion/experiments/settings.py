"""The cells of a sweep, and the values of their runs: by run, and by seed or subject."""

import statistics
from typing import NamedTuple

from gralora_diffusion.console import counted
from gralora_diffusion.evaluation.metric import METRICS, Score, find_score
from gralora_diffusion.options import ConfigError

HELD_OUT_LOSS = Score(METRICS["held-out loss"])
TRAINING_LOSS = Score(METRICS["training loss"])


class Setting(NamedTuple):
    """What distinguishes runs beside seed and subject; k is 0 for methods without it."""

    part: str  # validation or test
    rank: int
    method: str
    k: int
    lr: float | None
    steps: int
    outliers: float = 1.0  # planted in the base; 1 for none
    slices: int = 0  # with an outlier each

    @classmethod
    def of(cls, run: dict) -> "Setting":
        planted = run.get("outliers", 1.0), run.get("outlier_slices", 0)
        k = run.get("k") or 0
        return cls(run["part"], run["rank"], run["method"], k, run["lr"], run["steps"], *planted)

    @property
    def label(self) -> str:
        """As tables and --baseline have it."""
        return f"{self.method} k{self.k}" if self.k else self.method

    @property
    def base(self) -> tuple:
        """What a baseline has in common with the settings that are compared with it."""
        return self.part, self.rank, self.steps, self.outliers, self.slices

    @property
    def any_rate(self) -> "Setting":
        return self._replace(lr=None)


def by_setting(done: list[dict]) -> dict[Setting, list[dict]]:
    """{setting: its runs, one for each seed and subject}, in order."""
    groups = {}
    for entry in done:
        groups.setdefault(Setting.of(entry["run"]), []).append(entry)
    return dict(sorted(groups.items()))


def pairing_key(entry: dict) -> tuple:
    """(subject, seed): what pairs a run with one of another setting."""
    return entry["run"].get("subject"), entry["run"]["seed"]


def per_run(runs: list[dict], score: Score) -> dict[tuple, float]:
    """{(subject, seed): the mean over the run's images}"""
    scored = [entry for entry in runs if score in entry.get("scores", {})]
    return {pairing_key(entry): statistics.mean(entry["scores"][score]) for entry in scored}


def per_unit(values: dict[tuple, float], unit: str) -> list[float]:
    """One value for each seed, or for each subject, from {(subject, seed): value}."""
    groups = {}
    for (subject, seed), value in values.items():
        groups.setdefault(subject if unit == "subject" else seed, []).append(value)
    return [statistics.mean(group) for group in groups.values()]


def paired_differences(values: dict[tuple, float], base: dict[tuple, float], unit: str) -> list[float]:
    """values less base where both have a run, one for each unit."""
    return per_unit({key: values[key] - base[key] for key in values if key in base}, unit)


def known_scores(done: list[dict]) -> list[Score]:
    """In the order of the runs."""
    found = {}
    for entry in done:
        found |= dict.fromkeys(entry.get("scores", {}))
    return list(found)


def choose_score(done: list[dict], text: str | None = None) -> Score:
    """The score that an option names; by default the first metric of the first encoder.

    Where no encoder scored, the default is the loss.  Raises ConfigError, with the known ones, for a score
    that no run has.
    """
    known = known_scores(done)
    by_default = [score for score in known if score.encoder and score.strength == 1] or known
    if not by_default:
        raise ConfigError("the sweep holds no finished runs to choose or report from")
    return find_score(text, known) if text else by_default[0]


def second_score(done: list[dict], score: Score) -> Score | None:
    """The same metric by the next encoder."""
    for other in known_scores(done):
        if other.metric == score.metric and other.strength == 1 and other != score:
            return other
    return None


def check_settings(done: list[dict]) -> None:
    """Raises ConfigError for runs that no table may compare: of other steps, bases, images or encoders."""
    steps = sorted({entry["run"]["steps"] for entry in done})
    if len(steps) > 1:
        raise ConfigError(
            f"these runs have {' and '.join(map(str, steps))} steps: choose one with --steps, since a "
            "table does not distinguish them",
            option="steps",
        )
    planted = sorted({Setting.of(entry["run"])[-2:] for entry in done})
    if len(planted) > 1:
        names = ", ".join(
            f"{scale:g} in {counted(slices, 'slice')}" if slices else "1" for scale, slices in planted
        )
        raise ConfigError(
            f"these runs have outliers of {names}: choose one with --outliers and --outlier_slices, since a "
            "table does not distinguish them",
            option="outliers",
        )
    hashes = {}
    for entry in done:
        run = entry["run"]
        hashes.setdefault(run.get("subject"), set()).add(run.get("setting"))
    if any(len(found) > 1 for found in hashes.values()):
        raise ConfigError(
            "these runs differ in base, images, prompts, encoders or batch: give each set of options an "
            "--output of its own"
        )


def check_baseline(done: list[dict], baseline: str) -> None:
    known = {Setting.of(entry["run"]).label for entry in done}
    if baseline not in known:
        names = "; ".join(sorted(known))
        raise ConfigError(
            f"no run is of the baseline {baseline!r}; the runs are of: {names}", option="baseline"
        )
