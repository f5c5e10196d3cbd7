"""Choose the steps and the learning rate of `gralora demo`, and test the choice on other seeds and prompts.

    python scripts/demo_sweep.py --state build/demo    # train, generate, score; the same command resumes
    python scripts/demo_sweep.py --report              # the table alone, from docs/experiments/results/demo

The rule, chosen(), was fixed before the runs.  Checkpoints of one run serve as shorter runs, which a constant
rate makes the same.
"""

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

from gralora_diffusion import load_adapter, load_sdxl, sample
from gralora_diffusion.command_line import parse
from gralora_diffusion.config import EMBEDDED_DEFAULTS
from gralora_diffusion.data.dataset import instance
from gralora_diffusion.evaluation.encoder_names import FOR_EMBEDDED
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.evaluation.image_sets import ImageSet, References, images_in
from gralora_diffusion.evaluation.metrics import evaluate
from gralora_diffusion.evaluation.statistics import t_interval
from gralora_diffusion.experiments.results import append_result, read_results
from gralora_diffusion.training.train import train

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "demo"
SCORES = ("subject imagenet", "subject embedded", "prompt embedded")
EQUAL = 0.01
IMAGES = 3  # per prompt


class Setting(NamedTuple):
    steps: int
    rate: float


class Part(NamedTuple):
    """Training seeds, and prompts, separated by |; the images of seed s start from the noise of 10 s + n."""

    seeds: tuple[int, ...]
    prompts: str


DEFAULT = Setting(600, 1e-3)
BASE = Setting(0, 1e-3)  # without an adapter
SHORT = Setting(150, 2e-3)  # another rule's choice: docs/experiments/README.md
GRID = [Setting(steps, rate) for rate in (5e-4, 1e-3, 2e-3) for steps in (100, 150, 200, 300, 400, 600)]
SELECTION = Part(
    (101, 102, 103),
    """sks robot on the grass | sks robot at night | sks robot on a black background
    | sks robot on an orange background | sks robot on a brown background | sks robot next to a banana
    | a drawing of sks robot on the grass | a 3d render of sks robot at night""",
)
TEST = Part(
    (201, 202, 203, 204, 205),
    """sks robot at sunset | a drawing of sks robot | sks robot on a purple background
    | sks robot next to a red apple on a white background | a photo of sks robot on the beach
    | a photo of sks robot in the snow | sks robot on a blue background | sks robot on a red background
    | a drawing of sks robot on the beach | a 3d render of sks robot in the snow
    | sks robot next to a cat | sks robot next to a dog at sunset""",
)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    about = "folder of runs and images (default: build/demo)"
    parser.add_argument("--state", type=Path, default=Path("build/demo"), help=about)
    parser.add_argument("--report", action="store_true", help="print the table of the runs that are kept")
    args = parser.parse_args()
    if not args.report:
        KEPT.mkdir(parents=True, exist_ok=True)
        make(args.state, SELECTION, [BASE, *GRID])
        make(args.state, TEST, [BASE, DEFAULT, chosen(), SHORT])
    table = "\n".join(lines())
    (KEPT / "table.md").write_text(f"{table}\n")
    print(table)


def make(state: Path, part: Part, settings: list[Setting]) -> None:
    """Train, generate and score what is missing in KEPT; each result is a line there."""
    prompts = [" ".join(prompt.split()) for prompt in part.prompts.split("|")]
    for seed in part.seeds:
        for setting in dict.fromkeys(settings):  # each once
            if {"seed": seed, **setting._asdict()} not in [entry["run"] for entry in read_results(KEPT)]:
                run = state / f"seed-{seed}-rate-{setting.rate:g}"
                of_rate = [other.steps for other in settings if other.rate == setting.rate]
                adapter = trained(run, seed, setting, max(of_rate)) if setting.steps else None
                scores = scored(run / f"images-{setting.steps}", prompts, seed, adapter)
                append_result(KEPT, {"run": {"seed": seed, **setting._asdict()}, "means": scores})


def trained(run: Path, seed: int, setting: Setting, steps: int) -> Path:
    """The checkpoint of this setting, by a run of `steps` as `gralora demo` makes it."""
    checkpoint = run / f"checkpoint-{setting.steps}"
    if not (run / f"checkpoint-{steps}").is_dir():
        words = f"--gralora_rank 64 --seed {seed} --learning_rate {setting.rate} --max_train_steps {steps}"
        words += f" --checkpointing_steps 50 --skip_final_inference --output_dir {run}"
        train(parse("", words.split()))
    return checkpoint


def scored(folder: Path, prompts: list[str], seed: int, adapter: Path | None) -> dict[str, float]:
    """{score: mean over the images} of the base, or of an adapter."""
    pipeline = load_sdxl()
    if adapter:
        load_adapter(pipeline, adapter, name="robot")
    guidance = EMBEDDED_DEFAULTS["guidance_scale"]
    images = sample(pipeline, prompts, 10 * seed, IMAGES, guidance_scale=guidance, batch_size=16)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:02d}.png")
    texts = [prompt for prompt in prompts for _ in range(IMAGES)]
    generated = ImageSet("generated", images_in(folder), texts)
    subject = References(references=images_in(instance(parse("", []))[0]), size=images[0].size)
    encoders = [load_encoder(name, "cpu") for name in FOR_EMBEDDED]
    found = evaluate(encoders, [generated], subject, image_features)["scores"]
    by_encoder = {encoder.name: name for encoder, name in zip(encoders, FOR_EMBEDDED, strict=True)}
    means = {f"{entry['score']} {by_encoder[entry['encoder']]}": entry["mean"] for entry in found}
    return {name: round(means[name], 6) for name in SCORES}


def values(part: Part, setting: Setting, score: str) -> list[float]:
    """A score of each seed of a part."""
    found = {}
    for entry in read_results(KEPT):
        if Setting(entry["run"]["steps"], entry["run"]["rate"]) == setting:
            found[entry["run"]["seed"]] = entry["means"][score]
    return [found[seed] for seed in part.seeds]


def chosen() -> Setting:
    """As near to the subject as DEFAULT, and of these the nearest to the prompt; of equals the shortest.

    Near and equal are at most EQUAL below, the first by both encoders.
    """
    *subject, prompt = SCORES
    near = GRID
    for score in subject:
        near = [setting for setting in near if mean(setting, score) >= mean(DEFAULT, score) - EQUAL]
    best = max(mean(setting, prompt) for setting in near)
    return min(setting for setting in near if mean(setting, prompt) >= best - EQUAL)


def mean(setting: Setting, score: str) -> float:
    return statistics.mean(values(SELECTION, setting, score))


def lines() -> list[str]:
    """The table: means over the training seeds, then two settings minus the default, by Student's t."""
    table = [f"| part, n seeds | steps | rate | {' | '.join(SCORES)} |", "|---" * 6 + "|"]
    table += [row("selection", SELECTION, setting) for setting in (BASE, *GRID)]
    table += [row("test", TEST, setting) for setting in (BASE, DEFAULT, chosen(), SHORT)]
    return [*table, difference(chosen()), difference(SHORT)]


def difference(choice: Setting) -> str:
    cells = []
    for score in SCORES:
        pairs = zip(values(TEST, choice, score), values(TEST, DEFAULT, score), strict=True)
        gains = [one - other for one, other in pairs]
        low, high = t_interval(gains)
        cells.append(short(f"{statistics.mean(gains):+.3f} ({low:+.3f} to {high:+.3f})"))
    steps = f"{choice.steps} minus {DEFAULT.steps}"
    return f"| test, {len(TEST.seeds)}: 95 % t | {steps} | | {' | '.join(cells)} |"


def row(name: str, part: Part, setting: Setting) -> str:
    means = [short(f"{statistics.mean(values(part, setting, score)):.3f}") for score in SCORES]
    return f"| {name}, {len(part.seeds)} | {setting.steps} | {setting.rate:g} | {' | '.join(means)} |"


def short(text: str) -> str:
    """Numbers without the zero before the point."""
    return text.replace("0.", ".")


if __name__ == "__main__":
    main()
