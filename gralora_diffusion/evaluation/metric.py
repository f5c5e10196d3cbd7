"""What is measured: the table of metrics, and a score, which is a metric by an encoder at a strength."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from gralora_diffusion.options import ConfigError


@dataclass(frozen=True)
class Metric:
    """One kind of score.

    name: in files and options.  label: in tables; labels: what papers call it with encoders of some kind.
    needs: the fields of metrics.Inputs that it is computed from; none for the loss, which training measures.
    """

    name: str
    label: str
    meaning: str
    higher_is_better: bool
    needs: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def better(self) -> str:
        """Which value is the better one, in a word."""
        return "higher" if self.higher_is_better else "lower"

    def label_by(self, encoder_kind: str) -> str:
        return self.labels.get(encoder_kind, self.label)


TABLE = (
    Metric(
        name="subject",
        label="subject",
        meaning="mean cosine with each of the subject's images (as in DreamBooth): higher is more similar",
        higher_is_better=True,
        needs=("references",),
        labels={"clip": "CLIP-I", "dinov2": "DINO"},
    ),
    Metric(
        name="subject alone",
        label="subject without background",
        meaning="the same for the subjects alone, on gray: from masks, or what a saliency model finds",
        higher_is_better=True,
        needs=("alone", "references_alone"),
        labels={"clip": "CLIP-I without background", "dinov2": "DINO without background"},
    ),
    Metric(
        name="prompt",
        label="prompt",
        meaning="cosine of image and prompt: higher fits better",
        higher_is_better=True,
        needs=("texts",),
        labels={"clip": "CLIP-T"},
    ),
    Metric(
        name="paired",
        label="paired",
        meaning="cosine with the true image of the same caption: higher is more similar",
        higher_is_better=True,
        needs=("originals",),
        labels={"clip": "paired CLIP", "dinov2": "paired DINOv2"},
    ),
    Metric(
        name="drift",
        label="drift",
        meaning="(1 - cosine) / 2 with the base's image of the same prompt and seed: 0 is the base's own",
        higher_is_better=False,
        needs=("base",),
    ),
    Metric(
        name="diversity",
        label="diversity",
        meaning="mean of 1 - cosine over all pairs of images of one prompt, a value per prompt: "
        "0 if all are the same",
        higher_is_better=True,
        needs=("prompts",),
    ),
    Metric(
        name="vendi",
        label="Vendi score",
        meaning="effective number of different images of one prompt (arXiv 2210.02410), a value per prompt: "
        "from 1 (all are the same) to their number",
        higher_is_better=True,
        needs=("prompts",),
    ),
    Metric(
        name="identity",
        label="identity rank",
        meaning="average precision of the subject's images among those of look-alikes, by cosine with the "
        "image: 1 puts all of the subject's first",
        higher_is_better=True,
        needs=("references", "lookalikes"),
    ),
    Metric(
        name="copy",
        label="nearest training image",
        meaning="cosine with the nearest training image: 1 is a copy",
        higher_is_better=False,
        needs=("references",),
    ),
    Metric(
        name="held-out loss",
        label="held-out loss",
        meaning="training loss on images that are held out",
        higher_is_better=False,
    ),
    Metric(
        name="training loss",
        label="training loss",
        meaning="mean training loss of the last third of the steps",
        higher_is_better=False,
    ),
)
OF_PROMPTS = ("diversity", "vendi")  # with a value for each prompt, not each image
METRICS = {metric.name: metric for metric in TABLE}
AT_STRENGTH = re.compile(r"(.*) at ([\d.e+-]+)")


@dataclass(frozen=True)
class Score:
    """A metric by an encoder (empty for the loss), of images at a strength of the adapter: 0 is the base."""

    metric: Metric
    encoder: str = ""
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Score":
        """The score that str() wrote.  Raises ConfigError where it names no metric."""
        strength = 1.0
        name = text
        if found := AT_STRENGTH.fullmatch(text):
            name, strength = found[1], float(found[2])
        name, _, encoder = name.partition(", ")
        if name not in METRICS:
            raise ConfigError(f"{text!r} is not a score; its first word must be one of {', '.join(METRICS)}")
        return cls(METRICS[name], encoder, strength)

    def __str__(self) -> str:
        """As runs.jsonl and tables have it: "copy, ENCODER", and "copy, ENCODER at 0.5" at half strength."""
        name = f"{self.metric.name}, {self.encoder}" if self.encoder else self.metric.name
        return name if self.strength == 1 else f"{name} at {self.strength:g}"


def find_score(text: str, known: Iterable[Score]) -> Score:
    """The known score that an option names, as METRIC, ENCODER or as METRIC, which takes the first encoder.

    Raises ConfigError, which lists the known ones, for any other text.
    """
    known = list(dict.fromkeys(known))
    for score in known:
        if text == str(score) or (text == score.metric.name and score.strength == 1):
            return score
    names = "; ".join(sorted(map(str, known)))
    raise ConfigError(f"no run has the score {text!r}; known: {names}", option="score")
