"""The formats that an adapter can be written in: one table for `gralora convert`, the trainer and the page.

It imports neither torch nor a writer before one is used, so that `gralora convert --help` answers at once.
"""

import importlib
from pathlib import Path
from typing import NamedTuple

from gralora_diffusion.console import note
from gralora_diffusion.options import ConfigError

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp8": "float8_e4m3fn"}


class Writer(NamedTuple):
    """One format.

    function: module.name of write(path, adapter, dtype), which takes the base as well where needs_base is
    set. suffixes: how OUT may end, "" for a folder; dtype: of the tensors, unless another one is asked for.
    reader: what loads it.  masked: whether it holds T-LoRA's mask of ranks by timestep.
    """

    function: str
    suffixes: tuple[str, ...]
    dtype: str
    reader: str
    needs_base: bool = False
    masked: bool = False

    def write(self, path: str | Path, adapter, dtype: str | None = None, base: str | None = None) -> dict:
        """Write the Adapter; returns what it, or the merged base, predicts.

        Raises ConfigError where the format cannot hold it, and ValueError at a non-finite number.
        """
        import torch

        if adapter.deltas and not self.needs_base:
            kinds = ", ".join(adapter.foreign_kinds())
            problem = f"{path}: the adapter holds layers of the kind {kinds}, which this format cannot hold"
            raise ConfigError(f"{problem}: give a rank, for the nearest LoRA of that rank")
        if adapter.config.tlora and not self.masked:
            note(f"{path}: T-LoRA's mask is not part of this file, so all ranks act at every timestep")
        module, _, name = self.function.rpartition(".")
        function = getattr(importlib.import_module(f"gralora_diffusion.formats.{module}"), name)
        options = dict(base=base) if self.needs_base else {}
        written = function(path, adapter, dtype=getattr(torch, DTYPES[dtype or self.dtype]), **options)
        return written or adapter.facts.get("objective", {})


FILE = (".safetensors",)
FOLDER = ("",)
WRITERS = {
    "comfyui": Writer("write.write_comfyui", FILE, "fp16", "ComfyUI, A1111, Forge and kohya's scripts"),
    "diffusers": Writer("write.write_diffusers", FILE, "fp16", "load_lora_weights of diffusers"),
    "peft": Writer("write_peft.write_peft", FOLDER, "fp32", "PeftModel.from_pretrained of PEFT"),
    "native": Writer("write.write_native", FILE, "fp32", "this package", masked=True),
    "merged": Writer(
        "merge_base.write_merged", FILE + FOLDER, "fp16", "any tool that loads an SDXL base", needs_base=True
    ),
}
