"""Which adapter has the lowest loss on held-out images, over eight styles?

    python scripts/ranking.py --images build/styles --state build/tasks    # several at once; resumes
    python scripts/ranking.py --report    # the tables of the runs in docs/experiments/results/ranking

The score is that of tasks.py, and the tasks are the styles that show learning by its criterion.  Its runs of
LoRA are used where the rate is the same, and its full fine-tuning stands beside.
docs/experiments/README.md has the design, which was written before the runs.
"""

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import ranking_tables
from ranking_tables import ALL_LINEAR, ALL_LINEAR_RANK, OTHER_RATES, arm_key, losses_by_rate
from tasks import COMMON, TEST, learned_styles, sweep

from gralora_diffusion.console import fail
from gralora_diffusion.experiments.methods import tuned_as
from gralora_diffusion.experiments.results import RESULTS, line_of, read_results
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.signals import Stopped

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "ranking"
TUNING_STYLE = "emojione"  # none of the tasks
TUNING = "--part validation --seeds 0 1"
RATES = (3e-4, 1e-3, 3e-3)
MORE_RATES = (1e-5, 3e-5, 1e-4, *RATES, 1e-2, 3e-2)  # where the best is at an end of those tried
RANKS = (16, 4, 64)  # budgets, in the order in which they are run


class Arm(NamedTuple):
    """A method with its k and the layers that it adapts, and the budgets that it can have."""

    method: str
    k: int | None = None
    targets: str = "attention"
    ranks: tuple[int, ...] = RANKS

    def options(self, rank: int) -> str:
        k = f"--k {self.k}" if self.k else ""
        return f"--methods {self.method} --ranks {rank} {k} --targets {self.targets}"

    def runs(self, done: list[dict], rank: int) -> list[dict]:
        wanted = (self.method, self.k, self.targets, rank)
        return [entry for entry in done if wanted == arm_key(entry["run"])]


ARMS = (  # in the order in which they are run, the primary comparison first
    Arm("our-lora"),
    Arm("gralora", 2),
    Arm("gralora", 4),
    Arm("rslora"),
    Arm("hybrid", 2),
    Arm("lora+"),
    Arm("gora"),
    Arm("gralora-ranks"),
    Arm("t-lora"),
    Arm("lokr", ranks=(4, 16)),
    Arm("dora", ranks=(16, 64)),
    Arm("oft", ranks=(4,)),
    Arm("our-lora", targets=ALL_LINEAR, ranks=(ALL_LINEAR_RANK,)),
    Arm("gralora", 2, targets=ALL_LINEAR, ranks=(ALL_LINEAR_RANK,)),
)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--images", type=Path, default=Path("build/styles"), help="a folder for each style")
    parser.add_argument("--state", type=Path, default=Path("build/tasks"), help="folder of the sweeps")
    parser.add_argument("--report", action="store_true", help="print the tables of the runs that are kept")
    args = parser.parse_args()
    try:
        if not args.report:
            run_all(args.images, args.state)
        print(ranking_tables.report(KEPT, planned()))
    except Stopped as stop:
        fail(str(stop), 130)
    except ConfigError as error:
        fail(str(error))


def run_all(images: Path, state: Path) -> None:
    styles = learned_styles()
    for rank in (RANKS[0], ALL_LINEAR_RANK, *RANKS[1:]):
        for arm in ARMS:
            if rank not in arm.ranks:
                continue
            rates = [tuned_rate(arm, rank, images, state)]
            rates += OTHER_RATES.get((arm.method, arm.k, rank), ())
            for style, rate in itertools.product(styles, sorted(set(rates))):
                sweep(f"{COMMON} {TEST} {arm.options(rank)} --lrs {rate:g}", images / style, state / style)
            keep(styles, state)


def planned() -> dict[int, int]:
    """{budget: the arms beside LoRA and the primary comparison}"""
    counts = {}
    for rank in RANKS:
        counts[rank] = sum(rank in arm.ranks for arm in ARMS) - 2
    counts[ranking_tables.ITS_BUDGET] += sum(ALL_LINEAR_RANK in arm.ranks for arm in ARMS)
    return counts


def tuned_rate(arm: Arm, rank: int, images: Path, state: Path) -> float:
    """The rate with the lowest held-out loss on TUNING_STYLE, of RATES and, at their ends, the next ones."""
    arm = arm._replace(method=tuned_as(arm.method))
    rates = list(RATES)
    while True:
        given = " ".join(map(str, rates))
        options = f"{COMMON} {TUNING} {arm.options(rank)} --lrs {given}"
        sweep(options, images / TUNING_STYLE, state / TUNING_STYLE)
        losses = losses_by_rate(arm.runs(read_results(state / TUNING_STYLE), rank))
        if not losses:
            raise ConfigError(f"{arm.method} of rank {rank} failed at every rate of {given}")
        best = min(losses, key=losses.get)
        place = MORE_RATES.index(best)
        beside = MORE_RATES[max(0, place - 1) : place + 2]
        missing = [rate for rate in beside if rate not in rates]
        if not missing:
            return best
        rates += missing


def keep(styles: list[str], state: Path) -> None:
    """The runs so far, with what the report reads."""
    lines = []
    for style in (TUNING_STYLE, *styles):
        for entry in read_results(state / style):
            names = ("run", "parameters", "curve", "scores", "seconds_per_step", "failed")
            short = {name: entry[name] for name in names if name in entry}
            lines.append(line_of(short | dict(task=style)))
    KEPT.mkdir(parents=True, exist_ok=True)
    write_text(KEPT / RESULTS, "".join(sorted(lines)))


if __name__ == "__main__":
    main()
