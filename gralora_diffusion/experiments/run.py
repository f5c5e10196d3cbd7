"""One run of a sweep: an adapter trained with the trainer's own loop, looked at while it learns, and scored."""

import dataclasses
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from PIL import Image

from gralora_diffusion.adapters import allocation, allocation_file
from gralora_diffusion.adapters.control import set_strength
from gralora_diffusion.adapters.gradient_init import SEARCHED
from gralora_diffusion.adapters.gradients import HELD_OUT, stratified
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import plan_batches
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.encode import encode_captions
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.evaluation.encoders import Encoder
from gralora_diffusion.evaluation.metrics import ImageSet, References, measure
from gralora_diffusion.experiments.analysis import HELD_OUT_LOSS
from gralora_diffusion.experiments.methods import GRADIENTS, Adapted, Spec, adapt, config_of, ours
from gralora_diffusion.experiments.queue import name_of
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.sdxl.load import load_sdxl
from gralora_diffusion.sdxl.sampling import draw
from gralora_diffusion.training.accelerator import DTYPES
from gralora_diffusion.training.loop import NotFinite, Optimization, run_steps
from gralora_diffusion.training.loss import draw_noise
from gralora_diffusion.training.memory import forget_peak, peak_memory
from gralora_diffusion.training.objective import objective
from gralora_diffusion.training.optim import make_optimizer, make_schedule
from gralora_diffusion.training.setup import make_trainable, with_base_defaults
from gralora_diffusion.training.signals import Interrupts, Stopped

HELD_OUT_BATCHES = 8


@dataclass
class Experiment:
    """What all runs of a sweep have in common.  prompts: what is drawn, with references to compare with; else the captions of `held`.

    every: steps between two looks at the held-out loss;  strengths: of the adapter, that images are drawn at;
    drift: prompts without the subject, whose images are compared with the base's.
    """

    folder: Path
    config: TrainConfig
    accelerator: object
    images: list[TrainingImage]
    held: list[TrainingImage]
    prompts: list[str]
    encoders: list[Encoder]
    features: Callable
    every: int | None = None
    strengths: list[float] = field(default_factory=lambda: [1.0])
    drift: list[str] = field(default_factory=list)

    def scored(self) -> list[str]:
        return self.prompts or [image.caption for image in self.held]

    def wanted(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every image of a run: first those that are scored, then those of the drift."""
        return [
            pair
            for prompts in (self.scored(), self.drift)
            for pair in zip(prompts, range(len(prompts)), strict=True)
        ]


def run_experiment(run: dict, bench: Experiment, interrupts: Interrupts) -> dict:
    """One run of the sweep, with run_steps() and objective() as every training: its losses, scores, and costs.

    A run whose loss is not finite has `failed` in place of scores: that is a result too.  Raises Stopped after a signal.
    """
    config = dataclasses.replace(
        bench.config, seed=run["seed"], learning_rate=run["lr"], max_train_steps=run["steps"]
    )
    accelerator, folder = bench.accelerator, bench.folder / "runs" / name_of(run)
    dtype = DTYPES[config.mixed_precision or "no"]
    pipeline = load_sdxl(config.pretrained_model_name_or_path, dtype=dtype).to(accelerator.device)
    config, cache = (
        with_base_defaults(config, pipeline, bench.images, config.mixed_precision or "no", 1),
        Cache(bench.folder / "cache"),
    )
    learnt = plan_batches(bench.images, [], pipeline.vae, config, cache, accelerator)
    held = plan_batches(
        bench.held or bench.images,
        [],
        pipeline.vae,
        dataclasses.replace(config, seed=0),
        cache,
        accelerator,
    )
    encode = encode_captions(sorted({*learnt.captions(), *held.captions()}), pipeline, cache, accelerator)

    def loss_over(series, draw=draw_noise) -> Callable:
        return objective(
            pipeline.unet, pipeline.scheduler, series, encode, series.config, accelerator, dtype, draw
        )

    base = base_images(pipeline, bench, config)
    loss_of, even = loss_over(learnt), loss_over(held, stratified(draw_noise))
    spec = Spec(run["method"], run["size"], run.get("k"), run["seed"], config.adapter.targets)
    adapted = adapt(pipeline.unet, spec, lambda index: without_gradient(loss_of, index))
    make_trainable(dict(unet=pipeline.unet), config)
    found = {}
    if run["method"] in GRADIENTS:
        gradients_of = loss_over(learnt, stratified(draw_noise))
        adapted, found["gradients"] = from_gradients(
            spec, pipeline.unet, gradients_of, config, accelerator, folder
        )
    found["parameters"] = sum(p.numel() for p in adapted.parameters.values())
    optimizer = make_optimizer(adapted.groups(run["lr"], config.adam_weight_decay), config)
    optimization = Optimization(
        accelerator.prepare(optimizer),
        make_schedule(optimizer, config, run["steps"]),
        None,
        accelerator.scaler,
    )
    lines, curve = [], []

    def look(step: int) -> None:
        if bench.every and step % bench.every == 0:
            curve.append([step, held_out_loss(pipeline.unet, even)])

    look(0)
    forget_peak(accelerator.device)
    try:
        for line, stopping in run_steps(optimization, loss_of, config, accelerator, interrupts, run["steps"]):
            lines.append(line)
            look(line["step"])
            if stopping:
                raise Stopped(f"stopped in {name_of(run)}, which the same command begins again")
    except NotFinite as error:
        return found | dict(failed=str(error))
    found |= costs(lines, accelerator.device) | (dict(curve=curve) if curve else {})
    adapted.save(folder / "adapter.safetensors")
    pipeline.unet.eval()
    scores = {}
    if bench.held:
        fixed = loss_over(held)
        scores[HELD_OUT_LOSS] = [
            round(without_gradient(fixed, index).item(), 6) for index in range(HELD_OUT_BATCHES)
        ]
    scores |= scores_of(pipeline, bench, config, folder, base)
    return found | dict(file_bytes=(folder / "adapter.safetensors").stat().st_size, scores=scores)


def costs(lines: list[dict], device: torch.device) -> dict:
    losses = [round(line["loss"], 5) for line in lines]
    return dict(
        seconds_per_step=statistics.median(line["seconds"] for line in lines),
        peak_memory=peak_memory(device),
        losses=losses,
    )


def from_gradients(
    spec: Spec, unet, loss_of: Callable, config: TrainConfig, accelerator, folder: Path
) -> tuple[Adapted, dict]:
    """Ranks, k and start from the gradients of loss_of, as train_sdxl.py takes them: what trains, and what it cost.

    batches: run forward and backward;  looks: forward alone, for gamma.
    """
    began = time.monotonic()
    config = dataclasses.replace(config, adapter=config_of(spec), **GRADIENTS[spec.method]).resolved()
    allocation.apply(dict(unet=unet), loss_of, config, accelerator, folder)
    facts = json.loads((folder / allocation_file.FILE).read_text())
    cost = dict(batches=facts["batches_run"], looks=SEARCHED * len(facts.get("held_out_loss", ())))
    ks, ranks = (
        Counter(row["k"] for row in facts["layers"].values()),
        [row["rank"] for row in facts["layers"].values()],
    )
    chosen = dict(
        gamma=facts.get("gamma"), ranks=[min(ranks), max(ranks)], layers_by_k=dict(sorted(ks.items()))
    )
    return ours(unet, spec), cost | chosen | dict(seconds=round(time.monotonic() - began, 2))


@torch.no_grad()
def without_gradient(loss_of: Callable, index: int) -> torch.Tensor:
    return loss_of(index)


def held_out_loss(unet, loss_of: Callable) -> float:
    """The mean loss of batches that no run trains on or searches with, the same for all runs; the timesteps cover the schedule evenly."""
    unet.eval()
    losses = [
        without_gradient(loss_of, HELD_OUT + SEARCHED + index).item() for index in range(HELD_OUT_BATCHES)
    ]
    unet.train()
    return round(statistics.mean(losses), 6)


def base_images(pipeline, bench: Experiment, config: TrainConfig) -> list[Path]:
    """The base's own images of all that a run draws: drawn by the first run, and kept for the others."""
    wanted = bench.wanted()
    base = (
        [config.pretrained_model_name_or_path, str(pipeline.unet.dtype)]
        if config.pretrained_model_name_or_path
        else []
    )
    key = json.dumps([wanted, config.num_inference_steps, config.guidance_scale, config.resolution, *base])
    folder = bench.folder / "base" / hashlib.sha256(key.encode()).hexdigest()[:12]
    with FileLock(bench.folder / ".base.lock"):
        paths = [folder / f"{i:03d}.png" for i in range(len(wanted))]
        return (
            paths if all(path.is_file() for path in paths) else save_images(pipeline, wanted, config, folder)
        )


def save_images(pipeline, wanted: list[tuple[str, int]], config: TrainConfig, folder: Path) -> list[Path]:
    images = draw(pipeline, wanted, config.num_inference_steps, config.guidance_scale)
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        with complete_or_absent(path) as part:
            image.save(part, "PNG")
    return paths


def scores_of(
    pipeline, bench: Experiment, config: TrainConfig, folder: Path, base: list[Path]
) -> dict[str, list[float]]:
    """{score: a value per image} of what is drawn at each strength: "paired, ENCODER", and "paired, ENCODER at 0.5" for half of it.

    The base's scores stand beside them as strength 0.
    """
    scores = {}
    for strength in bench.strengths:
        if bench.strengths != [1.0]:  # other programs' adapters have none
            set_strength(pipeline.unet, strength)
        paths = save_images(
            pipeline, bench.wanted(), config, folder if strength == 1 else folder / f"strength-{strength:g}"
        )
        scores |= compare(paths, bench, base, "" if strength == 1 else f" at {strength:g}")
    return scores | compare(base, bench, [], " at 0")


def compare(paths: list[Path], bench: Experiment, base: list[Path], suffix: str) -> dict[str, list[float]]:
    with Image.open(paths[0]) as image:
        size = image.size
    prompts, images = bench.scored(), [p.path for p in bench.held or bench.images]
    n, against = (
        len(prompts),
        References(originals=images, size=size) if bench.held else References(images, size=size),
    )
    scores = {}
    for encoder in bench.encoders:
        found = measure(encoder, ImageSet(paths[0].parent.name, paths[:n], prompts), against, bench.features)
        if base and bench.drift:
            drifts = measure(
                encoder, ImageSet(paths[0].parent.name, paths[n:]), References(base=base[n:]), bench.features
            )
            found += [score for score in drifts if score.name == "drift"]
        for score in found:
            scores[f"{score.name}, {encoder.name}{suffix}"] = [round(v, 6) for v in score.values.tolist()]
    return scores
