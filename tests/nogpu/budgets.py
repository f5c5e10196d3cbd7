"""How often a training step may launch, wait for the device, and copy between host and device.

Counted on the stub, so the same on every machine.  Lower a number when a step needs less.
"""

SLACK = 1.02  # versions of torch and diffusers launch a little more or less


def budget(launches: int, syncs: int, copies: int) -> dict[str, int]:
    return dict(launches=launches, syncs=syncs, copies=copies)


RUNS = {  # a step of the embedded base: test_commands.py's runs
    "bf16": budget(2_102, 12, 12),
    "fp32": budget(1_362, 12, 12),
    "class images, fp16": budget(2_777, 13, 13),
    "fp16, text encoders": budget(8_051, 25, 25),  # two batches
    "T-LoRA": budget(2_108, 12, 12),
    "AdamW": budget(1_875, 12, 12),
    "AdamW, fp16": budget(2_777, 13, 13),
    "Prodigy": budget(3_441, 236, 236),
    "Adafactor": budget(4_673, 12, 12),
    "AdamWScheduleFree": budget(1_883, 12, 12),
}
PRESETS = {  # a step of SDXL
    "subject-8gb": budget(18_143, 12, 12),
    "subject-12gb": budget(18_143, 12, 12),
    "subject-16gb": budget(18_167, 12, 12),
    "subject-24gb": budget(12_670, 12, 12),
    "style-8gb": budget(75_907, 45, 45),  # four batches
    "style-12gb": budget(75_907, 45, 45),
    "style-16gb": budget(37_455, 23, 23),  # two
    "style-24gb": budget(18_181, 12, 12),
}
UNET = {  # forward, backward and AdamW of SDXL's UNet alone, batch 1: step_counts.py
    "frozen": 6_137,
    "LoRA": 11_541,
    "GraLoRA": 12_661,
}


def problems(line: dict, allowed: dict[str, int]) -> list[str]:
    """Where a step is over its budget."""
    found = []
    for name, most in allowed.items():
        limit = int(most * SLACK)
        if line[name] > limit:
            found.append(f"{line[name]:,} {name}, and {limit:,} are allowed")
    return found
