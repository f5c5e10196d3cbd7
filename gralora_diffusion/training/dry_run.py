"""What a run would do and take, from shapes alone: layers, memory, files, steps, and a step's time."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from gralora_diffusion.adapters import allocation
from gralora_diffusion.adapters.registry import all_layers
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, duration
from gralora_diffusion.data.class_images import check_class_folders, class_image_facts
from gralora_diffusion.data.dataset import (
    concept_lines,
    epoch_length,
    image_cache,
    instance,
    instance_images,
)
from gralora_diffusion.data.held_out import hold_out
from gralora_diffusion.data.listing import printable
from gralora_diffusion.data.masked_images import count_of_masks
from gralora_diffusion.data.sample_prompts import sample_prompts
from gralora_diffusion.devices import best_device, memory_in_use, name_of, total_memory
from gralora_diffusion.formats.load import check_fits_base
from gralora_diffusion.formats.read import NATIVE, read_adapter
from gralora_diffusion.options import fault_of, to_dict
from gralora_diffusion.sdxl.load import COMPONENTS, shapes, vae_shapes
from gralora_diffusion.training.accelerator import precision
from gralora_diffusion.training.choose_run import locate, with_recorded_options
from gralora_diffusion.training.export import export_sizes
from gralora_diffusion.training.optim import bytes_per_parameter, checkpoint_bytes
from gralora_diffusion.training.phase_memory import numbers, phase_memory
from gralora_diffusion.training.preview_scores import encoder_names
from gralora_diffusion.training.setup import checkpoint_interval, evaluations_due, inject_all, steps_of
from gralora_diffusion.training.step_cost import measure, step_memory
from gralora_diffusion.training.timesteps import shapes_timesteps, shares_of_tenths
from gralora_diffusion.training.validation_loss import TIMES


class PlannedLayer(NamedTuple):
    """One adapted layer; of a convolution in_features are its channels * kh * kw, and kernel is (kh, kw)."""

    path: str
    in_features: int
    out_features: int
    rank: int
    k: int
    hybrid_rank: int
    parameters: int  # of its adapter
    kernel: tuple[int, int] | None = None

    def shape(self) -> str:
        """in -> out, or of a convolution channels x kh x kw -> out."""
        if self.kernel is None:
            return f"{self.in_features} -> {self.out_features}"
        kh, kw = self.kernel
        return f"{self.in_features // (kh * kw)} x {kh} x {kw} -> {self.out_features}"


@dataclass(frozen=True)
class Plan:
    """What train(config) would do on this machine."""

    config: TrainConfig
    layers: tuple[PlannedLayer, ...]
    memory: dict[str, int]  # bytes of a training step, by part
    phases: dict[str, int]  # bytes at the peak of each phase
    gradient_pass: dict[str, int] | None  # bytes, {"storing", "streaming"}; None where there is no such pass
    files: dict[str, int]  # bytes of each exported file
    checkpoints: int  # that are left at the end
    checkpoint_size: int  # bytes of each
    steps: int
    images_per_step: int  # of one process
    epochs: float
    seconds_per_step: float | None
    no_time: str | None  # why a timed plan does not know seconds_per_step
    run: Path
    images: int
    masks: str | None  # how many images have one, of a run with masked_loss
    resolution: int
    source: Path  # folder or dataset of the images
    held_out: int  # images
    evaluations: int  # that a run makes, that of step 0 included
    concepts: list[str]  # a line on each, where there are several
    prompts: list[str]  # of the sample images

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def text(self, verbose: bool = False) -> str:
        """The summary; verbose: then the config and the table of layers."""
        config = json.dumps(to_dict(self.config), indent=2)
        facts = self.summary() | {
            "images from": str(self.source),
            "run folder": f"{self.run} (not created in a dry run)",
        }
        lines = [f"{name}: {value}" for name, value in facts.items()]
        details = ["", config, "", *self.table()] if verbose else []
        return "\n".join([*lines, *details])

    def summary(self) -> dict[str, str]:
        """{what: how much} in words."""
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in self.memory.items())
        files = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.files.items())
        checkpoints = f"{counted(self.checkpoints, 'checkpoint')} of {self.checkpoint_size / 1e6:.1f} MB"
        ks = ", ".join(map(str, sorted({layer.k for layer in self.layers})))
        kind = f"{self.config.adapter_name} of rank {self.config.adapter.rank}, k {ks}"
        disk = sum(self.files.values()) + self.checkpoints * self.checkpoint_size
        peak = f"about {max(self.phases.values()) / 2**30:.2f} GiB at the peak ({self.peaks()}){beside()}"
        images = counted(self.images_per_step, "image")
        facts = {
            "base": self.config.pretrained_model_name_or_path or "the embedded one",
            "adapter": f"{kind}, {counted(len(self.layers), 'layer')}, {self.parameters:,} parameters",
            **self.parent(),
            "images": f"{self.images} at {self.resolution} x {self.resolution} pixels",
            **({"masks": self.masks} if self.masks else {}),
            **self.timesteps(),
            **self.evaluated(),
            **self.described(),
            "steps": f"{self.steps} of {images} per process, {self.epochs:.1f} epochs",
            "device": f"{name_of(best_device())}, {str(precision(self.config)[1]).removeprefix('torch.')}",
            "memory": peak,
            "memory of a training step": f"{sum(self.memory.values()) / 2**30:.2f} GiB: {parts}",
        }
        if self.gradient_pass:
            sizes = {name: f"{size / 2**30:.2f} GiB" for name, size in self.gradient_pass.items()}
            facts["memory of the gradient pass"] = (
                f"{sizes['storing']} to keep all sums (less, in more passes, with --gora_memory); "
                f"{sizes['streaming']} with --allocation and --gora_init random"
            )
        if self.no_time:
            facts["time"] = f"not measured: {self.no_time}"
        if self.seconds_per_step is not None:
            total = duration(self.seconds_per_step * self.steps)
            step = f"about {self.seconds_per_step:.3g} s per step on this machine"
            facts["time"] = f"{step}, {total} for {self.steps}, plus sample images and caching the dataset"
        facts["disk"] = f"about {disk / 1e6:,.0f} MB: {checkpoints}, {files}"
        return facts

    def parent(self) -> dict[str, str]:
        """What the run starts from, if it is another adapter."""
        return {"starts from": self.config.start_from} if self.config.start_from else {}

    def timesteps(self) -> dict[str, str]:
        """How often each tenth of the timesteps is drawn, where that is not the same."""
        if not shapes_timesteps(self.config):
            return {}
        shares = " ".join(f"{100 * share:.0f}" for share in shares_of_tenths(self.config))
        return {"timesteps": f"{shares} % of the steps in each tenth, from little noise to much"}

    def evaluated(self) -> dict[str, str]:
        """The held-out images and the evaluations, if there are any; their time, as far as it is known."""
        if not self.evaluations:
            return {}
        text = str(self.evaluations)
        if self.held_out:
            text += f", on {counted(self.held_out, 'held-out image')}"
        if self.held_out and self.seconds_per_step is not None:
            # A forward pass takes a third of a step's time.
            images = TIMES * self.held_out * self.evaluations
            of_loss = images * self.seconds_per_step / (3 * self.images_per_step)
            text += f", about {duration(of_loss)} for their loss"
        if names := encoder_names(self.config):
            text += f"; sample images scored by {', '.join(names)} on the CPU"
        return {"evaluations": text}

    def described(self) -> dict[str, str]:
        """The concepts, if there are several, and the prompts of the sample images, if there are any."""
        concepts = {"concepts": "; ".join(self.concepts)} if self.concepts else {}
        facts = class_image_facts(self.config) | concepts
        if not self.config.skip_final_inference:
            facts["sample prompts"] = " | ".join(map(printable, self.prompts))
        return facts

    def peaks(self) -> str:
        """The phases with their memory."""
        sizes = [f"{name} {size / 2**30:.2f}" for name, size in self.phases.items()]
        return ", ".join(sizes)

    def table(self) -> list[str]:
        """The lines of the table of layers."""
        width = max(len(layer.path) for layer in self.layers)
        header = f"{'in -> out':>20}  {'rank':>4}  {'k':>2}  {'hybrid':>6}  {'parameters':>11}"
        lines = [f"{'layer':<{width}}  {header}"]
        for layer in self.layers:
            ranks = f"{layer.rank:>4}  {layer.k:>2}  {layer.hybrid_rank:>6}"
            lines.append(f"{layer.path:<{width}}  {layer.shape():>20}  {ranks}  {layer.parameters:>11,}")
        return lines


def beside() -> str:
    """What else a run takes where the models share the memory with the process."""
    device = best_device()
    if total_memory(device) is not None:
        return ""
    return f", plus {memory_in_use(device) / 2**30:.1f} GiB for Python and its libraries"


def plan(config: TrainConfig, timed: bool = False) -> Plan:
    """What train(config) would do; timed: and how long a step takes on this machine.

    Writes nothing but what the cache keeps about the images. Raises ConfigError as train() would.
    """
    config = config.resolved()
    images, held_out = hold_out(config, instance_images(config, image_cache(config)), image_cache(config))
    scored = bool(encoder_names(config))
    run = locate(config, images)
    check_class_folders(config)
    with fault_of("pretrained_model_name_or_path"):
        components = shapes(config.pretrained_model_name_or_path, config.revision, config.cache_dir)
        vae = numbers(vae_shapes(config.pretrained_model_name_or_path))
    unet_config = components["unet"].config
    tokens = components["text_encoder"].config.max_position_embeddings
    text_encoders = sum(numbers(components[name]) for name in COMPONENTS[1:])
    layers = all_layers(inject_all(components, config))
    if config.start_from:
        with fault_of("start_from"):
            adapter = read_adapter(config.start_from)
            check_fits_base(adapter, config.pretrained_model_name_or_path, config.start_from)
    resolution = config.resolution or unet_config.sample_size * 8
    dtype = precision(config)[1]
    files = export_sizes(layers, config, run)
    memory = step_memory(unet_config, config, resolution, dtype, tokens)
    numbers_trained = files[NATIVE] // 4  # the file holds fp32
    memory["adapters"] = bytes_per_parameter(config, dtype != torch.float32) * numbers_trained
    if config.train_text_encoder:
        memory["text encoders"] = dtype.itemsize * text_encoders
    total = total_memory(best_device())
    phases = phase_memory(memory, text_encoders, vae, config, resolution, dtype, total)
    steps = steps_of(config, epoch_length(config, images), 1)
    checkpoints = math.ceil(steps / checkpoint_interval(config, steps))
    images_per_step = config.train_batch_size * config.gradient_accumulation_steps
    seconds, no_time = None, None
    if timed:
        seconds, no_time = measure(components, config, resolution, dtype, tokens)
    return Plan(
        config=config,
        layers=tuple(planned(path, layer) for path, layer in layers.items()),
        memory=memory,
        phases=phases,
        gradient_pass=gradient_pass(config, layers, dtype.itemsize),
        files=files,
        checkpoints=min(checkpoints, config.checkpoints_total_limit or checkpoints),
        checkpoint_size=checkpoint_bytes(config) * numbers_trained,
        steps=steps,
        images_per_step=images_per_step,
        epochs=steps * images_per_step / epoch_length(config, images),
        seconds_per_step=seconds,
        no_time=no_time,
        run=run,
        images=len(images),
        masks=count_of_masks(images) if config.masked_loss else None,
        resolution=resolution,
        source=instance(config)[0],
        held_out=len(held_out),
        evaluations=evaluations_due(config, images, steps, 1) if held_out or scored else 0,
        concepts=concept_lines(config, images),
        prompts=sample_prompts(with_recorded_options(run, config), images),
    )


def planned(path: str, layer) -> PlannedLayer:
    adapter = layer.adapter
    parameters = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    shape = layer.in_features, layer.out_features
    sizes = adapter.rank, adapter.k, adapter.hybrid_rank
    return PlannedLayer(path, *shape, *sizes, parameters, adapter.kernel)


def gradient_pass(config: TrainConfig, layers: dict, itemsize: int) -> dict[str, int] | None:
    """Bytes that the gradient pass needs beside a training step, or None where there is none."""
    if config.gora_init in (None, "zero") and not config.allocate:
        return None
    sizes = {}
    for path, layer in layers.items():
        sizes[path] = dict(shape=layer.matrix_shape, rank=layer.adapter.rank)
    return allocation.gradient_bytes(sizes, itemsize)
