"""Does --prior_by_prediction keep the class? Its drift at equal subject similarity, with and without.

    python scripts/prior.py --state build/prior    # train, generate, score; the same command resumes
    python scripts/prior.py --report               # the table alone, from docs/experiments/results/prior

Fixed before the runs: of each seed, the run with the option at its last step is compared with the run without
it at the same subject similarity, interpolated between that run's checkpoints and the base.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

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
from gralora_diffusion.evaluation.statistics import t_interval
from gralora_diffusion.experiments.results import append_result, read_results
from gralora_diffusion.sdxl.base import encode_images, encode_prompts, predict, time_ids
from gralora_diffusion.training.loss import add_noise, draw_noise, noise_schedule
from gralora_diffusion.training.train import train

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "prior"
SEEDS = (401, 402, 403, 404, 405)
STEPS = (50, 100, 200, 300)
WAYS = {
    "without": "",
    "--prior_by_prediction": "--prior_by_prediction --class_prompt a_photo_of_a_robot",
}
PLACES = ("", " on the grass", " at night", " on a blue background")
SUBJECT = [f"a photo of sks robot{place}" for place in PLACES]
CLASS = [f"{what}{place}" for what in ("a photo of a robot", "a drawing of a robot") for place in PLACES]
PREDICTED = ("a photo of a robot", "a drawing of a robot at night", "a photo of sks robot")
SCORES = ("subject", "class drift", "class leak")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--state", type=Path, default=Path("build/prior"), help="folder of runs and images")
    parser.add_argument("--report", action="store_true", help="print the table of the runs that are kept")
    args = parser.parse_args()
    if not args.report:
        KEPT.mkdir(parents=True, exist_ok=True)
        for seed in SEEDS:
            for way in WAYS:
                make(args.state, seed, way)
                compare_predictions(args.state, seed, way)
    table = "\n".join(lines())
    (KEPT / "table.md").write_text(f"{table}\n")
    print(table)


def make(state: Path, seed: int, way: str) -> None:
    """Train, then generate and score what is missing in KEPT."""
    run = state / f"seed-{seed}-{way.strip('-')}"
    words = f"--seed {seed} --max_train_steps {STEPS[-1]} --checkpointing_steps 50 --skip_final_inference"
    words = [*words.split(), "--output_dir", str(run)]
    words += [word.replace("_of_a_", " of a ").replace("a_photo", "a photo") for word in WAYS[way].split()]
    for step in (0, *STEPS):
        about = dict(seed=seed, way=way, step=step)
        if any(entry["run"] == about for entry in read_results(KEPT)):
            continue
        if step and not (run / f"checkpoint-{STEPS[-1]}").is_dir():
            train(parse("", words))
        base = state / f"seed-{seed}-base"
        folder = run / f"images-{step}" if step else base
        if not folder.is_dir():
            draw(folder, seed, run / f"checkpoint-{step}" if step else None)
        append_result(KEPT, {"run": about, "means": scored(folder, base)})


def compare_predictions(state: Path, seed: int, way: str) -> None:
    """Keep how far the last step's predictions are from the base's, with prompts of the class and without."""
    about = dict(seed=seed, way=way, step=STEPS[-1], what="predictions")
    if any(entry["run"] == about for entry in read_results(KEPT)):
        return
    pipeline = load_sdxl()
    load_adapter(pipeline, state / f"seed-{seed}-{way.strip('-')}" / f"checkpoint-{STEPS[-1]}", name="robot")
    schedule = noise_schedule(pipeline.scheduler)
    means = {}
    with torch.no_grad():
        pixels = [image.open().resize((64, 64)) for image in instance_images(parse("", []))]
        pixels = torch.cat([pipeline.image_processor.preprocess(image) for image in pixels])
        latents = encode_images(pipeline.vae, pixels)[:, 0].repeat(8, 1, 1, 1)
        _, noise, _ = draw_noise(latents.shape[1:], len(schedule), seed, range(len(latents)))
        timesteps = torch.arange(len(latents)) * len(schedule) // len(latents)
        noisy = add_noise(latents, noise, timesteps, schedule)
        sizes = time_ids((64, 64), (0, 0), (64, 64)).expand(len(latents), 6)
        for prompt in PREDICTED:
            inputs = noisy, timesteps, encode_prompts(pipeline, [prompt] * len(latents)), sizes
            adapted = predict(pipeline.unet, *inputs)
            with disabled([pipeline.unet]):
                of_base = predict(pipeline.unet, *inputs)
            means[prompt] = round((adapted - of_base).square().mean().item(), 6)
    append_result(KEPT, {"run": about, "means": means})


def draw(folder: Path, seed: int, adapter: Path | None) -> None:
    """The images of all prompts from the same noise, by the base or an adapter."""
    pipeline = load_sdxl()
    if adapter:
        load_adapter(pipeline, adapter, name="robot")
    how = dict(guidance_scale=EMBEDDED_DEFAULTS["guidance_scale"], batch_size=16)
    images = sample(pipeline, [*SUBJECT, *CLASS], 10 * seed, 2, **how)
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:02d}.png")


def scored(folder: Path, base: Path) -> dict[str, float]:
    """Means over images and encoders: subject similarity; class prompts' drift and leak."""
    found = {name: [] for name in SCORES}
    first = 2 * len(SUBJECT)
    for name in FOR_EMBEDDED:
        encoder = load_encoder(name)
        ours, bases = (image_features(encoder, images_in(place)) for place in (folder, base))
        references = image_features(encoder, images_in(instance(parse("", []))[0]), (64, 64))
        found["subject"].append(similarities(ours[:first], references).mean().item())
        found["class leak"].append(similarities(ours[first:], references).mean().item())
        found["class drift"].append(((1 - rowwise(ours[first:], bases[first:])) / 2).mean().item())
    return {name: round(statistics.mean(values), 6) for name, values in found.items()}


def value(seed: int, way: str, step: int, score: str) -> float:
    (entry,) = (e for e in read_results(KEPT) if e["run"] == dict(seed=seed, way=way, step=step))
    return entry["means"][score]


def prediction(seed: int, way: str, prompt: str) -> float:
    about = dict(seed=seed, way=way, step=STEPS[-1], what="predictions")
    (entry,) = (e for e in read_results(KEPT) if e["run"] == about)
    return entry["means"][prompt]


def at_equal_subject(seed: int, score: str) -> float:
    """The score with the option at the last step, less that without it at the same subject similarity."""
    ours, plain = "--prior_by_prediction", "without"
    points = sorted(
        (value(seed, plain, step, "subject"), value(seed, plain, step, score)) for step in (0, *STEPS)
    )
    subject = value(seed, ours, STEPS[-1], "subject")
    return value(seed, ours, STEPS[-1], score) - float(np.interp(subject, *zip(*points, strict=True)))


def lines() -> list[str]:
    """The table: means over the seeds, then the differences at equal subject similarity."""
    table = [f"| {len(SEEDS)} seeds | steps | {' | '.join(SCORES)} |", "|---" * 5 + "|"]
    for way in WAYS:
        for step in (0, *STEPS) if way == "without" else STEPS:
            cells = []
            for score in SCORES:
                mean = statistics.mean(value(seed, way, step, score) for seed in SEEDS)
                cells.append(f"{mean:.3f}".replace("0.", "."))
            table.append(f"| {way if step else 'the base'} | {step} | {' | '.join(cells)} |")
    for way in WAYS:
        cells = []
        for prompt in PREDICTED:
            found = [prediction(seed, way, prompt) for seed in SEEDS]
            cells.append(f"{prompt}: {1000 * statistics.mean(found):.0f}")
        table.append(f"| {way}: 1000 x squared change of predictions | {STEPS[-1]} | {' | '.join(cells)} |")
    for score in SCORES[1:]:
        gains = [at_equal_subject(seed, score) for seed in SEEDS]
        found = bootstrap((gains,), np.mean, method="BCa", n_resamples=10_000, rng=np.random.default_rng(0))
        low, high = found.confidence_interval
        text = f"{statistics.mean(gains):+.3f}, BCa {low:+.3f} to {high:+.3f}"
        t_low, t_high = t_interval(gains)
        table.append(f"| {score} at equal subject | | | {text}, t {t_low:+.3f} to {t_high:+.3f} | |")
    return table


if __name__ == "__main__":
    main()
