"""Every option, defined once: the command line, --help, the page and config.json come from these fields."""

from gralora_diffusion.config.adapter import AdapterConfig
from gralora_diffusion.config.choices import (
    EMBEDDED_DEFAULTS,
    METHODS,
    OPTIMIZERS,
    PREDICTIONS,
    QUANTIZED,
    SCHEDULES,
    SDXL_DEFAULTS,
)
from gralora_diffusion.config.groups import GROUPS
from gralora_diffusion.config.train import TrainConfig

__all__ = [
    "EMBEDDED_DEFAULTS",
    "GROUPS",
    "METHODS",
    "OPTIMIZERS",
    "PREDICTIONS",
    "QUANTIZED",
    "SCHEDULES",
    "SDXL_DEFAULTS",
    "AdapterConfig",
    "TrainConfig",
]
