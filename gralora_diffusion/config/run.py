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
        hint="Training steps. Leave blank for the recommended number",
        at_least=1,
        resumable=True,
    )
    num_train_epochs: int | None = training(
        None,
        "epochs, instead of steps",
        label="Epochs",
        hint="Epochs, instead of steps",
        at_least=1,
        resumable=True,
    )
    train_batch_size: int | None = training(
        None,
        f"images per step and process; {by_base('train_batch_size')}",
        label="Batch size (images)",
        hint="Images per step; larger needs more memory. Leave blank for the recommended number",
        at_least=1,
    )
    gradient_accumulation_steps: int = training(
        1, "batches per optimizer step", label="Gradient accumulation (batches)", at_least=1
    )
    learning_rate: float | None = training(
        None,
        f"learning rate of the UNet's adapters; {by_base('learning_rate')}; "
        "for Prodigy a factor, by default 1",
        label="Learning rate",
        hint="Lower it if images look burned. Leave blank for the recommended rate",
        above=0,
    )
    train_text_encoder: bool = training(
        False,
        "adapt both text encoders too",
        label="Train the text encoders",
        hint="Adapt both text encoders too: stronger, more memory",
    )
    text_encoder_lr: float | None = text_rate(
        None,
        "learning rate of the text encoders' adapters; by default the UNet's",
        label="Text encoder learning rate",
        at_least=0,
    )
    text_encoder_2_lr: float | None = text_rate(
        None,
        "learning rate of the second text encoder's adapters; by default --text_encoder_lr",
        label="Second text encoder learning rate",
        hint="Leave blank for that of the first text encoder",
        at_least=0,
    )
    seed: int = training(
        0,
        "random seed",
        label="Seed",
        hint="The same seed gives the same adapter again",
        at_least=0,
        at_most=2**40,
    )
    validation_prompt: str | None = samples(
        None,
        "prompts, separated by |; by default --instance_prompt, or what the captions share, in four scenes",
        label="Sample prompts",
        hint="Separated by |. Leave blank for the trigger caption in four scenes",
        kind="text",
    )
    num_validation_images: int = samples(
        1, "sample images per prompt", label="Sample images per prompt", at_least=1
    )
    num_inference_steps: int = samples(
        25, "denoising steps of a sample image", label="Sample image denoising steps", at_least=1
    )
    guidance_scale: float | None = samples(
        None,
        f"guidance scale of the sample images; {by_base('guidance_scale')}",
        label="Sample image guidance scale",
        hint="How closely sample images follow their prompt. Leave blank for the recommended scale",
        at_least=0,
    )
    validation_negative_prompt: str | None = samples(
        None, "what the sample images should not show", label="Sample image negative prompt", kind="text"
    )
    validation_size: str | None = samples(
        None,
        "WIDTHxHEIGHT of the sample images, such as 832x1216; by default a square of --resolution",
        label="Sample image size (pixels)",
        hint="WIDTHxHEIGHT, such as 832x1216. Leave blank for a square of the resolution",
    )
    validation_scheduler: str | None = samples(
        None,
        "scheduler of the sample images; by default the base's",
        label="Sample image scheduler",
        blank="that of the base model",
        choices=SAMPLERS,
    )
    validation_steps: int | None = samples(
        None,
        "also generate sample images, and evaluate, every N steps",
        label="Sample images every (steps)",
        hint="Leave blank for about six times per run; 0 for the start and the end only",
        at_least=1,
    )
    validation_epochs: int | None = samples(
        None,
        "the same every N epochs",
        label="Sample images every (epochs)",
        hint="In epochs, instead of steps",
        at_least=1,
    )
    skip_final_inference: bool = samples(False, "generate no sample images", label="No sample images")
    output_dir: str | None = output(
        None,
        "the run folder; by default runs/FOLDER-ADAPTER-rRANK, with a number if it holds another run",
        label="Run folder",
        kind="folder",
    )
    checkpointing_steps: int | None = output(
        None,
        "save a checkpoint every N steps, and at the end; by default a quarter of the run, from 50 to 500",
        label="Checkpoint every (steps)",
        hint="Leave blank for a quarter of the run, from 50 to 500",
        at_least=1,
    )
    checkpoints_total_limit: int | None = output(
        None,
        "keep at most this many checkpoints; older ones are deleted",
        label="Checkpoints kept",
        at_least=1,
    )
    resume_from_checkpoint: str | None = output(
        None,
        "latest, or a checkpoint-N folder of this run; by default the latest is resumed",
        label="Resume from checkpoint",
    )
    output_kohya_format: bool = output(
        False,
        "also write a file with kohya's prefix and diffusers' layer names",
        label="Also write a kohya file",
    )
    upcast_before_saving: bool = output(
        False, "write pytorch_lora_weights.safetensors in fp32 with mixed precision too", label="Save in fp32"
    )
    dry_run: bool = output(False, "print the plan (steps, memory, time, disk) and stop", label="Dry run")
    mixed_precision: str | None = machine(
        None,
        "precision of base and computation; by default bf16 if the GPU supports it",
        label="Mixed precision",
        hint="Precision of base and computation",
        blank="bf16 if the GPU supports it",
        choices=PRECISIONS,
    )
    gradient_checkpointing: bool = machine(
        False, "recompute activations: slower, far less memory", label="Gradient checkpointing"
    )
    base_model_precision: str | None = machine(
        None,
        "the frozen UNet in 8 or 4 bits: less memory, slower (needs torchao)",
        label="Quantized base",
        blank="not quantized",
        choices=QUANTIZED,
    )
    offload_unet: bool = machine(
        False,
        "keep the frozen UNet in RAM and move one block at a time to the GPU: slower",
        label="Offload the UNet to RAM",
        needs=RECOMPUTED,
    )
    compile: bool = machine(
        False,
        "compile the UNet's transformer blocks: faster steps after some minutes of compiling",
        label="Compile the UNet",
    )
    deterministic: bool = machine(
        False, "deterministic kernels, to resume bit for bit on a GPU: slower", label="Deterministic kernels"
    )
    allow_tf32: bool = machine(
        False, "multiply fp32 matrices in TF32 on a GPU: faster, less precise", label="TF32 matrices"
    )
    cache_latents: bool = machine(
        True,
        "keep latents and prompt embeddings for later runs",
        label="Keep the latent cache",
        resumable=True,
    )
    latent_cache_dir: str | None = machine(
        None,
        "folder of that cache; by default gralora_diffusion in $XDG_CACHE_HOME or ~/.cache",
        label="Latent cache folder",
        hint="Folder of the cache. Leave blank for the usual one",
        **CACHE,
    )
    dataloader_num_workers: int = machine(
        0,
        "threads that read and crop images for the cache",
        label="Image loading threads",
        at_least=0,
        at_most=256,
        resumable=True,
    )
    report_to: str = tracking(
        "none", "tracker, in addition to metrics.jsonl", label="Tracker", choices=TRACKERS
    )
    logging_dir: str = tracking(
        "logs", "folder for tensorboard's files, in the run folder", label="TensorBoard folder", kind="folder"
    )
    push_to_hub: bool = tracking(
        False, "upload adapter, samples and a model card to the hub at the end", label="Upload to the hub"
    )
    hub_token: str | None = tracking(
        None,
        "hub token; by default that of `hf auth login`; never written to a file",
        label="Hub token",
        hint="Leave blank for the token of this computer; never written to a file",
        kind="secret",
    )
    hub_model_id: str | None = tracking(
        None, "repository on the hub; by default the run folder's name", label="Hub repository"
    )
