"""What a run would do and take, as plan() in dry_run.py finds it: its numbers, and their texts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, duration
from gralora_diffusion.data.class_folders import class_image_facts
from gralora_diffusion.data.listing import printable
from gralora_diffusion.devices import best_device, name_of
from gralora_diffusion.formats.run_files import named_after
from gralora_diffusion.options import to_dict
from gralora_diffusion.training.accelerator import precision
from gralora_diffusion.training.preview_scores import encoder_names
from gralora_diffusion.training.timesteps import shapes_timesteps, shares_of_tenths
from gralora_diffusion.training.validation_loss import TIMES

EMBEDDED_BASE = (
    "the embedded one (64 x 64 pixels), which cannot learn photos and whose adapters do not fit SDXL; "
    "--pretrained_model_name_or_path selects another"
)


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
    exported_rank: int | None = None  # as an exact LoRA in the files for other tools, which may not hold it

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
    libraries: int  # bytes of Python and its libraries, where they share the memory with the models
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
    captions: str  # how many are from where
    masks: str | None  # how many images have one, of a run with masked_loss
    resolution: int
    source: Path  # folder or dataset of the images
    held_out: int  # images
    evaluations: int  # after the step `start`, and that of step 0
    concepts: list[str]  # a line on each, where there are several
    prompts: list[str]  # of the sample images
    start: int  # step of the checkpoint that the run resumes from, or 0
    left: int  # steps that are left; 0 where --patience has ended the run
    exported: bool  # whether the run in the folder is done, with its files

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def exported_rank(self) -> int | None:
        """The rank of the largest layer in the files for other tools; None where they cannot hold it."""
        ranks = [layer.exported_rank for layer in self.layers]
        return None if None in ranks else max(ranks)

    @property
    def for_other_tools(self) -> int | None:
        """Bytes of the file for ComfyUI and others; None where they cannot hold the adapter."""
        return self.files.get(named_after(self.run).name)

    def in_folder(self, run: Path) -> "Plan":
        """The same plan in another run folder, after which a file is named."""
        old, new = named_after(self.run).name, named_after(run).name
        files = {new if name == old else name: size for name, size in self.files.items()}
        return replace(self, run=run, files=files)

    def text(self, verbose: bool = False) -> str:
        """The summary; verbose: then the config and the table of layers."""
        config = json.dumps(to_dict(self.config), indent=2)
        facts = self.summary() | {
            "images from": str(self.source),
            "run folder": self.run_text(),
        }
        lines = [f"{name}: {value}" for name, value in facts.items()]
        details = ["", config, "", *self.table()] if verbose else []
        return "\n".join([*lines, *details])

    def run_text(self) -> str:
        """The run folder, and how the same command without --dry_run uses it."""
        if not self.left and self.exported:
            return f"{self.run} (finished: no step is left)"
        if not self.left:
            return f"{self.run} (no step is left: the same command writes the files)"
        if self.start:
            return f"{self.run} (with the same images and base, the run resumes from checkpoint-{self.start})"
        return str(self.run) if self.run.exists() else f"{self.run} (not created in a dry run)"

    def summary(self) -> dict[str, str]:
        """{what: how much} in words."""
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in self.memory.items())
        ks = ", ".join(map(str, sorted({layer.k for layer in self.layers})))
        kind = f"{self.config.adapter_name} of rank {self.config.adapter.rank}, k {ks}"
        peak = f"about {max(self.phases.values()) / 2**30:.2f} GiB at the peak ({self.peaks()})"
        if self.libraries:
            peak += f", plus {self.libraries / 2**30:.1f} GiB for Python and its libraries"
        images = counted(self.images_per_step, "image")
        done = f", {self.start} of them done" if self.start else ""
        facts = {
            "base": self.config.pretrained_model_name_or_path or EMBEDDED_BASE,
            "adapter": f"{kind}, {counted(len(self.layers), 'layer')}, {self.parameters:,} parameters",
            **self.parent(),
            "images": f"{self.images} at {self.resolution} x {self.resolution} pixels",
            "captions": self.captions,
            **({"masks": self.masks} if self.masks else {}),
            **self.timesteps(),
            **self.evaluated(),
            **self.described(),
            "steps": f"{self.steps} of {images} per process, {self.epochs:.1f} epochs{done}",
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
        if self.no_time and self.left:
            facts["time"] = f"not measured: {self.no_time}"
        if self.seconds_per_step is not None and self.left:
            total = duration(self.seconds_per_step * self.left)
            step = f"about {self.seconds_per_step:.3g} s per step on this machine"
            images = "" if self.config.skip_final_inference else "sample images and "
            facts["time"] = f"{step}, {total} for {self.left}, plus {images}caching the dataset"
        facts["disk"] = self.disk_text()
        return facts

    def disk(self) -> int:
        """Bytes of the files and checkpoints that are left at the end."""
        return sum(self.files.values()) + self.checkpoints * self.checkpoint_size

    def disk_text(self) -> str:
        """Each file with its size, and the rank in those for other tools where it is not the adapter's."""
        parts = [f"{counted(self.checkpoints, 'checkpoint')} of {self.checkpoint_size / 1e6:.1f} MB"]
        parts += [f"{name} {size / 1e6:.1f} MB" for name, size in self.files.items()]
        text = f"about {self.disk() / 1e6:,.0f} MB: {', '.join(parts)}"
        rank, own = self.exported_rank, max(layer.rank for layer in self.layers)
        if rank is None or rank == own:
            return text
        return f"{text}; other tools get the adapter as an exact LoRA of rank {rank}"

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
        if not (self.evaluations and self.left):
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
