"""Options for SDXL by training target and GPU memory."""

import json
from pathlib import Path

from gralora_diffusion.options import ConfigError

# {name: {options, usable_gib: GPU memory that it is for, forecast_gib: what it takes at its peak}}
PRESETS = json.loads(Path(__file__).with_name("presets.json").read_text())
BY_CARD = tuple(dict.fromkeys(name.rpartition("-")[0] for name in PRESETS))  # subject, style
CLOSE = 0.1  # GiB: so much less than usable_gib a card may have free


def preset_options(name: str) -> dict:
    """The options of a preset; of "subject" or "style", those of its preset for this machine's GPU.

    Raises ConfigError where there is no GPU, or none of the presets fits it.
    """
    return PRESETS[preset_of_card(name) if name in BY_CARD else name]["options"]


def check_preset(name: str, base: str | None) -> None:
    """Raises ConfigError for a preset on the embedded base (None)."""
    if base is None:
        problem = f"--preset {name} is for SDXL, not for the embedded base"
        raise ConfigError(
            f"{problem}: give a base with --pretrained_model_name_or_path",
            option="pretrained_model_name_or_path",
        )


def preset_of_card(target: str) -> str:
    """The largest preset of a target that the free memory of the GPU has room for.

    Raises ConfigError where there is no GPU, or none of the presets fits it.
    """
    from gralora_diffusion.devices import best_device, free_memory, name_of  # torch takes seconds

    device = best_device()
    free = free_memory(device)
    if free is None:
        problem = f"--preset {target} depends on the memory of a GPU, and this machine has none"
        raise ConfigError(f"{problem}: choose one of {', '.join(presets_of(target))}", option="preset")
    name = largest_fitting(target, free)
    if name is None:
        least = min(PRESETS[name]["usable_gib"] for name in presets_of(target))
        has = f"this GPU ({name_of(device)}) has {free / 2**30:.1f} GiB free"
        problem = f"{has}, but --preset {target} needs {least:g}"
        raise ConfigError(f"{problem}: close other programs that use the GPU", option="preset")
    return name


def presets_of(target: str) -> list[str]:
    return [name for name in PRESETS if name.rpartition("-")[0] == target]


def largest_fitting(target: str, free: int) -> str | None:
    """The preset of a target that uses the most of so many free bytes; None where none fits."""
    fitting = [name for name in presets_of(target) if PRESETS[name]["usable_gib"] <= free / 2**30 + CLOSE]
    return max(fitting, key=lambda name: PRESETS[name]["usable_gib"], default=None)
