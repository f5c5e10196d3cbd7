"""What a run works with: options checked, base loaded and adapted, checkpoint read, and nothing written."""

import functools
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from gralora_diffusion.adapters import allocation_file, rank_rules
from gralora_diffusion.adapters.adapted_layer import DEFAULT
from gralora_diffusion.adapters.inject import inject, unmatched_patterns
from gralora_diffusion.adapters.orthogonal_start import origin_of, start_orthogonal
from gralora_diffusion.adapters.quantization import check_quantization, quantize
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters, all_layers, handles
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import note, share_work
from gralora_diffusion.data.class_folders import check_class_folders
from gralora_diffusion.data.class_images import class_images
from gralora_diffusion.data.dataset import epoch_length, image_cache, instance_images
from gralora_diffusion.data.encode import check_captions, check_class_prompt
from gralora_diffusion.data.held_out import hold_out
from gralora_diffusion.data.image_folder import TrainingImage, content_of
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.options import ConfigError, fault_of
from gralora_diffusion.sdxl.base import check_clip_skip
from gralora_diffusion.sdxl.fingerprint import fingerprint
from gralora_diffusion.sdxl.load import COMPONENTS, load_sdxl, shapes
from gralora_diffusion.sdxl.prompt_chunks import PromptRules
from gralora_diffusion.training.accelerator import make_accelerator, precision
from gralora_diffusion.training.base_defaults import objective_of, with_base_defaults
from gralora_diffusion.training.choose_run import check_steps, locate, with_recorded_options
from gralora_diffusion.training.hub import check_hub
from gralora_diffusion.training.memory import memory_for
from gralora_diffusion.training.optim import (
    check_lr_pattern,
    check_optimizer,
    depends_on_length,
)
from gralora_diffusion.training.preview_scores import encoder_names, load_encoders
from gralora_diffusion.training.record import base_name, began_at, training_record
from gralora_diffusion.training.resume import facts_of, resume
from gralora_diffusion.training.start_from import Started, start_from
from gralora_diffusion.training.validation_images import check_sample_options

COMPARED = (  # options of the sample images that must stay where these are scored
    "validation_prompt", "num_validation_images", "num_inference_steps", "guidance_scale",
    "validation_negative_prompt", "validation_size", "validation_scheduler",
)  # fmt: skip


@dataclass
class TrainingSetup:
    """What a run works with, once everything is checked and nothing written yet."""

    config: TrainConfig
    path: Path
    accelerator: Accelerator
    pipeline: object
    models: dict  # {component: adapted model}
    images: list[TrainingImage]
    class_images: list[TrainingImage]  # for prior preservation
    dtype: torch.dtype
    facts: dict  # what must be the same when the run is resumed, and what should be
    start: int  # the step of the checkpoint to resume from, or 0
    has_earlier_run: bool  # whether the folder held a run when this command started
    steps: int
    state: dict  # what the checkpoint holds beside the adapter
    started: Started | None  # of --start_from
    began: float  # when the run was started first, in seconds since 1970
    held_out: list[TrainingImage] = field(default_factory=list)
    encoders: list = field(default_factory=list)  # that score the sample images

    def evaluated(self) -> list[dict]:
        """The evaluations up to the checkpoint that is resumed."""
        return (self.state.get("evaluations") or {}).get("history", [])

    def layers(self) -> dict:
        """{component.path: adapted layer}."""
        return all_layers(self.models)

    def parameters(self) -> dict[str, nn.Parameter]:
        """{component.path: parameter} of all adapters, without those that stay frozen."""
        found = {}
        for component, model in self.models.items():
            for path, parameter in adapter_parameters(model).items():
                if parameter.requires_grad:
                    found[f"{component}.{path}"] = parameter
        return found

    def adapter(self, step: int) -> Adapter:
        """The adapter as it is now, after this step, with what its files record of the run."""
        config = self.config
        prompts = dict(instance_prompt=config.instance_prompt, validation_prompt=config.validation_prompt)
        adapter = Adapter.from_models(self.models, base_name(config), prompts)
        adapter.facts["objective"] = self.objective()
        adapter.facts["training"] = training_record(
            config,
            self.images,
            self.class_images,
            self.accelerator.num_processes,
            self.steps,
            step,
            self.began,
        )
        if self.started:
            adapter.facts["parent"] = self.started.parent()
        return adapter

    def objective(self) -> dict:
        return objective_of(self.config, self.pipeline)

    @functools.cached_property
    def validation_intervals(self) -> list[int]:
        """validation_intervals() of this run, found once, since it may list the folder of class images."""
        return validation_intervals(self.config, self.images, self.accelerator.num_processes)


def set_up(config: TrainConfig) -> TrainingSetup:
    """Check options, load and adapt the base, read the checkpoint; writes only the cache and class images."""
    images = instance_images(config, image_cache(config))
    images, held_out = hold_out(config, images, image_cache(config))
    encoder_names(config)  # refuses wrong ones
    path = locate(config, images)
    check_class_folders(config)
    config = with_recorded_options(path, config)
    mixed_precision, dtype = precision(config)
    if config.push_to_hub:
        check_hub(config, path)
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it
    accelerator = make_accelerator(config, path)
    processes = accelerator.num_processes
    steps = steps_of(config, epoch_length(config, images), processes)
    check_quantization(config.base_model_precision)
    check_optimizer(config, accelerator.device, steps)
    how_to_load = dict(
        path=config.pretrained_model_name_or_path,
        vae=config.pretrained_vae_model_name_or_path,
        dtype=dtype,
        revision=config.revision,
        variant=config.variant,
        cache_dir=config.cache_dir,
    )
    if config.with_prior_preservation:  # before images are generated for it, see whether the adapter fits
        inject_all(shapes(config.pretrained_model_name_or_path, config.revision, config.cache_dir), config)
        share_work()
    with memory_for("while class images are generated", config):
        of_class = class_images(config, images, how_to_load, accelerator, image_cache(config))
    pipeline = load_sdxl(**how_to_load)
    if config.base_model_precision:
        known = fingerprint(pipeline.unet)  # quantized weights cannot be compared
        quantize(pipeline.unet, config.base_model_precision)
    models = inject_all(pipeline.components, config)
    if origin := origin_of(config.adapter):
        start_orthogonal(all_layers(models), origin, config.seed)
    if config.base_model_precision:
        handles(pipeline.unet)[DEFAULT].fingerprint = known
    note_single_blocks(config, models)
    config = with_base_defaults(config, pipeline, images, mixed_precision, processes)
    check_clip_skip(pipeline, config.clip_skip)
    check_captions(images + of_class, pipeline, PromptRules.of(config))
    check_class_prompt(config, pipeline, PromptRules.of(config))
    if not config.skip_final_inference:
        check_sample_options(pipeline, config)
    length = steps if depends_on_length(config) else None
    facts = facts_of(pipeline, images, of_class, length, accelerator)
    facts["must_match"] |= evaluation_facts(config, held_out)
    started = None
    if config.start_from:
        started = start_from(config.start_from, models, objective_of(config, pipeline))
        facts["must_match"]["start"] = started.digest
    start, state = resume(path, config, models, facts)
    check_steps(path, start, steps)
    began = began_at(path / f"checkpoint-{start}") if start else None
    return TrainingSetup(
        config=config,
        path=path,
        accelerator=accelerator,
        pipeline=pipeline,
        models=models,
        images=images,
        class_images=of_class,
        dtype=dtype,
        facts=facts,
        start=start,
        has_earlier_run=(path / "config.json").exists(),
        steps=steps,
        state=state,
        started=started,
        began=began or time.time(),
        held_out=held_out,
        encoders=load_encoders(config),
    )


def evaluation_facts(config: TrainConfig, held_out: list[TrainingImage]) -> dict:
    """What must be the same when a run is resumed, so that its evaluations can be compared."""
    how = None
    if encoder_names(config):
        how = [getattr(config, name) for name in COMPARED]
    return dict(held_out=content_of(held_out), scored=how)


def inject_all(components: dict, config: TrainConfig) -> dict:
    """Adapt the UNet, and both text encoders if they train: {component: model}.

    Raises ConfigError when the adapter does not fit.
    """
    names = COMPONENTS if config.train_text_encoder else ("unet",)
    models = {name: components[name] for name in names}
    if config.allocation:
        with fault_of("allocation"):
            allocation_file.inject_from(config.allocation, models, config)
        check_lr_pattern(all_layers(models), config)
        return models
    torch.manual_seed(config.seed)
    for name, model in models.items():
        try:
            inject(model, config.adapter)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}", option=getattr(error, "option", None)) from None
    paths = [path for model in models.values() for path in adapted_layers(model)]  # without the components
    if unmatched := unmatched_patterns(paths, config.adapter):
        option = "rank_pattern" if unmatched[0] in config.adapter.rank_pattern else "k_pattern"
        problem = f"--{option} {unmatched[0]!r} matches none of the adapted layers"
        raise ConfigError(problem, option=option)
    check_lr_pattern(all_layers(models), config)
    if config.allocate:
        rank_rules.check_range(all_layers(models), config)
    return models


def note_single_blocks(config: TrainConfig, models: dict) -> None:
    """Note that GraLoRA is a plain LoRA where the rule for k gives a single block in every layer."""
    adapter = config.adapter
    k_by_rule = (
        adapter.method == "gralora" and adapter.k is None and not (config.allocate or config.allocation)
    )
    if k_by_rule and all(layer.adapter.k == 1 for layer in all_layers(models).values()):
        note(
            f"at rank {adapter.rank} the rule for k gives 1, which is a plain LoRA: "
            "use --gralora_k 2 and an even rank for GraLoRA's blocks"
        )


def make_trainable(models: dict, config: TrainConfig) -> None:
    """Training mode, and gradient checkpointing where it is asked for."""
    for model in models.values():
        model.train()
        if config.gradient_checkpointing:
            if hasattr(model, "enable_gradient_checkpointing"):  # diffusers
                model.enable_gradient_checkpointing()
            else:  # transformers
                model.gradient_checkpointing_enable()


def images_per_step(config: TrainConfig, processes: int) -> int:
    return config.train_batch_size * config.gradient_accumulation_steps * processes


def steps_of(config: TrainConfig, images: int, processes: int) -> int:
    """Optimizer steps of a run with so many images in an epoch."""
    if config.max_train_steps:
        return config.max_train_steps
    return math.ceil(config.num_train_epochs * images / images_per_step(config, processes))


def checkpoint_interval(config: TrainConfig, steps: int) -> int:
    """Steps between two checkpoints; by default four in a short run, and at least one every 500 steps."""
    return config.checkpointing_steps or min(500, max(50, steps // 4))


def validation_due(setup: TrainingSetup, step: int) -> bool:
    """Whether sample images are generated after this step; those of the last step are not counted."""
    return step < setup.steps and any(step % n == 0 for n in setup.validation_intervals)


def validation_intervals(config: TrainConfig, images: list[TrainingImage], processes: int) -> list[int]:
    """Steps between two series of sample images, by --validation_steps and --validation_epochs."""
    steps_per_epoch = math.ceil(epoch_length(config, images) / images_per_step(config, processes))
    intervals = [config.validation_steps, (config.validation_epochs or 0) * steps_per_epoch]
    return [n for n in intervals if n]


def evaluations_due(
    config: TrainConfig, images: list[TrainingImage], start: int, steps: int, processes: int
) -> int:
    """How many evaluations a run of so many steps makes after step `start`; a new one begins with step 0."""
    intervals = validation_intervals(config, images, processes)
    between = sum(any(step % n == 0 for n in intervals) for step in range(start + 1, steps))
    return between + (start < steps) + (start == 0)
