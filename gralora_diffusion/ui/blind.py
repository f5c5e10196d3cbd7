"""A blind comparison: two images of one prompt and seed side by side, named only when it has ended.

HOME/.page/blind holds the comparison, so that it survives a reload and a restart: its images without texts,
under random names, and state.json. There is one at a time.
"""

import dataclasses
import json
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gralora_diffusion.console import counted
from gralora_diffusion.data.images import open_image
from gralora_diffusion.evaluation.statistics import rate_interval
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.grid import Cell
from gralora_diffusion.ui.run_files import read_json
from gralora_diffusion.ui.workspace import Workspace, quoted, real_file

VOTES = ("left", "right", "tie")
CHANGES = threading.Lock()  # one change at a time
UNREADABLE = (TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class Trial:
    """images: the files of both contenders, in the order of the names; swapped: the second one is left."""

    prompt: str
    seed: int
    images: tuple[str, str]
    swapped: bool
    vote: str | None = None

    @property
    def id(self) -> str:
        """That no trial of another comparison has."""
        return self.images[0]

    @property
    def winner(self) -> int | None:
        """The number of the preferred contender; None for a tie, and without a vote."""
        if self.vote not in ("left", "right"):
            return None
        return int((self.vote == "right") != self.swapped)


@dataclass(frozen=True)
class Comparison:
    names: tuple[str, str]
    trials: tuple[Trial, ...]
    ended: bool = False

    @property
    def votes(self) -> int:
        return sum(trial.vote is not None for trial in self.trials)

    @property
    def current(self) -> Trial | None:
        """The trial that is to be judged; None where it has ended."""
        return None if self.ended else self.trials[self.votes]


def folder_of(workspace: Workspace) -> Path:
    return workspace.scratch / "blind"


def start(workspace: Workspace, cells: list[Cell], first: str, second: str) -> Comparison:
    """Begin a comparison of two groups of a grid's cells, in random order.  Raises ConfigError."""
    if first == second:
        raise ConfigError("choose two different adapters or strengths for the blind comparison")
    found = [{}, {}]  # {(prompt, seed): cell} of each contender
    for cell in cells:
        for images, group in zip(found, (first, second), strict=True):
            if cell.group == group:
                images[cell.prompt, cell.seed] = cell
    pairs = [key for key in found[0] if key in found[1]]
    if not pairs:
        raise ConfigError("generate a grid first, then choose two of its adapters or strengths")
    random = secrets.SystemRandom()
    random.shuffle(pairs)
    folder = folder_of(workspace)
    with CHANGES:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        trials = []
        for key in pairs:
            names = tuple(copy_of(images[key].path, folder) for images in found)
            trials.append(Trial(*key, names, random.random() < 0.5))
        comparison = Comparison((first, second), tuple(trials))
        save(workspace, comparison)
    return comparison


def copy_of(image: str, folder: Path) -> str:
    """The name of a copy without the texts, which name the adapter."""
    name = f"{secrets.token_hex(8)}.png"
    found = open_image(Path(image))
    found.info = {}
    found.save(folder / name, "PNG")
    return name


def save(workspace: Workspace, comparison: Comparison) -> None:
    write_text(folder_of(workspace) / "state.json", json.dumps(dataclasses.asdict(comparison)) + "\n")


def load(workspace: Workspace) -> Comparison | None:
    """The comparison that was started last; None where there is none that can be read."""
    folder = folder_of(workspace)
    try:
        facts = read_json(folder / "state.json")
        trials = tuple(trial_in(folder, trial) for trial in facts["trials"])
        first, second = facts["names"]
        comparison = Comparison((str(first), str(second)), trials, facts["ended"] is True)
    except UNREADABLE:
        return None
    is_complete = comparison.votes == len(trials)
    return None if is_complete and not comparison.ended else comparison


def trial_in(folder: Path, facts: dict) -> Trial:
    """Raises one of UNREADABLE."""
    images = tuple(facts["images"])
    if len(images) != 2 or not all(Path(name).name == name and real_file(folder / name) for name in images):
        raise ValueError("its images are not there")
    if facts["vote"] not in (None, *VOTES):
        raise ValueError("it has another vote")
    return Trial(str(facts["prompt"]), int(facts["seed"]), images, facts["swapped"] is True, facts["vote"])


def vote(workspace: Workspace, trial: str, choice: str) -> Comparison:
    """Count a vote for the trial of this id; one for another trial, as of a second click, is left out."""
    if choice not in VOTES:
        raise ConfigError(f"the vote is {quoted(choice)}; it must be one of {', '.join(VOTES)}")
    with CHANGES:
        comparison = current_of(workspace)
        if comparison.ended or trial != comparison.current.id:
            return comparison
        trials = list(comparison.trials)
        trials[comparison.votes] = dataclasses.replace(comparison.current, vote=choice)
        ended = comparison.votes + 1 == len(trials)
        comparison = dataclasses.replace(comparison, trials=tuple(trials), ended=ended)
        save(workspace, comparison)
    return comparison


def end(workspace: Workspace) -> Comparison:
    """End it before all trials were judged."""
    with CHANGES:
        comparison = current_of(workspace)
        if not comparison.votes:
            raise ConfigError("vote at least once before the names are revealed")
        comparison = dataclasses.replace(comparison, ended=True)
        save(workspace, comparison)
    return comparison


def rename(workspace: Workspace, name_of: Callable[[str], str], in_time: Callable[[int], bool]) -> None:
    """Give the adapters of a comparison their new names, if it was started in time."""
    with CHANGES:
        comparison = load(workspace)
        if comparison is None:
            return
        started = (folder_of(workspace) / comparison.trials[0].images[0]).stat().st_mtime_ns
        names = []
        for group in comparison.names:
            adapter, mark, strength = group.rpartition(" at ")  # as Cell.group has it
            names.append(f"{name_of(adapter)}{mark}{strength}")
        if tuple(names) != comparison.names and in_time(started):
            save(workspace, dataclasses.replace(comparison, names=tuple(names)))


def current_of(workspace: Workspace) -> Comparison:
    comparison = load(workspace)
    if comparison is None:
        raise ConfigError("there is no blind comparison: start one")
    return comparison


def sides_of(workspace: Workspace, trial: Trial) -> tuple[Path, Path]:
    """The files at the left and at the right."""
    first, second = (folder_of(workspace) / name for name in trial.images)
    return (second, first) if trial.swapped else (first, second)


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def result_text(comparison: Comparison) -> str:
    """The share of the decided votes for the preferred one, with its exact 95 % interval."""
    winners = [trial.winner for trial in comparison.trials]
    wins = winners.count(0), winners.count(1)
    decided = sum(wins)
    ties = comparison.votes - decided
    uncounted = f" {counted(ties, 'tie')} not counted." if ties else ""
    names = comparison.names
    if not decided:
        return f"No preference between {names[0]} and {names[1]}: {counted(ties, 'tie')}."
    better = int(wins[1] > wins[0])
    low, high = rate_interval(wins[better], decided)
    share = f"{percent(wins[better] / decided)} %, 95 % interval {percent(low)} to {percent(high)} %"
    verdict = "clearly preferred" if low > 0.5 else "not clearly preferred: the interval includes 50 %"
    if wins[0] == wins[1]:
        return f"Equal: {names[0]} and {names[1]} have {counted(wins[0], 'vote')} each ({share}).{uncounted}"
    return (
        f"{names[better]} was chosen over {names[1 - better]} in {wins[better]} of "
        f"{counted(decided, 'vote')}: {share} (exact Clopper-Pearson); {verdict}.{uncounted}"
    )
