"""Sentences of `gralora sample`, `convert` and `evaluate` as Sample, Export and Compare write them.

page_words.py is the same for the options of training.
"""

import re

FIELD = re.compile(  # a flag with its value, not in a quoted text
    r"(?<![\w'\"`-])--(scheduler|encoder) (?!(?:is|must|needs|has|and)\b)([\w-]+(?::[\w./-]+)*)"
)
LABELS = {"scheduler": "Scheduler", "encoder": "Encoders"}
FOLDER = re.compile(
    r"; either (run once with a network, .{1,300}? hub), or copy .{1,300}? --encoder \w+:FOLDER;"
)
CLIP_SKIP = re.compile(r"^--clip_skip (is \d+; it must be from 1 to \d+, the layers of this base's .+)$")
OF_ADAPTER = r"the clip skip that the adapter was trained with \1: choose another base model"
PHRASES = {  # {what to do on the command line: on the page}
    "drop it, and the flow's own Euler steps are used": (
        "choose “same as the base model”, and the flow's own Euler steps are used"
    ),
    "use another, such as --pretrained_vae_model_name_or_path madebyollin/sdxl-vae-fp16-fix": (
        "choose another base model"
    ),
    "use --mixed_precision bf16 or no instead of fp16": "choose another base model or adapter",
    "write a plain LoRA (gralora convert: --energy 1 for the same, --rank N for the best of rank N)": (
        "choose another format, or a rank under “File size”"
    ),
    "give --rank N or --energy E for the best LoRA, with its error": (
        "choose a rank under “File size” for the best LoRA of that rank"
    ),
    ", and the base with --pretrained_model_name_or_path": (
        "; its kind depends on the base's weights, for which `gralora convert` is needed"
    ),
    "give the base with --pretrained_model_name_or_path": "use `gralora convert`, which can read the base",
    "use --dtype bf16 or fp32": "choose “Precision” bf16 or fp32",
    "can be scored without either: --encoder imagenet embedded": (
        "can be scored without it: choose imagenet and embedded"
    ),
}


def tab_words(text: str) -> str:
    """The sentence with labels and choices of the page for flags; one without such flags as it is."""
    if "--" not in text and "drop it" not in text:
        return text
    text = FOLDER.sub(r"; \1;", text)
    text = CLIP_SKIP.sub(OF_ADAPTER, text)
    for command, page in PHRASES.items():
        text = text.replace(command, page)
    return FIELD.sub(lambda match: f"“{LABELS[match[1]]}: {match[2]}”", text)
