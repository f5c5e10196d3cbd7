"""Personalise SDXL with low-rank adapters: GraLoRA, Hybrid GraLoRA and LoRA."""

import importlib

__version__ = "0.1.0"
_WHERE = {
    "AdapterConfig": "config",
    "TrainConfig": "config",
    "LoRALinear": "adapters.linear",
    "GraLoRALinear": "adapters.linear",
    "inject": "adapters.inject",
    "load_sdxl": "sdxl.load",
    "save_adapter": "formats.load",
    "load_adapter": "formats.load",
}
__all__ = list(_WHERE)


def __getattr__(name):  # torch and diffusers are imported only when a name that needs them is used
    if name not in _WHERE:
        raise AttributeError(f"gralora_diffusion has no {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
