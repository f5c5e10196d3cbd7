"""How often a training step may launch, wait for the device, and copy between host and device.

Counted on the stub, so the same on every machine.  Lower a number when a step needs less.
"""

SLACK = 1.02  # versions of torch and diffusers launch a little more or less


def budget(launches: int, syncs: int, copies: int) -> dict[str, int]:
    return dict(launches=launches, syncs=syncs, copies=copies)


RUNS = {  # a step of the embedded base: test_commands.py's runs
    "bf16": budget(1_406, 1, 2),
    "fp32": budget(1_365, 1, 2),
    "class images, fp16": budget(1_176, 2, 3),
    "fp16, text encoders": budget(3_927, 7, 9),  # two batches
    "T-LoRA": budget(1_516, 1, 2),
    "AdamW": budget(1_170, 1, 2),
    "masks": budget(1_173, 1, 2),
    "AdamW, fp16": budget(1_176, 2, 3),
    "Prodigy": budget(1_174, 3, 4),
    "Adafactor": budget(1_205, 1, 2),
    "AdamWScheduleFree": budget(1_170, 1, 2),
    "SGD": budget(1_170, 1, 2),
}
PRESETS = {  # a step of SDXL; four batches of most style presets
    "subject-6gb": budget(9_317, 1, 171),
    "subject-8gb": budget(9_317, 1, 2),
    "subject-12gb": budget(9_317, 1, 2),
    "subject-16gb": budget(6_818, 1, 2),
    "subject-24gb": budget(6_842, 1, 2),
    "style-8gb": budget(37_238, 1, 5),
    "style-12gb": budget(37_238, 1, 5),
    "style-16gb": budget(27_245, 1, 5),
    "style-24gb": budget(13_687, 1, 3),
}
UNET = {  # forward, backward and AdamW of SDXL's UNet alone, batch 1: step_counts.py
    "frozen": 4_313,
    "LoRA": 6_787,
    "GraLoRA": 6_799,
}
MOST_OF_AN_OPTIMIZER = 50  # launches


def problems(line: dict, allowed: dict[str, int]) -> list[str]:
    """Where a step is over its budget."""
    found = []
    for name, most in allowed.items():
        limit = int(most * SLACK)
        if line[name] > limit:
            found.append(f"{line[name]:,} {name}, and {limit:,} are allowed")
    return found
