"""Metrics of generated images, and the paired differences of image sets, with their intervals."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gralora_diffusion.console import counted
from gralora_diffusion.evaluation.encoders import Encoder
from gralora_diffusion.evaluation.features import text_features, too_long
from gralora_diffusion.evaluation.image_sets import ImageSet, References, with_partners
from gralora_diffusion.evaluation.metric import METRICS, Metric
from gralora_diffusion.evaluation.similarity import (
    average_precision,
    diversity,
    groups_of,
    nearest,
    rowwise,
    similarities,
    vendi,
)
from gralora_diffusion.evaluation.statistics import mean_and_interval
from gralora_diffusion.options import ConfigError


@dataclass(frozen=True)
class Measurement:
    """values [n] of a metric; of: the image, or prompt, of each; beside: the image it was compared with."""

    metric: Metric
    values: torch.Tensor
    of: list[str]
    beside: list[Path] | None = None
    extra: dict = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """What metrics are computed from: unit vectors by one encoder, None where there are none.

    generated [n, d], and of each image's partner: originals, base [n, d].  references [m, d]: the subject's.
    lookalikes [l, d]: of images of other subjects like it.
    alone, references_alone: of generated and reference images without their backgrounds.
    texts [n, d]: of each image's prompt.  prompts: as they were written; cut: how many the encoder cuts.
    """

    run: ImageSet
    against: References
    generated: torch.Tensor
    references: torch.Tensor | None = None
    lookalikes: torch.Tensor | None = None
    originals: torch.Tensor | None = None
    base: torch.Tensor | None = None
    alone: torch.Tensor | None = None
    references_alone: torch.Tensor | None = None
    texts: torch.Tensor | None = None
    prompts: list[str] | None = None
    cut: int = 0


def measure_subject(inputs: Inputs) -> dict:
    return dict(values=similarities(inputs.generated, inputs.references))


def measure_subject_alone(inputs: Inputs) -> dict:
    return dict(values=similarities(inputs.alone, inputs.references_alone))


def measure_prompt(inputs: Inputs) -> dict:
    extra = dict(prompts_longer_than_the_encoder_reads=inputs.cut)
    return dict(values=rowwise(inputs.generated, inputs.texts), extra=extra)


def measure_paired(inputs: Inputs) -> dict:
    cosines = rowwise(inputs.generated, inputs.originals)
    return dict(values=cosines, beside=inputs.against.originals)


def measure_drift(inputs: Inputs) -> dict:
    cosines = rowwise(inputs.generated, inputs.base)
    return dict(values=(1 - cosines) / 2, beside=inputs.against.base)


def measure_diversity(inputs: Inputs) -> dict:
    prompts, values = diversity(inputs.generated, inputs.prompts)
    return dict(values=values, of=prompts)


def measure_vendi(inputs: Inputs) -> dict:
    prompts, groups = groups_of(inputs.generated, inputs.prompts)
    return dict(values=torch.tensor([vendi(group) for group in groups], dtype=torch.float64), of=prompts)


def measure_identity(inputs: Inputs) -> dict:
    values = average_precision(inputs.generated, inputs.references, inputs.lookalikes)
    return dict(values=values, extra=dict(subject=len(inputs.references), lookalikes=len(inputs.lookalikes)))


def measure_copy(inputs: Inputs) -> dict:
    values, index, limit = nearest(inputs.generated, inputs.references)
    beside = [inputs.against.references[i] for i in index]
    extra = {}
    if limit is not None:
        extra = dict(nearest_two_training_images=limit, copies=int((values > limit).sum()))
    return dict(values=values, beside=beside, extra=extra)


COMPUTE = {  # {name of a metric: its values and what belongs to them, from Inputs}
    "subject": measure_subject,
    "subject alone": measure_subject_alone,
    "prompt": measure_prompt,
    "paired": measure_paired,
    "drift": measure_drift,
    "diversity": measure_diversity,
    "vendi": measure_vendi,
    "identity": measure_identity,
    "copy": measure_copy,
}


def measure(
    encoder: Encoder, run: ImageSet, against: References, features: Callable, alone: Callable | None = None
) -> list[Measurement]:
    """All metrics whose inputs are there; partners in the run's order.

    features(encoder, paths, size) -> unit vectors [n, d]; alone: the same of images without backgrounds.
    """
    inputs = inputs_of(encoder, run, against, features, alone)
    names = [path.name for path in run.paths]
    found = []
    for name, compute in COMPUTE.items():
        metric = METRICS[name]
        if any(getattr(inputs, need) is None for need in metric.needs):
            continue
        measured = dict(of=names) | compute(inputs)
        if len(measured["values"]):
            found.append(Measurement(metric, **measured))
    return found


def inputs_of(
    encoder: Encoder, run: ImageSet, against: References, features: Callable, alone: Callable | None
) -> Inputs:
    given = dict(generated=features(encoder, run.paths, None))
    if against.references:
        given["references"] = features(encoder, against.references, against.size)
        if against.lookalikes:
            given["lookalikes"] = features(encoder, against.lookalikes, against.size)
        if alone:
            given["alone"] = alone(encoder, run.paths, None)
            given["references_alone"] = alone(encoder, against.references, against.size)
    if run.prompts:
        given["prompts"] = run.prompts
        if encoder.texts:
            texts = [without_words(prompt, against.drop) for prompt in run.prompts]
            given["cut"] = len(too_long(encoder, texts))
            given["texts"] = text_features(encoder, texts)
    if against.originals:
        given["originals"] = features(encoder, against.originals, against.size)
    if against.base:
        given["base"] = features(encoder, against.base, None)
    return Inputs(run, against, **given)


def without_words(prompt: str, words: tuple[str, ...]) -> str:
    return " ".join(word for word in prompt.split() if word not in words)


def evaluate(
    encoders: list[Encoder],
    runs: list[ImageSet],
    against: References,
    features: Callable,
    paired: bool = True,
    seed: int = 0,
    alone: Callable | None = None,
) -> dict:
    """Scores of all runs by all encoders, and the paired differences of each run from the first, for JSON.

    features as image_features(encoder, paths, size); paired=False leaves the differences out. alone: features
    of images without their backgrounds, to score the subjects alone.
    Raises ConfigError when the runs cannot be compared image by image.
    """
    if paired:
        check_pairs(runs)
    ordered, how_matched = {}, {}
    for run in runs:
        ordered[run.name], how_matched[run.name] = with_partners(run, against)
    scores, differences, values = [], [], []
    for encoder in encoders:
        first = {}  # {metric: the first run's values}
        for run in runs:
            for found in measure(encoder, run, ordered[run.name], features, alone):
                metric = found.metric
                label = metric.label_by(encoder.kind)
                entry = dict(run=run.name, encoder=encoder.name, score=metric.name, label=label)
                together = clusters_of(run, found)
                scores.append(entry | mean_and_interval(found.values, seed, clusters=together) | found.extra)
                if paired and run is not runs[0] and metric in first:
                    gains = found.values - first[metric]
                    difference = mean_and_interval(gains, seed, clusters=together)
                    differences.append(entry | dict(against=runs[0].name) | difference)
                first.setdefault(metric, found.values)
                values += [entry | line for line in lines_of(found)]
    settings = dict(
        interval="95 %, BCa bootstrap, 10,000 resamples; images of one prompt are resampled together",
        seed=seed,
        words_left_out_of_prompts=list(against.drop),
        size_that_references_are_cut_to=against.size,
        references=len(against.references),
        matched=how_matched,
    )
    return dict(
        scores=scores,
        differences=differences,
        values=values,
        meaning={name: METRICS[name].meaning for name in COMPUTE},
        encoders=[dict(name=encoder.name) | encoder.facts for encoder in encoders],
        settings=settings,
    )


def clusters_of(run: ImageSet, found: Measurement) -> list[str] | None:
    """The prompt of each value's image, since images of one prompt are not independent; None without."""
    return run.prompts if run.prompts and len(run.prompts) == len(found.values) else None


def check_pairs(runs: list[ImageSet]) -> None:
    """Raises ConfigError when the runs cannot be compared image by image."""
    first = runs[0]
    for run in runs[1:]:
        if len(run.paths) != len(first.paths) or run.prompts != first.prompts:
            raise ConfigError(
                f"{run.name} has {counted(len(run.paths), 'image')} and {first.name} has {len(first.paths)}, "
                "or their prompts differ: differences need the same prompts and seeds in the same order; "
                "--unpaired leaves them out"
            )


def lines_of(found: Measurement) -> list[dict]:
    """A line for each value."""
    lines = []
    for i, (name, value) in enumerate(zip(found.of, found.values.tolist(), strict=True)):
        beside = found.beside[i].name if found.beside else None
        lines.append(dict(of=name, value=value, beside=beside))
    return lines
