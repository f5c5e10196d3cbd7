"""What a sweep is about to do: its runs, the experiments they belong to, and a forecast of their cost."""

import argparse
import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.console import counted
from gralora_diffusion.data.dataset import instance_images
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.data.text_files import prompts_in
from gralora_diffusion.evaluation.encoder_names import FOR_EMBEDDED, FOR_SDXL
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.experiments.adapt import shapes_of
from gralora_diffusion.experiments.adapted import Spec
from gralora_diffusion.experiments.budget import fit
from gralora_diffusion.experiments.experiment import Experiment
from gralora_diffusion.experiments.methods import METHODS, OURS
from gralora_diffusion.experiments.outliers import check_outliers
from gralora_diffusion.experiments.rates import tuned
from gralora_diffusion.experiments.results import read_results
from gralora_diffusion.experiments.run import HELD_OUT_BATCHES
from gralora_diffusion.experiments.settings import TRAINING_LOSS, choose_score
from gralora_diffusion.experiments.sizes import Shapes
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.sdxl.base import blank_inputs, predict
from gralora_diffusion.sdxl.load import EMBEDDED, shapes
from gralora_diffusion.sdxl.single_file import SDXL_UNET
from gralora_diffusion.seeding import generator

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
GPU = 400e12  # operations a second of the GPU that a forecast is for


@dataclass(frozen=True)
class SweepPlan:
    """The runs, {subject: its experiment}, with None for the only one, and the encoders' names."""

    runs: list[dict]
    experiments: dict[str | None, Experiment]
    encoders: list[str]


def plan_sweep(args: argparse.Namespace) -> SweepPlan:
    """What the options of `gralora compare` mean; writes nothing.  Raises ConfigError for mistakes."""
    config = base_config(args)
    embedded = args.pretrained_model_name_or_path in (None, str(EMBEDDED))
    encoders = args.encoder or list(FOR_EMBEDDED if embedded else FOR_SDXL)
    if args.loss_only or args.training_loss:
        encoders = []
    drift_prompts = read_prompts(args.drift_prompts)
    check_no_class(
        drift_prompts, f"--drift_prompts {args.drift_prompts}", "write prompts without the subject"
    )
    common = dict(
        folder=args.output,
        features=partial(image_features, cache=args.output / "features"),
        held_out_every=args.held_out_every,
        strengths=tuple(sorted({*args.strengths, 1.0})),
        drift_prompts=tuple(drift_prompts),
    )
    also_measured = [args.held_out_every, args.strengths, drift_prompts]
    unet = unet_shapes(args.pretrained_model_name_or_path, args.dry_run)
    if max(args.outliers) > 1:
        check_outliers(unet, args.outlier_slices or 1, config.mixed_precision)
    table = table_of_runs(args, shapes_of(unet, args.targets))
    runs, experiments = [], {}
    for subject, (of_subject, prompts) in subjects_of(args, config).items():
        images = instance_images(of_subject)
        extra = also_measured if any(also_measured) else []
        if args.training_loss:
            extra = [*extra, TRAINING_LOSS.metric.name]
        setting = setting_of(of_subject, images, prompts, encoders, *extra)
        named = dict(subject=subject) if subject else {}
        runs += [named | run | dict(setting=setting) for run in table]
        hold_out = not prompts and not args.training_loss
        training, held_out = split(images, args.part) if hold_out else (images, [])
        own = dict(config=of_subject, images=training, held_out=held_out, prompts=prompts)
        experiments[subject] = Experiment(**common, **own)
    if args.tuned is not None:
        elsewhere = args.tuned != Path()
        done = read_results(args.tuned if elsewhere else args.output)
        score = choose_score(done, args.score) if args.score else None
        runs = tuned(runs, done, score, elsewhere)
    return SweepPlan(runs, experiments, list(encoders))


def base_config(args: argparse.Namespace) -> TrainConfig:
    given = dict(
        instance_data_dir=args.instance_data_dir,
        instance_prompt=args.instance_prompt,
        pretrained_model_name_or_path=args.pretrained_model_name_or_path,
        resolution=args.resolution,
        mixed_precision=args.mixed_precision,
        max_train_steps=args.steps,
        train_batch_size=args.batch_size,
        optimizer=args.optimizer,
    )
    if args.num_inference_steps is not None:
        given["num_inference_steps"] = args.num_inference_steps
    if args.subjects:
        given |= dict(instance_data_dir=None, instance_prompt=None)
    return TrainConfig(adapter=AdapterConfig(targets=args.targets), **given).resolved()


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a text file.  Raises ConfigError where it cannot be read or holds none."""
    if path is None:
        return []
    try:
        lines = prompts_in(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a text file of prompts, one per line: {error}") from None
    if not lines:
        raise ConfigError(f"{path} holds no prompts: write one per line")
    return lines


def check_no_class(prompts: list[str], where: str, remedy: str) -> None:
    """Raises ConfigError where a prompt has {}, which nothing would replace."""
    for prompt in prompts:
        if "{}" in prompt:
            raise ConfigError(f"{where}: {{}} in {prompt!r} stands for the class of --subjects; {remedy}")


def subjects_of(
    args: argparse.Namespace, config: TrainConfig
) -> dict[str | None, tuple[TrainConfig, list[str]]]:
    """{subject: (config, prompts)}; the only one is None without --subjects."""
    prompts = read_prompts(args.prompts)
    if not args.subjects:
        remedy = "write the class there, or give --subjects FOLDER=CLASS"
        check_no_class(prompts, f"--prompts {args.prompts}", remedy)
        check_no_class([args.instance_prompt or ""], "--instance_prompt", remedy)
        return {None: (config, prompts)}
    found = {}
    for given in args.subjects:
        folder, _, word = given.partition("=")
        name = Path(folder).name
        word = word or name.replace("_", " ")
        caption = (args.instance_prompt or "a photo of sks {}").replace("{}", word)
        own = dataclasses.replace(config, instance_data_dir=folder, instance_prompt=caption)
        found[name] = own, [prompt.replace("{}", word) for prompt in prompts]
    return found


def setting_of(config: TrainConfig, images: list[TrainingImage], *common) -> str:
    """A hash of what all runs have in common, so that no other command takes their results for its own.

    Images count by their content, wherever their folder is.
    """
    options = to_dict(config) | dict(instance_data_dir=None)
    digest = hashlib.sha256(json.dumps([options, *common], sort_keys=True).encode())
    for image in images:
        digest.update(f"{image.caption}\0{image.digest}".encode())
    return digest.hexdigest()[:12]


def split(images: list[TrainingImage], part: str) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """(to train on, to hold out): a tenth for validation, another for the test, the same for every run."""
    if len(images) < 10:
        raise ConfigError(
            f"two tenths of {counted(len(images), 'image')} cannot be held out: give at least 10, or "
            "--prompts with a subject's images, or --training_loss, which holds none out"
        )
    order = torch.randperm(len(images), generator=generator(0, 102)).tolist()
    tenth = round(len(images) / 10)
    held_out = dict(test=order[:tenth], validation=order[tenth : 2 * tenth])[part]
    return [images[i] for i in sorted(order[2 * tenth :])], [images[i] for i in sorted(held_out)]


def table_of_runs(args: argparse.Namespace, layer_shapes: Shapes) -> list[dict]:
    """Every run that fits its budget; prints those that do not.  Raises ConfigError where none is left."""
    runs = []
    for rank, method in itertools.product(args.ranks, args.methods):
        budget = METHODS["lora"].count(rank, layer_shapes)
        for k in ks_for(args, method):
            if args.strengths and method not in OURS:
                raise ConfigError(
                    f"--strengths works only with {', '.join(OURS)}, not with {method}",
                    option="strengths",
                )
            try:
                size, parameters = fit(method, budget, layer_shapes, k)
            except ConfigError as error:
                print(f"rank {rank}, left out: {error}")
                continue
            if METHODS[method].any_budget:
                whatever = f"{parameters:,} parameters, whatever the budget, and gets no verdict"
                print(f"rank {rank}: {method} trains {whatever}")
            setting = dict(method=method, rank=rank, size=size, k=k, parameters=parameters)
            setting |= dict(targets=args.targets, steps=args.steps, part=args.part)
            for scale, lr, seed in itertools.product(args.outliers, args.lrs, args.seeds):
                runs.append(setting | dict(lr=lr, seed=seed) | planted(scale, args.outlier_slices or 1))
    if not runs:
        raise ConfigError("no run is left: no method of --methods can have the budget of a rank in --ranks")
    return runs


def planted(scale: float, slices: int) -> dict:
    """The options of a run on a base with planted outliers; a run without them has none of these."""
    return {} if scale == 1 else dict(outliers=scale, outlier_slices=slices)


def ks_for(args: argparse.Namespace, method: str) -> list[int | None]:
    Spec(method, 1, targets=args.targets)  # raises ConfigError for an unknown method
    return args.k if METHODS[method].has_k else [None]


def unet_shapes(path: str | None, dry_run: bool) -> UNet2DConditionModel:
    """The UNet without weights; SDXL's from its public config, so that a dry run downloads nothing."""
    if dry_run and path == SDXL:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(SDXL_UNET)
    return shapes(path)["unet"]


@dataclass(frozen=True)
class SweepForecast:
    """Operations of all runs, counted on the UNet's shapes."""

    runs: int
    training_images: int
    generated_images: int  # in each run
    training: float
    sampling: float

    def text(self) -> str:
        seconds = (self.training + self.sampling) / GPU
        time = f"{seconds / 3600:,.2f} hours" if seconds >= 360 else counted(round(seconds), "second")
        if seconds < 1:
            time = "less than a second"
        images = counted(self.training_images, "training image")
        runs = counted(self.runs, "run")
        costs = f"{operations(self.training)} of training, {operations(self.sampling)} of sampling"
        return (
            f"{images}, {self.generated_images} generated in each run\n"
            f"{runs}: {costs}; {time} on a GPU at {GPU / 1e12:.0f} TFLOP/s"
        )


def operations(count: float) -> str:
    """3,400 TFLOP, or 62 MFLOP: in the largest unit of which it is at least one."""
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= size:
            return f"{count / size:,.0f} {unit}" if count >= 10 * size else f"{count / size:.1f} {unit}"
    return f"{count:,.0f} FLOP"


def forecast_sweep(plan: SweepPlan, args: argparse.Namespace) -> SweepForecast:
    experiment = next(iter(plan.experiments.values()))
    config = experiment.config
    unet = unet_shapes(args.pretrained_model_name_or_path, True)
    side = (config.resolution or unet.config.sample_size * 8) // 8
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(unet, *blank_inputs(unet.config, 1, side, device="meta"))
    forward = counter.get_total_flops()
    held_out = 0
    if experiment.held_out_every:
        held_out = HELD_OUT_BATCHES * (1 + args.steps // experiment.held_out_every)
    batches = 0  # forward passes; backward through frozen weights costs one more
    for run in plan.runs:
        batches += 2 * run["steps"] + held_out
        if METHODS[run["method"]].gradients:
            batches += 3 * config.gora_batches
    generated = len(experiment.prompts_and_seeds()) * len(experiment.strengths)
    images = len(plan.runs) * generated
    return SweepForecast(
        runs=len(plan.runs),
        training_images=len(experiment.images),
        generated_images=generated,
        training=forward * config.train_batch_size * batches,
        sampling=forward * images * 2 * config.num_inference_steps,
    )
