"""Which tasks show learning: full fine-tuning against the base, and an adapter trained on the wrong images.

    python scripts/tasks.py --images build/styles --state build/tasks    # several at once; resumes
    python scripts/tasks.py --report    # the table of the runs in docs/experiments/results/tasks

A task is a style that the base was never trained on, with captions; its score is the loss on held-out images
with fixed noise.  docs/experiments/README.md has the criterion, which was written before the runs.
"""

import argparse
import hashlib
import math
import os
import shutil
import statistics
from pathlib import Path
from typing import NamedTuple

from scipy import stats

from gralora_diffusion.cli.compare import arguments
from gralora_diffusion.console import fail
from gralora_diffusion.data.dataset import instance_images
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.evaluation.statistics import t_interval
from gralora_diffusion.experiments.markdown import markdown
from gralora_diffusion.experiments.plan import base_config, plan_sweep, split
from gralora_diffusion.experiments.plots import save_figure
from gralora_diffusion.experiments.results import RESULTS, line_of, read_results, shortened
from gralora_diffusion.experiments.sweep import do_sweep
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.signals import Stopped

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "tasks"
STYLES = (  # folders of --images; the wrong images of each are the next one's
    "twemoji",
    "openmoji",
    "fxemoji",
    "streamline-emojis",
    "noto-v1",
    "fluent-emoji-high-contrast",
    "emojione-v1",
    "fluent-emoji-flat",
)
STEPS = 300
RATES = (1e-4, 3e-4, 1e-3)  # of full fine-tuning, tried on the first style alone
RANK, RATE = 16, 1e-3  # of LoRA, as in experiment 1
LORA = f"--methods our-lora --ranks {RANK} --lrs {RATE}"
COMMON = f"--loss_only --steps {STEPS} --held_out_every {STEPS}"
TEST = "--part test --seeds 2 3 4 5 6"
SEEDS = 5
FACTOR = 5  # of the seeds' standard deviation, which full fine-tuning must gain and wrong images must not
POWER = 0.8


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--images", type=Path, default=Path("build/styles"), help="a folder for each style")
    parser.add_argument("--state", type=Path, default=Path("build/tasks"), help="folder of the sweeps")
    parser.add_argument("--report", action="store_true", help="print the table of the runs that are kept")
    args = parser.parse_args()
    try:
        if not args.report:
            run_all(args.images, args.state)
        print(report())
    except Stopped as stop:
        fail(str(stop), 130)
    except ConfigError as error:
        fail(str(error))


def run_all(images: Path, state: Path) -> None:
    first = images / STYLES[0]
    tried = f"--methods full --ranks {RANK} --lrs {' '.join(map(str, RATES))} --seeds 0"
    sweep(f"{COMMON} {tried}", first, state / STYLES[0])
    full = f"--methods full --ranks {RANK} --lrs {best_rate(read_results(state / STYLES[0])):g}"
    for style, wrong in zip(STYLES, (*STYLES[1:], STYLES[0]), strict=True):
        for method in (full, LORA):
            sweep(f"{COMMON} {TEST} {method}", images / style, state / style)
        mixed = mix(images / style, images / wrong, state)
        sweep(f"{COMMON} {TEST} {LORA}", mixed, state / f"{style}-wrong")
        keep(state)


def sweep(options: str, images: Path, state: Path) -> None:
    args = arguments([*options.split(), "--instance_data_dir", str(images), "--output", str(state)])
    do_sweep(plan_sweep(args), state)


def best_rate(done: list[dict]) -> float:
    """Of full fine-tuning, by the held-out loss of the validation runs."""
    runs = [entry for entry in done if entry["run"]["part"] == "validation" and "curve" in entry]
    if not runs:
        raise ConfigError(f"full fine-tuning on {STYLES[0]} failed at every rate of {RATES}")
    return min(runs, key=lambda entry: entry["curve"][-1][1])["run"]["lr"]


def mix(right: Path, wrong: Path, state: Path) -> Path:
    """A folder whose two held-out tenths are the right images and whose training images are wrong ones.

    Its name has a hash of both folders' images, so that other ones make another folder.
    """
    images = images_of(right)
    training = {image.path.name for image in split(images, "test")[0]}
    digests = "".join(image.digest for image in (*images, *images_of(wrong)))
    folder = state / f"images-{right.name}-wrong-{hashlib.sha256(digests.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part.{os.getpid()}")
    part.mkdir(parents=True)
    for image in images:
        source = wrong if image.path.name in training else right
        for suffix in (".png", ".txt"):
            shutil.copy((source / image.path.name).with_suffix(suffix), part)
    if folder.is_dir():  # made by another process meanwhile
        shutil.rmtree(part)
    else:
        part.rename(folder)
    return folder


def images_of(folder: Path) -> list[TrainingImage]:
    return instance_images(base_config(arguments(["--instance_data_dir", str(folder), "--output", "x"])))


def keep(state: Path) -> None:
    """The runs so far, in short, where the report reads them."""
    lines = []
    for style in STYLES:
        for name, images in ((style, "right"), (f"{style}-wrong", "wrong")):
            for entry in filter(is_own, read_results(state / name)):
                lines.append(line_of(shortened(entry) | dict(task=style, images=images)))
    KEPT.mkdir(parents=True, exist_ok=True)
    write_text(KEPT / RESULTS, "".join(sorted(lines)))


def is_own(entry: dict) -> bool:
    """Not one of ranking.py, which shares the sweeps."""
    run = entry["run"]
    return run["rank"] == RANK and (
        run["method"] == "full" or (run["method"], run["lr"]) == ("our-lora", RATE)
    )


class Evidence(NamedTuple):
    """Of one style, held-out losses x 1000: the base's, and {seed: loss after the last step}."""

    base: float
    full: dict[int, float]
    lora: dict[int, float]
    wrong: dict[int, float]  # LoRA's, trained on another style's images

    @property
    def gains(self) -> list[float]:
        """Of full fine-tuning over the base."""
        return [self.base - loss for loss in self.full.values()]

    @property
    def gains_of_wrong(self) -> list[float]:
        return [self.base - loss for loss in self.wrong.values()]

    @property
    def gains_by_style(self) -> list[float]:
        """Of the right images over the wrong ones, by the same LoRA."""
        return [self.wrong[seed] - loss for seed, loss in self.lora.items()]

    @property
    def is_learned(self) -> bool:
        """Full fine-tuning gains FACTOR times the seeds' standard deviation."""
        return statistics.mean(self.gains) >= FACTOR * statistics.stdev(self.full.values())

    @property
    def by_the_right_images_alone(self) -> bool:
        """The first criterion: the wrong images gain less than that."""
        enough = FACTOR * statistics.stdev(self.lora.values())
        return self.is_learned and statistics.mean(self.gains_of_wrong) < enough

    @property
    def by_the_right_images_more(self) -> bool:
        """The second criterion: the right images gain that over the wrong ones."""
        noise = max(statistics.stdev(self.lora.values()), statistics.stdev(self.wrong.values()))
        return self.is_learned and statistics.mean(self.gains_by_style) >= FACTOR * noise


HEADS = ["style", "base", "gain of full", "sd", "gain of LoRA", "sd", "by wrong images", "sd LoRA - full"]
HEADS += ["first", "second"]  # criterion


def report() -> str:
    """The table, written to table.md.  Raises ConfigError without runs."""
    evidence = evidence_by_style()
    rows, variances = [], []
    for style in STYLES:
        if style not in evidence:
            rows.append([style, *[""] * (len(HEADS) - 2), "incomplete"])
            continue
        found = evidence[style]
        differences = [found.lora[seed] - found.full[seed] for seed in found.full]
        variances.append(statistics.variance(differences))
        row = [style, f"{found.base:.2f}"]
        row += [interval_text(found.gains), f"{statistics.stdev(found.full.values()):.2f}"]
        row += [f"{gain_of_lora(found):.2f}", f"{statistics.stdev(found.lora.values()):.2f}"]
        row += [interval_text(found.gains_of_wrong), f"{statistics.stdev(differences):.2f}"]
        row += [yes_or_no(found.by_the_right_images_alone), yes_or_no(found.by_the_right_images_more)]
        rows.append(row)
    text = markdown(HEADS, rows)
    if variances:
        spread = statistics.mean(variances) ** 0.5
        effects = ", ".join(f"{spread * detectable(n):.2f} with {n}" for n in (5, 10, 20))
        what = "LoRA less full fine-tuning x 1000, the smallest that a paired t-test detects with 80 % power"
        text += f"\n\n{what}: {effects} seeds."
        signals = [statistics.mean(f.gains) / statistics.stdev(f.full.values()) for f in evidence.values()]
        shares = [statistics.mean(f.gains_of_wrong) / gain_of_lora(f) for f in evidence.values()]
        least = math.floor(min(signals))
        text += f"\nFull fine-tuning gains at least {least} standard deviations; wrong images gain "
        text += f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of what the right ones do."
    write_text(KEPT / "table.md", text + "\n")
    save_figure(KEPT / "gains.png", lambda axis: plot_gains(axis, evidence), columns=1)
    return text


def gain_of_lora(found: Evidence) -> float:
    return found.base - statistics.mean(found.lora.values())


def plot_gains(axis, evidence: dict[str, Evidence]) -> None:
    """Each run's gain over the base, by style."""
    arms = {"full fine-tuning": "full", "LoRA, rank 16": "lora", "LoRA on wrong images": "wrong"}
    for number, (label, arm) in enumerate(arms.items()):
        places, gains = [], []
        for place, found in enumerate(evidence.values()):
            for loss in getattr(found, arm).values():
                places.append(place + 0.2 * (number - 1))
                gains.append(found.base - loss)
        axis.scatter(places, gains, s=14, color=f"C{number}", label=label)
    axis.set_xticks(range(len(evidence)), list(evidence), rotation=30, ha="right", fontsize=8)
    axis.axhline(0, color="gray", linewidth=1)
    axis.set_ylabel("loss of the base less the run's, x 1000")


def learned_styles() -> list[str]:
    """The styles that show learning, by the second criterion."""
    return [style for style, found in evidence_by_style().items() if found.by_the_right_images_more]


def evidence_by_style() -> dict[str, Evidence]:
    """Of the styles with all runs.  Raises ConfigError without runs."""
    done = [entry for entry in read_results(KEPT) if entry["run"]["part"] == "test" and "curve" in entry]
    if not done:
        raise ConfigError(f"{KEPT} holds no runs to report")
    found = {}
    for style in STYLES:
        full, lora = losses(done, style, "full"), losses(done, style, "our-lora")
        wrong = losses(done, style, "our-lora", "wrong")
        if min(len(full), len(lora), len(wrong)) >= SEEDS:
            base = next(1000 * entry["curve"][0][1] for entry in done if entry["task"] == style)
            found[style] = Evidence(base, full, lora, wrong)
    return found


def yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def interval_text(values: list[float]) -> str:
    """The mean with its 95 % t-interval."""
    low, high = t_interval(values)
    return f"{statistics.mean(values):+.2f} ({low:+.2f} to {high:+.2f})"


def losses(done: list[dict], style: str, method: str, images: str = "right") -> dict[int, float]:
    """{seed: 1000 x held-out loss after the last step}; of LoRA, at the rate of this experiment."""
    found = {}
    for entry in done:
        if (entry["task"], entry["run"]["method"], entry["images"]) == (style, method, images):
            found[entry["run"]["seed"]] = 1000 * entry["curve"][-1][1]
    return found


def detectable(n: int) -> float:
    """The mean difference, in standard deviations, that a paired t-test at 5 % detects with POWER."""
    limit = stats.t.ppf(0.975, n - 1)
    low, high = 0.0, 20.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        shifted = stats.nct(n - 1, middle * n**0.5)
        power = shifted.sf(limit) + shifted.cdf(-limit)
        low, high = (middle, high) if power < POWER else (low, middle)
    return high


if __name__ == "__main__":
    main()
