"""Resuming a run: its newest checkpoint, and what must be as it was then."""

import hashlib
import warnings
from pathlib import Path

import torch

from gralora_diffusion.adapters import allocation_file
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.cache import weights_hash
from gralora_diffusion.data.image_folder import TrainingImage, content_of, content_of_masks
from gralora_diffusion.formats.conv_factors import as_matrix
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint
from gralora_diffusion.sdxl.flow import FLOW, is_flow
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.choose_run import check_same, checkpoint_to_resume, holds_run
from gralora_diffusion.training.run_folder import environment

MUST_MATCH = {  # facts of a run that must be the same when it is resumed, as a message names them
    "images": "different images or captions",
    "masks": "different masks",
    "base": "a different base",
    "processes": "a different number of processes",
    "steps": "a different number of steps, which --lr_scheduler depends on",
    "others": "a different VAE or different text encoders",
    "noise": "a different noise schedule",
    "start": "a different adapter to start from",
    "held_out": "different held-out images",
    "scored": "different prompts or settings of the sample images, whose scores are compared",
}


def resume(path: Path, config: TrainConfig, models: dict, facts: dict) -> tuple[int, dict]:
    """(step, state) of the checkpoint to resume from, with its adapter in the models; (0, {}) without one.

    Raises ConfigError, with what differs, where options, images or base are not those of the run.
    """
    wanted = config.resume_from_checkpoint
    if not holds_run(path, wanted):
        return 0, {}
    check_same(path, config)
    checkpoint = checkpoint_to_resume(path, wanted)
    if checkpoint is None:
        return 0, {}
    tensors, state = checkpoints.load(checkpoint)
    check_facts(checkpoint, state["facts"], facts)
    if config.allocate:
        allocation_file.inject_from(path / allocation_file.FILE, models, config)
    for name, parameter in named_parameters(models).items():
        found = as_matrix(name.rpartition(".")[2], tensors[name]) if name in tensors else None
        if found is None or found.shape != parameter.shape:
            problem = f"{name} is missing or has another shape"
            raise ConfigError(f"{checkpoint} does not fit this run's adapter: {problem}")
        parameter.data.copy_(found)
    return checkpoints.step_of(checkpoint), state


def named_parameters(models: dict) -> dict[str, torch.nn.Parameter]:
    """{name in the native file: parameter} of all adapters."""
    found = {}
    for component, model in models.items():
        for path, layer in adapted_layers(model).items():
            for leaf, parameter in layer.adapter.named_parameters():
                found[f"{component}.{canonical(component, path)}.{leaf}"] = parameter
    return found


def facts_of(
    pipeline,
    images: list[TrainingImage],
    class_images: list[TrainingImage],
    steps: int | None,
    accelerator,
) -> dict:
    """What a run depends on beside its config. steps: their number, where the learning rate depends on it."""
    if is_flow(pipeline.scheduler.config):
        noise = FLOW.encode()
    else:
        noise = pipeline.scheduler.alphas_cumprod.float().numpy().tobytes()
    must_match = dict(
        images=content_of(images + class_images, masks=False),
        masks=content_of_masks(images),
        instance=content_of(images),  # not compared: choose_run.py finds the run by it
        base=fingerprint(pipeline.unet),
        processes=accelerator.num_processes,
        steps=steps,
        others=weights_hash(pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2),
        noise=hashlib.sha256(noise).hexdigest(),
    )
    should_match = dict(device=str(accelerator.device.type), threads=torch.get_num_threads(), **environment())
    # The keys tell versions apart: "flat", since an optimizer's state is that of FlatFactors.
    return dict(must_match=must_match, should_match=should_match, flat=True)


def check_facts(checkpoint: Path, before: dict, now: dict) -> None:
    """Raises ConfigError where the run would train on something else; warns where rounding may differ."""
    if before.keys() != now.keys():
        problem = f"{checkpoint} was written by another version of gralora_diffusion"
        raise ConfigError(f"{problem}: resume it with that version, or choose another --output_dir")
    old, new = before["must_match"], now["must_match"]
    changed = [what for name, what in MUST_MATCH.items() if name in old and new[name] != old[name]]
    if changed:
        problem = f"{checkpoint} was made with {' and '.join(changed)}"
        ways = "use the same to resume it, or choose another --output_dir"
        if set(changed) <= {MUST_MATCH["images"], MUST_MATCH["masks"]}:
            ways += f", with --start_from {checkpoint} to continue from this adapter with the new ones"
        raise ConfigError(f"{problem}: {ways}")
    old, new = before["should_match"], now["should_match"]
    changed = [
        f"{name} {value}, now {new.get(name)}" for name, value in old.items() if new.get(name) != value
    ]
    if changed:
        problem = f"{checkpoint} was made with {', '.join(changed)}"
        warnings.warn(
            f"{problem}: the run resumes, but its numbers may differ in the last bits", stacklevel=2
        )
