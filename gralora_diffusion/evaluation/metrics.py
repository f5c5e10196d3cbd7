"""Scores of generated images, each with n, mean, standard deviation and a bootstrap interval; paired differences between runs with theirs."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.evaluation.encoders import Encoder
from gralora_diffusion.evaluation.features import text_features, too_long
from gralora_diffusion.evaluation.statistics import rate_interval, summary
from gralora_diffusion.options import ConfigError

SCORES = {  # what each score is, as results say it
    "subject": "mean cosine with each of the subject's images (DreamBooth's pairing): higher is more alike",
    "prompt": "cosine of image and prompt: higher fits better",
    "paired": "cosine with the true image of the same caption: higher is more alike",
    "drift": "(1 - cosine) / 2 with the base's image of the same prompt and seed: 0 is the base's own",
    "diversity": "mean of 1 - cosine over all pairs of images of one prompt, a value per prompt: 0 is always the same image",
    "copy": "cosine with the nearest training image: 1 is a copy",
}
LABELS = {
    ("subject", "clip"): "CLIP-I", ("subject", "dinov2"): "DINO", ("prompt", "clip"): "CLIP-T",
    ("paired", "clip"): "paired CLIP", ("paired", "dinov2"): "paired DINOv2",
}  # fmt: skip
PLAIN = {
    "subject": "subject",
    "prompt": "prompt",
    "paired": "paired",
    "drift": "drift",
    "diversity": "diversity",
    "copy": "nearest training image",
}


@dataclass(frozen=True)
class ImageSet:
    """Generated images, in order, with the prompt of each where it is known."""

    name: str
    paths: list[Path]
    prompts: list[str] | None = None


@dataclass(frozen=True)
class References:
    """What runs are measured against, as far as it is given: the subject's images, true images one by one, the base's images one by one.

    size: (width, height) that the first two are cut to before the encoder's preprocessing;  drop: words left out of the prompts.
    """

    references: list[Path] = dataclasses.field(default_factory=list)
    originals: list[Path] = dataclasses.field(default_factory=list)
    base: list[Path] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """values [n]; of: the image, or prompt, of each; beside: the image it was compared with, where it is one."""

    name: str
    values: torch.Tensor
    of: list[str]
    beside: list[Path] | None = None
    extra: dict = dataclasses.field(default_factory=dict)


def rowwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosines of unit vectors [n, d], row by row, in float64: [n]."""
    return (a.double() * b.double()).sum(1)


def similarities(generated: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """DreamBooth's pairing: each generated image's mean cosine with all images of the subject: [n]."""
    return (generated.double() @ references.double().T).mean(1)


def diversity(features: torch.Tensor, groups: list[str]) -> tuple[list[str], torch.Tensor]:
    """The groups of at least two images, and the mean of 1 - cosine over all pairs within each."""
    names, values = [], []
    for name in dict.fromkeys(groups):
        mine = features[[g == name for g in groups]].double()
        if len(mine) > 1:
            first, second = torch.triu_indices(len(mine), len(mine), 1)
            names.append(name)
            values.append((1 - rowwise(mine[first], mine[second])).mean())
    return names, torch.stack(values) if values else torch.zeros(0)


def nearest(
    generated: torch.Tensor, references: torch.Tensor
) -> tuple[torch.Tensor, list[int], float | None]:
    """(cosine with the nearest reference [n], its index [n], the greatest cosine between two references: what lies above it is a copy)."""
    values, index = (generated.double() @ references.double().T).max(1)
    among = references.double() @ references.double().T
    return values, index.tolist(), among.fill_diagonal_(-1).max().item() if len(references) > 1 else None


def measure(encoder: Encoder, run: ImageSet, against: References, features: Callable) -> list[Score]:
    """All scores that can be given, others one by one in the run's order; features(encoder, paths, size) -> unit vectors."""
    drawn, names, scores = features(encoder, run.paths, None), [p.name for p in run.paths], []
    if against.references:
        subject = features(encoder, against.references, against.size)
        scores.append(Score("subject", similarities(drawn, subject), names))
    if run.prompts and encoder.texts:
        texts = [without(prompt, against.drop) for prompt in run.prompts]
        cut = dict(prompts_longer_than_the_encoder_reads=len(too_long(encoder, texts)))
        scores.append(Score("prompt", rowwise(drawn, text_features(encoder, texts)), names, extra=cut))
    for name, others, size in (("paired", against.originals, against.size), ("drift", against.base, None)):
        if others:
            cosines = rowwise(drawn, features(encoder, others, size))
            scores.append(Score(name, cosines if name == "paired" else (1 - cosines) / 2, names, others))
    prompts, values = diversity(drawn, run.prompts or [])
    if prompts:
        scores.append(Score("diversity", values, prompts))
    if against.references:
        values, index, most = nearest(drawn, subject)
        copies = (
            {} if most is None else dict(nearest_two_training_images=most, copies=int((values > most).sum()))
        )
        scores.append(Score("copy", values, names, [against.references[i] for i in index], copies))
    return scores


def without(prompt: str, words: tuple[str, ...]) -> str:
    return " ".join(word for word in prompt.split() if word not in words)


def matched(run: ImageSet, others: list[Path]) -> tuple[list[Path], str]:
    """The other image of each, and how it was found: "by name" (at need without endings and leading zeros), or "by order" if no two share one.

    Raises ConfigError when counts do not match, or names only in part.
    """
    if len(others) != len(run.paths):
        raise ConfigError(
            f"{run.name} has {len(run.paths)} images and {others[0].parent} has {len(others)}: one by one they cannot be compared"
        )
    for name_of in (
        lambda path: path.name,
        lambda path: path.stem,
        lambda path: re.sub(r"\d+", lambda n: str(int(n[0])), path.stem),
    ):
        by_name, names = {name_of(p): p for p in others}, [name_of(p) for p in run.paths]
        if len(by_name) == len(others) == len(set(names)) and by_name.keys() == set(names):
            return [by_name[name] for name in names], "by name"
    if both := by_name.keys() & set(names):
        raise ConfigError(
            f"{run.name} and {others[0].parent} share some names, as {min(both)}, but not all, each once: give all images the names of their "
            "partners, or names of their own to compare them in order"
        )
    return others, "by order"


def aligned(run: ImageSet, against: References) -> tuple[References, dict[str, str | None]]:
    """`against` with the images that are compared one by one in the run's order, and how they were matched for each score."""
    (originals, paired), (base, drift) = (
        matched(run, paths) if paths else ([], None) for paths in (against.originals, against.base)
    )
    return dataclasses.replace(against, originals=originals, base=base), dict(paired=paired, drift=drift)


def evaluate(
    encoders: list[Encoder],
    runs: list[ImageSet],
    against: References,
    features: Callable,
    paired: bool = True,
    seed: int = 0,
) -> dict:
    """Scores of all runs in all encoders, and the paired differences of each run from the first; a dict that JSON can hold.

    features as image_features(encoder, paths, size); paired=False leaves the differences out.
    Raises ConfigError when the runs cannot be compared image by image.
    """
    if paired:
        for run in runs[1:]:
            if len(run.paths) != len(runs[0].paths) or run.prompts != runs[0].prompts:
                raise ConfigError(
                    f"{run.name} has {len(run.paths)} images and {runs[0].name} has {len(runs[0].paths)}, or their prompts differ: differences "
                    "need the same prompts and seeds in the same order; --unpaired leaves them out"
                )
    ordered = {run.name: aligned(run, against) for run in runs}
    result = dict(scores=[], differences=[], values=[])
    for encoder in encoders:
        first = {}
        for run in runs:
            for score in measure(encoder, run, ordered[run.name][0], features):
                what = dict(
                    run=run.name,
                    encoder=encoder.name,
                    score=score.name,
                    label=LABELS.get((score.name, encoder.kind), PLAIN[score.name]),
                )
                result["scores"].append(what | summary(score.values, seed) | score.extra)
                if paired and run is not runs[0] and score.name in first:
                    gap = summary(score.values - first[score.name], seed)
                    result["differences"].append(what | dict(against=runs[0].name) | gap)
                first.setdefault(score.name, score.values)
                for i, (name, value) in enumerate(zip(score.of, score.values.tolist(), strict=True)):
                    result["values"].append(
                        what
                        | dict(of=name, value=value, beside=score.beside[i].name if score.beside else None)
                    )
    settings = dict(
        interval="95 %, percentile bootstrap over the values, 10,000 resamples",
        seed=seed,
        words_left_out_of_prompts=list(against.drop),
    )
    settings |= dict(size_that_references_are_cut_to=against.size, references=len(against.references))
    settings |= dict(matched={name: how for name, (_, how) in ordered.items()})
    return result | dict(
        meaning=SCORES, encoders=[dict(name=e.name) | e.facts for e in encoders], settings=settings
    )


def subject_retrieval(features: torch.Tensor, subjects: list[str]) -> dict:
    """How well an encoder tells subjects apart: the rate of images whose nearest other image is of the same subject, with its 95 %
    interval, the rate of triples (image, same subject, other subject) in the right order, and the mean cosine within and between subjects.

    Raises ConfigError when there are no such triples.
    """
    cosines = features.double() @ features.double().T
    same = torch.tensor([[a == b for b in subjects] for a in subjects])
    other = ~same
    same.fill_diagonal_(False)
    hit = same.gather(1, cosines.clone().fill_diagonal_(-2).argmax(1, keepdim=True)).double()
    right = [
        (row[s][:, None] > row[o]).double().mean()
        for row, s, o in zip(cosines, same, other, strict=True)
        if s.any() and o.any()
    ]
    if not right:
        raise ConfigError(
            "subjects can only be told apart where there are two at least, and two images of one of them"
        )
    rates = dict(
        images=len(subjects), subjects=len(set(subjects)), nearest_is_the_same_subject=hit.mean().item()
    )
    rates |= dict(nearest_is_the_same_subject_interval=rate_interval(int(hit.sum()), len(subjects)))
    return rates | dict(
        triples_in_order=torch.stack(right).mean().item(),
        within=cosines[same].mean().item(),
        between=cosines[other].mean().item(),
    )


def images_in(where: str | Path) -> list[Path]:
    """The images of a folder, or of a pattern such as out/base-*.png, in order of name with numbers as numbers.  Raises ConfigError when none."""
    where = Path(where)
    try:
        found = [
            p
            for p in (where.iterdir() if where.is_dir() else where.parent.glob(where.name))
            if p.suffix.lower() in EXTENSIONS
        ]
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    found = [p for p in found if not p.name.startswith(".")]
    if not found:
        raise ConfigError(
            f"{where} holds no images, or is neither a folder nor a pattern such as out/base-*.png"
        )
    return sorted(found, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.name)])


def common_size(runs: list[ImageSet]) -> tuple[int, int] | None:
    """(width, height) of all generated images; None where they differ, or one cannot be read, which scoring then says."""
    sizes = set()
    for path in (path for run in runs for path in run.paths):
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
    return sizes.pop() if len(sizes) == 1 else None


def prompts_for(paths: list[Path], file: Path | None = None) -> list[str] | None:
    """The prompt of each image: line by line from `file`, each for as many images in a row, or from NAME.txt beside each; None if there are none.

    Raises ConfigError when the file cannot be read, or the images are no multiple of its lines.
    """
    try:
        if file is None:
            texts = [p.with_suffix(".txt") for p in paths]
            return (
                [" ".join(t.read_text(encoding="utf-8-sig").split()) for t in texts]
                if all(t.is_file() for t in texts)
                else None
            )
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts cannot be read: {error}") from None
    return repeated(lines, paths, file)


def repeated(prompts: list[str], paths: list[Path], where) -> list[str]:
    """Each prompt for as many images in a row."""
    each, rest = divmod(len(paths), len(prompts)) if prompts else (0, 1)
    if rest or not each:
        raise ConfigError(
            f"{where} has {len(prompts)} prompts for the {len(paths)} images of {paths[0].parent}: it must be as many for each prompt"
        )
    return [prompt for prompt in prompts for _ in range(each)]
