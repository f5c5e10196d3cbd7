"""The page's only use of the evaluators: images, prompts and references in, scores out."""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from gralora_diffusion.options import ConfigError, one_of
from gralora_diffusion.ui.literal import literal

WITH_IMAGES = {"references", "lookalikes", "originals", "base"}  # what a metric compares images with
HEAD = ["images", "score", "better", "n", "mean", "sd", "95 % interval", "encoder", "best adapter"]
BEST = "★ best"
BEST_BUT = "★ best, intervals overlap"
BEST_MEAN = "best mean"  # without an interval, so that nothing says how much of it is chance
BEHIND_BASE = ", base better"
BASE = "base"  # the name of what is the same for several adapters at strength 0
OF_BASE = "base, not ranked"
VERDICTS = {
    BEST: "is best",
    BEST_BUT: "has the best mean, but intervals overlap, so that may be chance",
    BEST_MEAN: "has the best mean; there is no interval that says how much of it is chance",
}


@dataclass(frozen=True)
class Group:
    """Images that are scored together, and their prompts."""

    name: str
    files: list[Path]
    prompts: list[str]


def encoder_names() -> list[str]:
    from gralora_diffusion.evaluation.encoder_names import PRESETS

    return list(PRESETS)


def load_encoders(names: list[str]) -> list:
    """Raises ConfigError for a name that is no preset, or where a package is missing."""
    from gralora_diffusion.evaluation.encoders import load_encoder

    if not names:
        raise ConfigError("choose at least one encoder")
    for name in names:
        one_of("the encoder", name, encoder_names())  # presets only: other names may be paths
    try:
        return [load_encoder(name) for name in names]
    except ImportError as error:
        problem = f"the scores need the package {error.name}, which is missing: pip install {error.name}"
        raise ConfigError(problem) from None


def scores(groups: list[Group], references: list[Path], encoders: list[str], cache: Path) -> list[dict]:
    """Likeness to the references, fidelity to the prompt, diversity, copies: a dict for each as in reports.

    cache: a folder for the features of images.  Raises ConfigError when an encoder cannot be loaded.
    """
    from gralora_diffusion.evaluation.features import image_features
    from gralora_diffusion.evaluation.image_sets import ImageSet, References
    from gralora_diffusion.evaluation.metrics import evaluate

    loaded = load_encoders(encoders)
    with Image.open(groups[0].files[0]) as image:
        size = image.size  # references are resized to it
    image_sets = [ImageSet(group.name, group.files, group.prompts) for group in groups]
    against = References(references=references, size=size)
    found = evaluate(loaded, image_sets, against, partial(image_features, cache=cache), paired=False)
    return [entry | dict(against=references) for entry in found["scores"]]


def table(entries: list[dict], of_base: set[str]) -> list[list[str]]:
    """Rows with the columns HEAD.  of_base: the groups that are the base's, which are not ranked."""
    from gralora_diffusion.evaluation.metric import METRICS
    from gralora_diffusion.evaluation.score_rows import rows_of

    entries = by_score(with_base_once(entries, of_base))
    marks = best_marks(entries, of_base | {BASE})
    rows = rows_of([{name: entry[name] for name in entry if name != "against"} for entry in entries])
    found = []
    for entry, (images, score, *numbers), mark in zip(entries, rows, marks, strict=True):
        found.append([images, score, METRICS[entry["score"]].better, *numbers, mark])
    return found


def with_base_once(entries: list[dict], of_base: set[str]) -> list[dict]:
    """The entries, where those of the base that are the same but for the adapter are one, named BASE."""
    found = {}
    for entry in entries:
        numbers = {name: value for name, value in entry.items() if name not in ("run", "against")}
        key = repr((None if entry["run"] in of_base else entry["run"], measure_of(entry), numbers))
        found[key] = entry | dict(run=BASE) if key in found else entry
    return list(found.values())


def by_score(entries: list[dict]) -> list[dict]:
    """The entries with those of one score and encoder side by side."""
    groups = {}
    for entry in entries:
        groups.setdefault((entry["score"], entry["encoder"]), []).append(entry)
    return list(itertools.chain.from_iterable(groups.values()))


def verdict(rows: list[list[str]]) -> str:
    """The marks of table(), as sentences in Markdown."""
    lines = []
    for name, score, _, *_, encoder, mark in rows:
        known = [text for text in VERDICTS if mark.startswith(text)]
        if known:
            text = VERDICTS[max(known, key=len)]
            base = "; the base is better still" if mark.endswith(BEHIND_BASE) else ""
            lines.append(f"- {score} ({encoder}): **{literal(name)}** {text}{base}")
    return "\n".join(lines)


def measure_of(entry: dict) -> tuple:
    """(score, encoder, what images are compared with): means of equal measures can be compared."""
    from gralora_diffusion.evaluation.metric import METRICS

    compares = not WITH_IMAGES.isdisjoint(METRICS[entry["score"]].needs)
    return entry["score"], entry["encoder"], tuple(entry["against"]) if compares else ()


def with_short_encoders(rows: list[list[str]]) -> list[list[str]]:
    """The rows of table() as the page displays them: files have the encoders' long names."""
    from gralora_diffusion.evaluation.short_names import short_names

    place = HEAD.index("encoder")
    short = short_names([row[place] for row in rows])
    return [[*row[:place], short[row[place]], *row[place + 1 :]] for row in rows]


def best_marks(entries: list[dict], of_base: set[str]) -> list[str]:
    """For each score a mark where its mean is the best of the adapters that were measured in the same way.

    That is, by the same encoder against the same images.  Of equal means, and of one group alone, none is
    marked.  It says where the base's mean is better still.
    """
    from gralora_diffusion.evaluation.metric import METRICS

    by_measure = {}
    of_bases = {}
    marks = [""] * len(entries)
    for number, entry in enumerate(entries):
        key = measure_of(entry)
        if entry["run"] in of_base:
            of_bases.setdefault(key, []).append(entry["mean"])
            marks[number] = OF_BASE
        else:
            by_measure.setdefault(key, []).append(number)
    for key, numbers in by_measure.items():
        sign = METRICS[key[0]].sign
        best, *others = sorted(numbers, key=lambda n: -sign * entries[n]["mean"])
        if others and entries[others[0]]["mean"] != entries[best]["mean"]:
            marks[best] = mark_of(entries[best], [entries[other] for other in others])
            if any(sign * mean > sign * entries[best]["mean"] for mean in of_bases.get(key, ())):
                marks[best] += BEHIND_BASE
    return marks


def mark_of(best: dict, others: list[dict]) -> str:
    """How sure the best mean is, by the intervals."""
    if any(entry["low"] is None for entry in (best, *others)):
        return BEST_MEAN
    return BEST_BUT if any(overlap(best, other) for other in others) else BEST


def overlap(first: dict, second: dict) -> bool:
    """Whether the intervals of two means have common values."""
    return first["low"] <= second["high"] and second["low"] <= first["high"]
