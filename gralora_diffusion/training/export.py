"""What leaves a run when it has ended: the adapter in each tool's format, and the upload."""

import dataclasses
import json
from pathlib import Path

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.files import write_text
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.read import DIFFUSERS, NATIVE, read_adapter
from gralora_diffusion.formats.write import COMFYUI, KOHYA, file_sizes, write_comfyui
from gralora_diffusion.formats.writers import WRITERS
from gralora_diffusion.options import ConfigError, TrainingError, from_dict, to_dict
from gralora_diffusion.training.run_folder import Run
from gralora_diffusion.training.setup import TrainingSetup, adapter_of, precision

FORMATS = ("output_kohya_format", "upcast_before_saving")
DRAWN = (
    "validation_prompt",
    "num_validation_images",
    "num_inference_steps",
    "guidance_scale",
    "skip_final_inference",
)


def export(job: TrainingSetup) -> None:
    """The files for people.  Raises TrainingError when the adapter holds a number that is not finite."""
    try:
        adapter = adapter_of(job)
        WRITERS["native"].write(job.path / NATIVE, adapter)
        write_others(job.path, adapter, job.config)
    except (ValueError, OSError) as error:
        raise TrainingError(f"the adapter cannot be exported: {error}") from None


def sizes(layers: dict, config: TrainConfig) -> dict[str, int]:
    """{file: bytes} of what export() will write, from shapes alone; layers: {component.path: layer}."""
    native, exported = file_sizes(layers)
    found = {NATIVE: native}
    if exported is not None:
        found[DIFFUSERS] = exported if in_fp32(config) else exported // 2
        found[COMFYUI] = exported // 2
        if config.output_kohya_format:
            found[KOHYA] = exported // 2
    return found


def in_fp32(config: TrainConfig) -> bool:
    return precision(config)[1] == torch.float32 or config.upcast_before_saving


def write_others(run: Path, adapter: Adapter, config: TrainConfig) -> None:
    """The files for other tools; a note instead, for a kind of adapter that they cannot hold."""
    try:
        adapter.check_low_rank()
    except ConfigError as error:
        note(str(error))
        return
    WRITERS["diffusers"].write(run / DIFFUSERS, adapter, "fp32" if in_fp32(config) else "fp16")
    WRITERS["comfyui"].write(run / COMFYUI, adapter, "fp16")
    if config.output_kohya_format:
        write_comfyui(run / KOHYA, adapter, sgm=False)


def export_again(run: Path, config: TrainConfig) -> None:
    """Of a run that is done, write the files anew if this config asks for other ones, from the native file; nothing is trained.

    Says what the other options that are new cannot change any more.
    """
    saved = from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
    changed = {name for name in (*FORMATS, *DRAWN) if getattr(saved, name) != getattr(config, name)}
    if idle := [f"--{name}" for name in DRAWN if name in changed]:
        note(
            f"{run} is done, and {' and '.join(idle)} cannot change its images any more: scripts/sample_sdxl.py draws others"
        )
    if changed & set(FORMATS):
        try:
            with Run(run):
                write_others(run, read_adapter(run / NATIVE), config)
                saved = dataclasses.replace(saved, **{name: getattr(config, name) for name in FORMATS})
                write_text(run / "config.json", json.dumps(to_dict(saved), indent=2) + "\n")
        except (ValueError, OSError) as error:
            raise TrainingError(f"{run} is done, and its files could not be written anew: {error}") from None
        print(f"{run} is done already: its files are written anew, and nothing is trained", flush=True)
