"""Captions of composed images, and which pairs of words are held out of training."""

import hashlib
import re

STYLES = ("3d render", "drawing", "sticker")
TRAIN_STYLES = STYLES[:2]
COLORS = {  # names of backgrounds and tints: RGB from 0 to 255
    "white": (250, 250, 250),
    "black": (16, 16, 18),
    "grey": (130, 130, 132),
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 150, 70),
    "blue": (40, 80, 200),
    "light blue": (150, 205, 245),
    "purple": (120, 60, 170),
    "pink": (250, 160, 195),
    "brown": (120, 75, 45),
}
TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SCENES = ("on the grass", "on the beach", "in the snow", "at night", "at sunset")
STYLE_PREFIXES = {"3d render": "a 3d render of ", "drawing": "a drawing of ", "sticker": "a sticker of "}
PLAIN_PREFIXES = ("a photo of ", "a picture of ", "an image of ", "")  # these do not name the style
RARE = "sks"  # sometimes stands before an object in training, so that it has no meaning of its own
WITHOUT_ARTICLE = (
    "fire",
    "wood",
    "popcorn",
    "bread",
    "spaghetti",
    "sushi",
    "bacon",
    "coral",
    "yarn",
    "broccoli",
    "garlic",
)


def pair_held_out(first: str, second: str) -> bool:
    """True for one pair in ten, by a hash of the words: such pairs are never composed for training."""
    digest = hashlib.sha256(f"{first}|{second}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 == 0


def caption(
    style: str,
    tint: str | None,
    label: str,
    background: str | None,
    other: tuple[str | None, str] | None = None,
    prefix: str | None = None,
    rare: bool = False,
) -> str:
    """The caption of an image.

    other: (tint, label) of a second object.
    prefix: replaces the style's.  rare: put RARE before the objects.
    """
    text = STYLE_PREFIXES[style] if prefix is None else prefix
    text += noun(tint, label, rare)
    if other:
        text += " next to " + noun(*other, rare)
    if background in SCENES:
        text += f" {background}"
    elif background:
        text += f" on a {background} background"
    return text.replace("on a orange", "on an orange")


def noun(tint: str | None, label: str, rare: bool) -> str:
    """The object with its tint and article; a tinted "red apple" loses its own color."""
    if tint:
        label = re.sub(r"^(red|green) (?=apple|heart)", "", label)
    words = [RARE if rare else None, tint, label]
    return with_article(" ".join(filter(None, words)))


def with_article(label: str) -> str:
    if label.endswith("s") and not re.search(r"(ss|us|compass|glass|octopus|lens)$", label):
        return label  # grapes, jeans
    if label in WITHOUT_ARTICLE:
        return label
    vowel = label[0] in "aeiou" and not label.startswith(("uni", "ufo"))
    return f"an {label}" if vowel else f"a {label}"
