"""The adapter of a finished run, in each tool's format."""

import json
from pathlib import Path

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note
from gralora_diffusion.files import write_text
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.preview import copy_preview, last_sample, thumbnail_url
from gralora_diffusion.formats.read import DIFFUSERS, NATIVE, read_adapter
from gralora_diffusion.formats.run_files import named_after
from gralora_diffusion.formats.write import EARLIER, KOHYA, file_sizes, write_comfyui
from gralora_diffusion.formats.writers import WRITERS
from gralora_diffusion.options import ConfigError, TrainingError, from_dict
from gralora_diffusion.training.accelerator import precision
from gralora_diffusion.training.best import is_exhausted
from gralora_diffusion.training.checkpoint import BEST
from gralora_diffusion.training.optim import depends_on_length
from gralora_diffusion.training.run_folder import Run
from gralora_diffusion.training.setup import TrainingSetup

EXPORT_OPTIONS = ("output_kohya_format", "upcast_before_saving")
SAMPLE_OPTIONS = (
    "validation_prompt",
    "num_validation_images",
    "num_inference_steps",
    "guidance_scale",
    "validation_negative_prompt",
    "validation_size",
    "validation_scheduler",
    "skip_final_inference",
)


def export(setup: TrainingSetup, step: int) -> None:
    """Write the files of the adapter, which is of this step, and its preview, the first sample image then.

    Raises TrainingError when the adapter holds a number that is not finite.
    """
    try:
        adapter = setup.adapter(step)
        if image := last_sample(setup.path, step):
            adapter.facts["training"]["thumbnail"] = thumbnail_url(image)
            copy_preview(image, named_after(setup.path, ".png"))
        WRITERS["native"].write(setup.path / NATIVE, adapter)
        write_other_formats(setup.path, adapter, setup.config)
    except (ValueError, OSError) as error:
        raise TrainingError(f"the adapter cannot be exported: {error}") from None


def export_sizes(layers: dict, config: TrainConfig, run: Path) -> dict[str, int]:
    """{file: bytes} of what export() will write to `run`, from shapes alone.

    layers: {component.path: layer}.
    """
    native, exported = file_sizes(layers)
    sizes = {NATIVE: native}
    if config.keep_best:
        sizes[f"{BEST}/{NATIVE}"] = native
    if exported is None:  # other tools cannot hold this kind of adapter
        return sizes
    sizes[DIFFUSERS] = exported if is_fp32(config) else exported // 2
    sizes[named_after(run).name] = exported // 2
    if config.output_kohya_format:
        sizes[KOHYA] = exported // 2
    return sizes


def is_fp32(config: TrainConfig) -> bool:
    """Whether diffusers' file is written in fp32."""
    return precision(config)[1] == torch.float32 or config.upcast_before_saving


def write_other_formats(run: Path, adapter: Adapter, config: TrainConfig) -> None:
    """The files for other tools; a note instead, for a kind of adapter that they cannot hold.

    A file of an earlier version's name is written again too, so that it is not of an earlier step.
    """
    try:
        adapter.check_low_rank()
    except ConfigError as error:
        note(str(error))
        return
    WRITERS["diffusers"].write(run / DIFFUSERS, adapter, "fp32" if is_fp32(config) else "fp16")
    WRITERS["comfyui"].write(named_after(run), adapter, "fp16")
    if (run / EARLIER).is_file() and named_after(run).name != EARLIER:
        WRITERS["comfyui"].write(run / EARLIER, adapter, "fp16")
    if config.output_kohya_format:
        write_comfyui(run / KOHYA, adapter, sgm=False)


def way_on(setup: TrainingSetup) -> str:
    """What trains a finished run further."""
    config = setup.config
    options = []
    if setup.start == setup.steps:
        if depends_on_length(config):
            why = "--lr_scheduler depends on the number of steps"
            return f"a longer run needs another --output_dir, since {why}"
        options.append("--max_train_steps" if config.num_train_epochs is None else "--num_train_epochs")
    if is_exhausted(setup.evaluated(), config):
        options.append("--patience")
    return f"raise {' and '.join(options)} to train it further"


def export_again(setup: TrainingSetup) -> None:
    """Of a finished run, write the files that its config now asks for and it lacks, from the native file.

    Prints that the run is finished, and notes which changed options no longer have an effect.
    """
    run, config = setup.path, setup.config
    recorded = json.loads((run / "config.json").read_text())
    saved = from_dict(TrainConfig, recorded)
    ignored = [f"--{name}" for name in SAMPLE_OPTIONS if getattr(saved, name) != getattr(config, name)]
    if ignored:
        problem = f"{run} is finished, and {' and '.join(ignored)} can no longer change its images"
        note(f"{problem}: use `gralora sample` to generate others")
    changed = {name: getattr(config, name) for name in EXPORT_OPTIONS}
    done = f"done: {run} was already finished, and nothing was trained"
    if all(getattr(saved, name) == value for name, value in changed.items()):
        print(f"{done}: {way_on(setup)}", flush=True)
        return
    try:
        with Run(run):
            write_other_formats(run, read_adapter(run / NATIVE), config)
            write_text(run / "config.json", json.dumps(recorded | changed, indent=2) + "\n")
    except (ValueError, OSError) as error:
        raise TrainingError(f"{run} is finished, and its files could not be written again: {error}") from None
    print(f"{done}; its files for other tools were written again", flush=True)
