"""One run of a sweep: an adapter trained by the trainer's loop, with held-out loss, costs and scores."""

import dataclasses
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gralora_diffusion.adapters import allocation, allocation_file
from gralora_diffusion.adapters.gradient_init import SEARCHED
from gralora_diffusion.adapters.gradients import HELD_OUT, stratified
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.batches import plan_batches
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.encode import encode_captions
from gralora_diffusion.devices import forget_peak, peak_memory
from gralora_diffusion.experiments.adapt import adapt, adapter_config_of, as_adapted
from gralora_diffusion.experiments.adapted import Adapted, Spec
from gralora_diffusion.experiments.experiment import Experiment
from gralora_diffusion.experiments.methods import METHODS
from gralora_diffusion.experiments.outliers import plant_outliers
from gralora_diffusion.experiments.queue import run_name
from gralora_diffusion.experiments.scoring import base_images, scores_of
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS, TRAINING_LOSS
from gralora_diffusion.sdxl.load import load_sdxl
from gralora_diffusion.sdxl.prompt_chunks import PromptRules
from gralora_diffusion.training.accelerator import DTYPES
from gralora_diffusion.training.average import averaged, use_average
from gralora_diffusion.training.base_defaults import with_base_defaults
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.loss import draw_noise
from gralora_diffusion.training.objective import objective
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.setup import make_trainable
from gralora_diffusion.training.signals import Interrupts, Stopped
from gralora_diffusion.training.step_metrics import NotFinite
from gralora_diffusion.training.steps import run_steps

HELD_OUT_BATCHES = 8
ADAPTER = "adapter.safetensors"

LossOf = Callable[[int], torch.Tensor]  # the loss of batch number i


@dataclass(frozen=True)
class Losses:
    """Of training batches and of held-out images, with random timesteps or with evenly spread ones."""

    training: LossOf
    training_even: LossOf
    held_out: LossOf
    held_out_even: LossOf


def run_experiment(run: dict, experiment: Experiment, interrupts: Interrupts) -> dict:
    """One run of the sweep, with run_steps() and objective() as every training: its losses, scores and costs.

    A run whose loss is not finite has `failed` in place of scores.  Raises Stopped after a signal.
    """
    folder = experiment.folder / "runs" / run_name(run)
    accelerator = experiment.accelerator
    accelerator.free_memory()  # the optimizers of earlier runs, which it keeps
    own = dict(seed=run["seed"], learning_rate=run["lr"], max_train_steps=run["steps"])
    config = dataclasses.replace(experiment.config, **own)
    precision = config.mixed_precision or "no"
    dtype = DTYPES[precision]

    # the base, what it generates, and the batches
    pipeline = load_sdxl(config.pretrained_model_name_or_path, dtype=dtype).to(accelerator.device)
    config = with_base_defaults(config, pipeline, experiment.images, precision, 1)
    if "outliers" in run:
        plant_outliers(pipeline.unet, run["outliers"], run["outlier_slices"], run["seed"])
    ours = METHODS[run["method"]].build == "ours"
    losses = losses_of(pipeline, experiment, config, dtype, autocast=not ours)
    base = base_images(pipeline, experiment, config) if experiment.encoders else []

    # the method
    spec = Spec(run["method"], run["size"], run.get("k"), run["seed"], config.adapter.targets)
    adapted = adapt(pipeline.unet, spec, torch.no_grad()(losses.training))
    models = dict(unet=pipeline.unet)
    make_trainable(models, config)
    found = {}
    if spec.about.gradients:
        options = dict(adapter=adapter_config_of(spec), **spec.about.gradients)
        start = dataclasses.replace(config, **options).resolved()
        found["gradients"] = start_from_gradients(models, losses.training_even, start, accelerator, folder)
        adapted = as_adapted(pipeline.unet, spec)
    found["parameters"] = sum(p.numel() for p in adapted.parameters.values())

    # training
    try:
        found |= train_adapter(run, experiment, pipeline.unet, config, adapted, losses, interrupts)
    except NotFinite as error:
        return found | dict(failed=str(error))
    adapted.save(folder / ADAPTER)

    # scores
    pipeline.unet.eval()
    scores = {}
    if experiment.held_out:
        values = losses_without_gradient(losses.held_out, range(HELD_OUT_BATCHES))
        scores[HELD_OUT_LOSS] = [round(value, 6) for value in values]
    if experiment.encoders:
        scores |= scores_of(pipeline, experiment, config, folder, base)
    if not scores:
        last_third = found["losses"][-max(1, run["steps"] // 3) :]
        scores[TRAINING_LOSS] = [round(statistics.mean(last_third), 6)]
    return found | dict(file_bytes=(folder / ADAPTER).stat().st_size, scores=scores)


def losses_of(
    pipeline, experiment: Experiment, config: TrainConfig, dtype: torch.dtype, autocast: bool = False
) -> Losses:
    """Held-out batches are the same for all seeds; without held-out images they have training images."""
    accelerator = experiment.accelerator
    cache = Cache(experiment.folder / "cache")
    held_out_images = experiment.held_out or experiment.images
    of_all_runs = dataclasses.replace(config, seed=0)
    training = plan_batches(experiment.images, [], pipeline.vae, config, cache, accelerator)
    held_out = plan_batches(held_out_images, [], pipeline.vae, of_all_runs, cache, accelerator)
    captions = sorted({*training.captions(), *held_out.captions()})
    encode = encode_captions(captions, pipeline, cache, accelerator, rules=PromptRules.of(config))

    def loss_of(batches, draw=draw_noise) -> LossOf:
        model = pipeline.unet, pipeline.scheduler
        return objective(*model, batches, encode, batches.config, accelerator, dtype, draw, autocast)

    even = stratified(draw_noise)
    return Losses(loss_of(training), loss_of(training, even), loss_of(held_out), loss_of(held_out, even))


def train_adapter(
    run: dict,
    experiment: Experiment,
    unet,
    config: TrainConfig,
    adapted: Adapted,
    losses: Losses,
    interrupts: Interrupts,
) -> dict:
    """Train all steps: {seconds_per_step, peak_memory, losses, and, if wanted, the held-out loss's curve}."""
    accelerator = experiment.accelerator
    groups = adapted.groups(run["lr"], config.adam_weight_decay)
    ours = METHODS[run["method"]].build == "ours"  # whose layers compute with copies of the factors
    dtype = DTYPES[config.mixed_precision or "no"] if ours else torch.float32
    factors = FlatFactors.of_models(groups, [unet], dtype)
    optimization = Optimization.over(factors, config, run["steps"], accelerator)
    lines, curve = [], []

    def measure_held_out(step: int) -> None:
        if experiment.held_out_every and step % experiment.held_out_every == 0:
            with averaged(optimization.optimizer):
                curve.append([step, held_out_loss(unet, losses.held_out_even)])

    measure_held_out(0)
    forget_peak(accelerator.device)
    steps = run_steps(optimization, losses.training, config, accelerator, interrupts, run["steps"])
    for line, stopping in steps:
        lines.append(line)
        measure_held_out(line["step"])
        if stopping:
            raise Stopped(f"stopped in {run_name(run)}")
    use_average(optimization.optimizer)
    found = dict(
        seconds_per_step=statistics.median(line["seconds"] for line in lines),
        peak_memory=peak_memory(accelerator.device),
        losses=[round(line["loss"], 5) for line in lines],
    )
    return found | (dict(curve=curve) if curve else {})


def start_from_gradients(
    models: dict, loss_of: LossOf, config: TrainConfig, accelerator, folder: Path
) -> dict:
    """Ranks, k and start from the gradients of loss_of, as in training; returns what it cost.

    batches: run forward and backward; looks: run forward alone, for gamma.
    """
    began = time.monotonic()
    allocation.apply(models, loss_of, config, accelerator, folder)
    facts = json.loads((folder / allocation_file.FILE).read_text())
    layers = facts["layers"].values()
    ranks = [layer["rank"] for layer in layers]
    return dict(
        batches=facts["batches_run"],
        looks=SEARCHED * len(facts.get("held_out_loss", ())),
        gamma=facts.get("gamma"),
        ranks=[min(ranks), max(ranks)],
        layers_by_k=dict(sorted(Counter(layer["k"] for layer in layers).items())),
        seconds=round(time.monotonic() - began, 2),
    )


@torch.no_grad()
def losses_without_gradient(loss_of: LossOf, batches: range) -> list[float]:
    return [loss_of(index).item() for index in batches]


def held_out_loss(unet, loss_of: LossOf) -> float:
    """The mean loss of batches that no run trains on or searches with, the same for all runs."""
    first = HELD_OUT + SEARCHED
    unet.eval()
    losses = losses_without_gradient(loss_of, range(first, first + HELD_OUT_BATCHES))
    unet.train()
    return round(statistics.mean(losses), 6)
