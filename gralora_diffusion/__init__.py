"""Personalize SDXL with low-rank adapters: GraLoRA, Hybrid GraLoRA, GoRA and LoRA."""

import importlib

__version__ = "0.1.0"
_MODULES = {  # imported when a name is first used: torch and diffusers take seconds
    "AdapterConfig": "config",
    "TrainConfig": "config",
    "LoRALinear": "adapters.linear",
    "GraLoRALinear": "adapters.linear",
    "inject": "adapters.inject",
    "set_strength": "adapters.control",
    "enable": "adapters.control",
    "remove": "adapters.control",
    "load_sdxl": "sdxl.load",
    "sample": "sdxl.sampling",
    "load_adapter": "formats.load",
    "save_adapter": "formats.load",
    "train": "training.train",
    "evaluate": "evaluation.metrics",
}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"gralora_diffusion has no {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__():
    return [*__all__, "__version__"]
