"""Options: length, sample images, files, memory and trackers of a run."""

from dataclasses import dataclass

from gralora_diffusion.config.choices import PRECISIONS, QUANTIZED, SAMPLERS, TRACKERS, by_base
from gralora_diffusion.config.groups import (
    CACHE,
    RECOMPUTED,
    machine,
    output,
    samples,
    text_rate,
    tracking,
    training,
)


@dataclass(frozen=True)
class RunOptions:
    """Length, sample images, files, memory and trackers of a run."""

    max_train_steps: int | None = training(
        None,
        f"optimizer steps; {by_base('max_train_steps')}",
        label="Steps",
        at_least=1,
        resumable=True,
    )
    num_train_epochs: int | None = training(None, "epochs, instead of steps", at_least=1, resumable=True)
    train_batch_size: int | None = training(
        None, f"images per step and process; {by_base('train_batch_size')}", at_least=1
    )
    gradient_accumulation_steps: int = training(1, "batches per optimizer step", at_least=1)
    learning_rate: float | None = training(
        None,
        f"learning rate of the UNet's adapters; {by_base('learning_rate')}; "
        "for Prodigy a factor, by default 1",
        above=0,
    )
    train_text_encoder: bool = training(False, "adapt both text encoders too")
    text_encoder_lr: float | None = text_rate(
        None, "learning rate of the text encoders' adapters; by default the UNet's", at_least=0
    )
    text_encoder_2_lr: float | None = text_rate(
        None, "learning rate of the second text encoder's adapters; by default --text_encoder_lr", at_least=0
    )
    seed: int = training(0, "random seed", at_least=0, at_most=2**40)
    validation_prompt: str | None = samples(
        None, "prompts, separated by |; by default the trigger prompt in four scenes", kind="text"
    )
    num_validation_images: int = samples(1, "sample images per prompt", at_least=1)
    num_inference_steps: int = samples(25, "denoising steps of a sample image", at_least=1)
    guidance_scale: float | None = samples(
        None, f"guidance scale of the sample images; {by_base('guidance_scale')}", at_least=0
    )
    validation_negative_prompt: str | None = samples(
        None, "what the sample images should not show", kind="text"
    )
    validation_size: str | None = samples(
        None, "WIDTHxHEIGHT of the sample images, such as 832x1216; by default a square of --resolution"
    )
    validation_scheduler: str | None = samples(
        None, "scheduler of the sample images; by default the base's", choices=SAMPLERS
    )
    validation_steps: int | None = samples(
        None, "also generate sample images, and evaluate, every N steps", at_least=1
    )
    validation_epochs: int | None = samples(None, "the same every N epochs", at_least=1)
    skip_final_inference: bool = samples(False, "generate no sample images")
    output_dir: str | None = output(
        None, "the run folder; by default runs/NAME, with a number if that exists", kind="folder"
    )
    checkpointing_steps: int | None = output(
        None,
        "save a checkpoint every N steps, and at the end; by default a quarter of the run, from 50 to 500",
        at_least=1,
    )
    checkpoints_total_limit: int | None = output(
        None, "keep at most this many checkpoints; older ones are deleted", at_least=1
    )
    resume_from_checkpoint: str | None = output(
        None, "latest, or a checkpoint-N folder of this run; by default the latest is resumed"
    )
    output_kohya_format: bool = output(
        False, "also write a file with kohya's prefix and diffusers' layer names"
    )
    upcast_before_saving: bool = output(
        False, "write pytorch_lora_weights.safetensors in fp32 with mixed precision too"
    )
    dry_run: bool = output(False, "print the plan (steps, memory, time, disk) and stop")
    mixed_precision: str | None = machine(
        None, "precision of base and computation; by default bf16 if the GPU supports it", choices=PRECISIONS
    )
    gradient_checkpointing: bool = machine(False, "recompute activations: slower, far less memory")
    base_model_precision: str | None = machine(
        None, "the frozen UNet in 8 or 4 bits: less memory, slower (needs torchao)", choices=QUANTIZED
    )
    offload_unet: bool = machine(
        False, "keep the frozen UNet in RAM and move one block at a time to the GPU: slower", needs=RECOMPUTED
    )
    compile: bool = machine(
        False, "compile the UNet's transformer blocks: faster steps after some minutes of compiling"
    )
    deterministic: bool = machine(False, "deterministic kernels, to resume bit for bit on a GPU: slower")
    allow_tf32: bool = machine(False, "multiply fp32 matrices in TF32 on a GPU: faster, less precise")
    cache_latents: bool = machine(True, "keep latents and prompt embeddings for later runs", resumable=True)
    latent_cache_dir: str | None = machine(
        None, "folder of that cache; by default gralora_diffusion in $XDG_CACHE_HOME or ~/.cache", **CACHE
    )
    dataloader_num_workers: int = machine(
        0, "threads that read and crop images for the cache", at_least=0, at_most=256, resumable=True
    )
    report_to: str = tracking("none", "tracker, in addition to metrics.jsonl", choices=TRACKERS)
    logging_dir: str = tracking("logs", "folder in the run folder for tensorboard's files", kind="folder")
    push_to_hub: bool = tracking(False, "upload adapter, samples and a model card to the hub at the end")
    hub_token: str | None = tracking(
        None, "hub token; by default that of `hf auth login`; never written to a file", kind="secret"
    )
    hub_model_id: str | None = tracking(None, "repository on the hub; by default the run folder's name")
