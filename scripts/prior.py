"""Does --prior_by_prediction keep the class? Its drift at equal subject similarity, with and without.

    python scripts/prior.py --state build/prior    # train, generate, score; the same command resumes
    python scripts/prior.py --report               # the tables alone, from docs/experiments/results/prior

Fixed before the runs: of each seed, the run with an option at its last step is compared with the run without
it at the same subject similarity, interpolated between that run's checkpoints and the base.
"""

import argparse
import shutil
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from gralora_diffusion import load_adapter, load_sdxl, sample
from gralora_diffusion.adapters.control import disabled
from gralora_diffusion.command_line import parse
from gralora_diffusion.config import EMBEDDED_DEFAULTS
from gralora_diffusion.data.dataset import instance, instance_images
from gralora_diffusion.evaluation.encoder_names import FOR_EMBEDDED
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.evaluation.image_sets import images_in
from gralora_diffusion.evaluation.similarity import rowwise, similarities
from gralora_diffusion.evaluation.statistics import mean_and_interval, t_interval
from gralora_diffusion.experiments.results import append_result, read_results
from gralora_diffusion.sdxl.base import encode_images, encode_prompts, predict, time_ids
from gralora_diffusion.training.loss import add_noise, draw_noise, noise_schedule
from gralora_diffusion.training.train import train

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "prior"
WITHOUT, PREDICTION, IMAGES = "without", "--prior_by_prediction", "--with_prior_preservation"
WAYS = (WITHOUT, PREDICTION, IMAGES)
CLASS_PROMPT, CLASS_IMAGES = "a photo of a robot", 100
PLACES = ("", " on the grass", " at night", " on a blue background")
CLASS = [f"{what}{place}" for what in (CLASS_PROMPT, "a drawing of a robot") for place in PLACES]
SCORES = ("subject", "class drift", "class leak")


class Part(NamedTuple):
    """Runs with one trigger word: their seeds, the steps that are scored, and the ways to train."""

    trigger: str
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    ways: tuple[str, ...] = WAYS

    def scored(self, way: str) -> tuple[int, ...]:
        """The steps of a way; 0 is the base.  Of the options, the comparison needs the last step alone."""
        if way == WITHOUT:
            return (0, *self.steps)
        return self.steps if self == IGNORED else self.steps[-1:]

    def prompts(self) -> list[str]:
        """Of the subject."""
        return [f"a photo of {self.trigger} robot{place}" for place in PLACES]

    def predicted(self) -> tuple[str, ...]:
        """Prompts whose predictions are compared with the base's."""
        return (CLASS_PROMPT, "a drawing of a robot at night", f"a photo of {self.trigger} robot")


TEST = Part("zwx", (411, 412, 413, 414, 415), (25, 50, 100, 150))
# The base was trained to ignore this word, so that the subject and its class have nearly the same embeddings.
IGNORED = Part("sks", (401, 402, 403, 404, 405), (50, 100, 200, 300), (WITHOUT, PREDICTION))


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--state", type=Path, default=Path("build/prior"), help="folder of runs and images")
    parser.add_argument("--report", action="store_true", help="print the table of the runs that are kept")
    args = parser.parse_args()
    if not args.report:
        KEPT.mkdir(parents=True, exist_ok=True)
        for part in (IGNORED, TEST):
            compare_prompts(part)
            for seed in part.seeds:
                for way in part.ways:
                    make(args.state, part, seed, way)
                    compare_predictions(args.state, part, seed, way)
        draw_grid(args.state, TEST, TEST.seeds[0])
    table = "\n".join([*lines(TEST), "", *lines(IGNORED)])
    (KEPT / "table.md").write_text(f"{table}\n")
    print(table)


def run_folder(state: Path, part: Part, seed: int, way: str) -> Path:
    return state / f"{part.trigger}-{seed}-{way.strip('-')}"


def dataset(state: Path, part: Part) -> Path:
    """A copy of the bundled images, with the trigger word in their captions."""
    folder = state / f"images-{part.trigger}"
    if not folder.is_dir():
        draft = state / f"draft-{part.trigger}"
        shutil.copytree(instance(parse("", []))[0], draft, dirs_exist_ok=True)
        for caption in draft.glob("*.txt"):
            caption.write_text(caption.read_text().replace("sks", part.trigger))
        draft.rename(folder)
    return folder


def options(state: Path, part: Part, seed: int, way: str) -> list[str]:
    words = f"--seed {seed} --learning_rate 1e-3 --max_train_steps {part.steps[-1]} --checkpointing_steps 25"
    words = [
        *words.split(),
        "--skip_final_inference",
        "--output_dir",
        str(run_folder(state, part, seed, way)),
    ]
    words += ["--instance_data_dir", str(dataset(state, part))]
    words += ["--instance_prompt", f"a photo of {part.trigger} robot"]
    if way != WITHOUT:
        words += [way, "--class_prompt", CLASS_PROMPT]
    if way == IMAGES:  # the same for all seeds, as a user would generate them once
        words += ["--class_data_dir", str(state / "class"), "--num_class_images", str(CLASS_IMAGES)]
    return words


def make(state: Path, part: Part, seed: int, way: str) -> None:
    """Train, then generate and score what is missing in KEPT."""
    run = run_folder(state, part, seed, way)
    for step in part.scored(way):
        about = dict(trigger=part.trigger, seed=seed, way=way, step=step)
        if any(entry["run"] == about for entry in read_results(KEPT)):
            continue
        if step and not (run / f"checkpoint-{part.steps[-1]}").is_dir():
            train(parse("", options(state, part, seed, way)))
        base = state / f"{part.trigger}-{seed}-base"
        if not base.is_dir():
            draw(base, part, seed, None)
        folder = run / f"images-{step}" if step else base
        if not folder.is_dir():
            draw(folder, part, seed, run / f"checkpoint-{step}")
        append_result(KEPT, {"run": about, "means": scored(folder, base)})


def compare_predictions(state: Path, part: Part, seed: int, way: str) -> None:
    """Keep how far the last step's predictions are from the base's, with prompts of the class and without."""
    about = dict(trigger=part.trigger, seed=seed, way=way, step=part.steps[-1], what="predictions")
    if any(entry["run"] == about for entry in read_results(KEPT)):
        return
    pipeline = load_sdxl()
    checkpoint = run_folder(state, part, seed, way) / f"checkpoint-{part.steps[-1]}"
    load_adapter(pipeline, checkpoint, name="robot")
    means = {}
    with torch.no_grad():
        noisy, timesteps, sizes = noisy_images(pipeline, seed)
        for prompt in part.predicted():
            prompts = encode_prompts(pipeline, [prompt] * len(noisy))
            adapted = predict(pipeline.unet, noisy, timesteps, prompts, sizes)
            with disabled([pipeline.unet]):
                of_base = predict(pipeline.unet, noisy, timesteps, prompts, sizes)
            means[prompt] = round((adapted - of_base).square().mean().item(), 6)
    append_result(KEPT, {"run": about, "means": means})


@torch.no_grad()
def compare_prompts(part: Part) -> None:
    """Keep how far the base's predictions with the subject's prompt are from those with the class prompt."""
    about = dict(trigger=part.trigger, what="prompts")
    if any(entry["run"] == about for entry in read_results(KEPT)):
        return
    pipeline = load_sdxl()
    noisy, timesteps, sizes = noisy_images(pipeline, part.seeds[0])
    found = []
    for prompt in (part.prompts()[0], CLASS_PROMPT):
        prompts = encode_prompts(pipeline, [prompt] * len(noisy))
        found.append(predict(pipeline.unet, noisy, timesteps, prompts, sizes))
    difference = (found[0] - found[1]).square().mean().item()
    append_result(KEPT, {"run": about, "means": {"difference": round(difference, 6)}})


def noisy_images(pipeline, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noisy training images, at timesteps over the whole schedule, their time_ids())"""
    schedule = noise_schedule(pipeline.scheduler)
    pixels = [image.open().resize((64, 64)) for image in instance_images(parse("", []))]
    pixels = torch.cat([pipeline.image_processor.preprocess(image) for image in pixels])
    latents = encode_images(pipeline.vae, pixels)[:, 0].repeat(8, 1, 1, 1)
    _, noise, _ = draw_noise(latents.shape[1:], len(schedule), seed, range(len(latents)))
    timesteps = torch.arange(len(latents)) * len(schedule) // len(latents)
    sizes = time_ids((64, 64), (0, 0), (64, 64)).expand(len(latents), 6)
    return add_noise(latents, noise, timesteps, schedule), timesteps, sizes


def draw(folder: Path, part: Part, seed: int, adapter: Path | None) -> None:
    """The images of all prompts from the same noise, by the base or an adapter."""
    pipeline = load_sdxl()
    if adapter:
        load_adapter(pipeline, adapter, name="robot")
    how = dict(guidance_scale=EMBEDDED_DEFAULTS["guidance_scale"], batch_size=16)
    images = sample(pipeline, [*part.prompts(), *CLASS], 10 * seed, 2, **how)
    draft = folder.with_name(f"{folder.name}-draft")
    draft.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(draft / f"{number:02d}.png")
    draft.rename(folder)


def draw_grid(state: Path, part: Part, seed: int) -> None:
    """Rows: the base, and each way's last step; columns: the first image of each prompt."""
    rows = [state / f"{part.trigger}-{seed}-base"]
    rows += [run_folder(state, part, seed, way) / f"images-{part.steps[-1]}" for way in part.ways]
    if not all(row.is_dir() for row in rows):
        return
    names = [f"{2 * number:02d}.png" for number in range(len(PLACES) + len(CLASS))]
    grid = Image.new("RGB", (64 * len(names), 64 * len(rows)))
    for y, row in enumerate(rows):
        for x, name in enumerate(names):
            grid.paste(Image.open(row / name), (64 * x, 64 * y))
    grid.save(KEPT / "images.png", optimize=True)


def scored(folder: Path, base: Path) -> dict[str, float]:
    """Means over images and encoders: subject similarity; class prompts' drift and leak."""
    found = {name: [] for name in SCORES}
    first = 2 * len(PLACES)
    for name in FOR_EMBEDDED:
        encoder = load_encoder(name)
        ours, bases = (image_features(encoder, images_in(place)) for place in (folder, base))
        references = image_features(encoder, images_in(instance(parse("", []))[0]), (64, 64))
        found["subject"].append(similarities(ours[:first], references).mean().item())
        found["class leak"].append(similarities(ours[first:], references).mean().item())
        found["class drift"].append(((1 - rowwise(ours[first:], bases[first:])) / 2).mean().item())
    return {name: round(statistics.mean(values), 6) for name, values in found.items()}


def value(part: Part, seed: int, way: str, step: int, score: str, **what: str) -> float:
    about = dict(trigger=part.trigger, seed=seed, way=way, step=step, **what)
    (entry,) = (e for e in read_results(KEPT) if e["run"] == about)
    return entry["means"][score]


def at_equal_subject(part: Part, seed: int, way: str, score: str) -> float:
    """The score of a way at the last step, less that without it at the same subject similarity."""
    points = []
    for step in (0, *part.steps):
        points.append((value(part, seed, WITHOUT, step, "subject"), value(part, seed, WITHOUT, step, score)))
    subject = value(part, seed, way, part.steps[-1], "subject")
    plain = np.interp(subject, *zip(*sorted(points), strict=True))
    return value(part, seed, way, part.steps[-1], score) - float(plain)


def lines(part: Part) -> list[str]:
    """A table: means over the seeds, then the differences at equal subject similarity."""
    head = f"| {part.trigger} robot, {len(part.seeds)} seeds | steps | {' | '.join(SCORES)} |"
    table = [head, "|---" * 5 + "|"]
    for way in part.ways:
        for step in part.scored(way):
            cells = []
            for score in SCORES:
                mean = statistics.mean(value(part, seed, way, step, score) for seed in part.seeds)
                cells.append(f"{mean:.3f}".replace("0.", "."))
            table.append(f"| {way if step else 'the base'} | {step} | {' | '.join(cells)} |")
    about = dict(trigger=part.trigger, what="prompts")
    (entry,) = (e for e in read_results(KEPT) if e["run"] == about)
    prompts = f"{part.prompts()[0]} and {CLASS_PROMPT}: {1000 * entry['means']['difference']:.2g}"
    table.append(f"| the base: squared difference of predictions | 0 | {prompts} | | |")
    last = part.steps[-1]
    for way in part.ways:
        cells = []
        for prompt in part.predicted():
            found = [value(part, seed, way, last, prompt, what="predictions") for seed in part.seeds]
            cells.append(f"{prompt}: {1000 * statistics.mean(found):.0f}")
        table.append(f"| {way}: squared change of predictions | {last} | {' | '.join(cells)} |")
    for way in part.ways[1:]:
        for score in SCORES[1:]:
            gains = [at_equal_subject(part, seed, way, score) for seed in part.seeds]
            found = mean_and_interval(torch.tensor(gains))
            low, high = t_interval(gains)
            text = f"{found['mean']:+.3f}, BCa {found['low']:+.3f} to {found['high']:+.3f}"
            table.append(f"| {way}: {score} at equal subject | | | {text}, t {low:+.3f} to {high:+.3f} | |")
    return table


if __name__ == "__main__":
    main()
