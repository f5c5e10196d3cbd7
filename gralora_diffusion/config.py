"""Every option, defined once: the command line, --help, the page and config.json come from these fields."""

import dataclasses
from dataclasses import dataclass, field

from gralora_diffusion.checks import adapter_problems, refuse, training_problems
from gralora_diffusion.options import check_needs, check_rules, in_group

METHODS = ["gralora", "lora"]  # adapters.kinds.register() adds to it
ALLOCATE = ("gora", "energy", "uniform", "random", "inverse", "ralora")
OPTIMIZERS = ("AdamW", "Prodigy", "Adafactor", "AdamWScheduleFree")
RESTARTS, POLYNOMIAL, STEP_RULES = "cosine_with_restarts", "polynomial", "piecewise_constant"
SCHEDULES = ("linear", "cosine", RESTARTS, POLYNOMIAL, "constant", "constant_with_warmup", STEP_RULES)
INTERPOLATIONS = ("nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
QUANTIZED = ("int8-torchao", "nf4-torchao")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
CAPTION_LINES = ("first", "join", "random")
PRECISIONS = ("no", "fp16", "bf16")
LOSSES = ("l2", "huber", "smooth_l1")
HUBER_SCHEDULES = ("snr", "exponential", "constant")
STARTS = ("random", "svd", "zero")
RANK, ALPHA = ("--gralora_rank", "--rank"), ("--gralora_alpha", "--lora_alpha")
MODEL, BAD = "base_model", ("stop", "skip")
TRACKERS = ("none", "tensorboard", "wandb", "all")

GROUPS = (  # in the order of --help and of the page
    "Base model", "Images and captions", "Training", "Adapter", "Sample images", "Files", "Memory and speed",
    "Optimizer", "Loss", "Prior preservation", "Ranks from gradients", "Hub and trackers",
)  # fmt: skip
base = in_group("Base model")
start = in_group("Base model", resumable=True)
data = in_group("Images and captions")
images = in_group("Images and captions", resumable=True)  # a run knows them by content
training = in_group("Training")
adapter = in_group("Adapter")
dataset = in_group("Images and captions", needs={"dataset_name": True})
text_rate = in_group("Training", needs={"train_text_encoder": True})
samples = in_group("Sample images", resumable=True)
output = in_group("Files", resumable=True)
machine = in_group("Memory and speed")
optim = in_group("Optimizer")
betas = in_group("Optimizer", needs={"optimizer": ("AdamW", "Prodigy", "AdamWScheduleFree")})
text_decay = in_group("Optimizer", needs={"train_text_encoder": True})
prodigy = in_group("Optimizer", needs={"optimizer": ("Prodigy",)})
loss = in_group("Loss")
huber = in_group("Loss", needs={"loss_type": ("huber", "smooth_l1")})
prior = in_group("Prior preservation")
ranks = in_group("Ranks from gradients")
gora = in_group("Ranks from gradients", needs={"allocate": True, "allocation": True})
tracking = in_group("Hub and trackers", resumable=True)

SHUFFLED, RECOMPUTED = {"shuffle_captions": True}, {"gradient_checkpointing": True}
STEPPED = {"lr_scheduler": (STEP_RULES,)}
ADAMW, NO_AVERAGE = {"optimizer": ("AdamW",)}, {"optimizer": ("AdamW", "Prodigy", "Adafactor")}
CACHE = dict(kind="folder", resumable=True, needs={"cache_latents": True})
WARMUP = {
    "lr_scheduler": tuple(s for s in SCHEDULES if s not in ("constant", STEP_RULES)),
    "optimizer": ("AdamWScheduleFree",),
}

EMBEDDED_DEFAULTS = dict(learning_rate=1e-3, train_batch_size=8, max_train_steps=600, guidance_scale=3.0)
SDXL_DEFAULTS = dict(learning_rate=1e-4, train_batch_size=1, max_train_steps=500, guidance_scale=5.0)


def by_base(name: str) -> str:
    """What help says of a default that the base determines."""
    return f"by default {SDXL_DEFAULTS[name]:g}, or {EMBEDDED_DEFAULTS[name]:g} on the embedded base"


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained: the kind of adapter, its size, and which layers get one."""

    method: str = adapter("gralora", "kind of adapter", flags=("--adapter",), choices=METHODS)
    rank: int = adapter(64, "total rank, --hybrid_rank included", flags=RANK, at_least=1)
    k: int | None = adapter(
        None, "GraLoRA's blocks per side; by default rank/k^2 is about 8", flags=("--gralora_k",), at_least=1
    )
    alpha: float | None = adapter(
        None, "scale is alpha/rank; by default alpha = rank, a scale of 1", flags=ALPHA, above=0, at_most=1e6
    )
    hybrid_rank: int = adapter(0, "part of the rank for a plain LoRA beside GraLoRA's blocks", at_least=0)
    dropout: float = adapter(
        0.0, "dropout on the adapter's input", flags=("--lora_dropout",), at_least=0, at_most=0.99
    )
    rslora: bool = adapter(False, "scale by alpha/sqrt(rank) instead of alpha/rank", label="rsLoRA scale")
    targets: str = adapter(
        "attention",
        "attention, attention+ff, attention+ff+conv, all-linear, or a regular expression on layer names",
    )
    rank_pattern: dict = adapter({}, 'other ranks for some layers, as JSON: {"regular expression": rank}')
    k_pattern: dict = adapter({}, 'other k for some layers, as JSON: {"regular expression": k}')
    tlora: bool = adapter(False, "T-LoRA: fewer active ranks in the UNet at noisier timesteps")
    tlora_min_rank: int | None = adapter(
        None,
        "T-LoRA's rank at the noisiest timestep; by default half the rank",
        at_least=1,
        needs={"tlora": True},
    )

    def __post_init__(self):
        check_rules(self)
        check_needs(self)
        refuse(adapter_problems(self))

    @staticmethod
    def upgraded(values: dict) -> dict:
        return values | {"method": "lora"} if values.get("method") == "gora" else values  # an alias since


@dataclass(frozen=True)
class TrainConfig:
    """One training run.  Options that are None are filled by resolved(), or from the base or the images."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    pretrained_model_name_or_path: str | None = base(
        None, "folder, .safetensors file or hub id; by default the embedded base", label="Base", kind=MODEL
    )
    pretrained_vae_model_name_or_path: str | None = base(
        None, "another VAE, for instance madebyollin/sdxl-vae-fp16-fix", kind=MODEL
    )
    revision: str | None = base(None, "revision of the base on the hub")
    variant: str | None = base(None, "variant of the base's files, for instance fp16")
    cache_dir: str | None = base(None, "folder for downloads from the hub", kind="folder", resumable=True)
    start_from: str | None = start(
        None,
        "run or adapter file of any tool to start from; converted if its kind or sizes differ",
        kind="adapter",
    )
    instance_data_dir: str | None = images(
        None,
        "folder of training images, with captions in NAME.txt, NAME.caption, NAME.json or metadata.jsonl; or "
        "with subfolders such as '10_sks dog', with repeats and caption; by default the bundled robot",
        kind="images",
        label="Images",
    )
    concepts: str | None = images(
        None, "JSON or TOML file of several folders, each with its repeats, prompt and class", kind="file"
    )
    instance_prompt: str | None = images(
        None,
        "caption of images without one, such as 'a photo of sks dog'",
        kind="text",
        label="Trigger prompt",
    )
    resolution: int | None = data(None, "side in pixels; by default the base's", at_least=64, at_most=8192)
    use_aspect_ratio_buckets: bool = data(False, "crop to the nearest of SDXL's shapes instead of a square")
    center_crop: bool = data(False, "crop in the middle; by default at up to four places per image")
    random_flip: bool = data(False, "mirror images at random")
    repeats: int = data(1, "times each image is used in one epoch", at_least=1)
    caption_dropout: float = data(
        0.0, "share of the training images used without a caption (0.1 is usual)", at_least=0, at_most=1
    )
    shuffle_captions: bool = data(False, "train on up to eight orders of each caption's comma-separated tags")
    keep_tokens: int = data(0, "tags at the front that are not shuffled", at_least=0, needs=SHUFFLED)
    caption_lines: str = images(
        "first",
        "lines to use of a caption file: the first, all joined, or a random one",
        choices=CAPTION_LINES,
    )
    caption_wildcards: bool = data(False, "draw one of the words of {red|blue} in a caption at each use")
    image_interpolation_mode: str = data("lanczos", "how images are resized", choices=INTERPOLATIONS)
    on_bad_image: str = data("stop", "stop at unusable files, or skip them", choices=BAD, resumable=True)
    dataset_name: str | None = data(
        None, "dataset on the hub or on disk instead of --instance_data_dir", kind="dataset"
    )
    dataset_config_name: str | None = dataset(None, "the dataset's configuration, if it has several")
    image_column: str = data("image", "the dataset's column of images")
    caption_column: str | None = data(None, "the column of captions in the dataset or in metadata.jsonl")
    streaming: bool = dataset(
        False, "read the dataset row by row into the cache instead of downloading it first", resumable=True
    )
    max_train_samples: int | None = dataset(None, "use only the first rows of the dataset", at_least=1)
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
        f"learning rate of the UNet's adapters; {by_base('learning_rate')}; for Prodigy a factor (1)",
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
    validation_steps: int | None = samples(None, "also generate sample images every N steps", at_least=1)
    validation_epochs: int | None = samples(None, "also generate sample images every N epochs", at_least=1)
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
    optimizer: str = optim("AdamW", "optimizer", choices=OPTIMIZERS)
    use_8bit_adam: bool = optim(False, "AdamW with 8-bit state (needs bitsandbytes)", needs=ADAMW)
    lr_scheduler: str = optim("constant", "learning-rate schedule", choices=SCHEDULES)
    lr_warmup_steps: int = optim(0, "steps over which the learning rate rises", at_least=0, needs=WARMUP)
    lr_num_cycles: int = optim(1, f"restarts of {RESTARTS}", at_least=1, needs={"lr_scheduler": (RESTARTS,)})
    lr_power: float = optim(1.0, f"power of {POLYNOMIAL}", above=0, needs={"lr_scheduler": (POLYNOMIAL,)})
    lr_step_rules: str | None = optim(
        None, "factors: '1:100,0.5:300,0.1' is 1 to step 100, 0.5 to step 300, then 0.1", needs=STEPPED
    )
    scale_lr: bool = optim(False, "multiply --learning_rate by batch size x accumulation x processes")
    loraplus_lr_ratio: float = optim(1.0, "LoRA+: ratio of B's learning rate to A's (16 is usual)", above=0)
    adam_beta1: float = betas(0.9, "the optimizer's beta1", at_least=0, at_most=0.999999)
    adam_beta2: float = betas(0.999, "the optimizer's beta2", at_least=0, at_most=0.999999)
    adam_epsilon: float = betas(1e-8, "the optimizer's epsilon", above=0)
    adam_weight_decay: float = optim(1e-4, "weight decay, with every optimizer", at_least=0)
    adam_weight_decay_text_encoder: float | None = text_decay(
        None, "weight decay of the text encoders' adapters; by default the UNet's", at_least=0
    )
    prodigy_beta3: float | None = prodigy(
        None, "beta3 of Prodigy; by default the square root of beta2", at_least=0, at_most=0.999999
    )
    prodigy_decouple: bool = prodigy(True, "decoupled weight decay in Prodigy, as in AdamW")
    prodigy_use_bias_correction: bool = prodigy(True, "Adam's bias correction in Prodigy")
    prodigy_safeguard_warmup: bool = prodigy(True, "keep warm-up rates out of Prodigy's step size")
    max_grad_norm: float = optim(1.0, "gradients are clipped to this norm", above=0)
    ema_decay: float | None = optim(
        None,
        "moving average of the adapter with this decay (0.999 is usual)",
        above=0,
        at_most=0.999999,
        needs=NO_AVERAGE,
    )
    prediction_type: str | None = loss(
        None, "what the UNet predicts; by default what the base predicts", choices=PREDICTIONS
    )
    snr_gamma: float | None = loss(None, "min-SNR loss weights with this gamma (5 is usual)", above=0)
    debiased_estimation: bool = loss(False, "loss weights 1/sqrt(SNR), which balance the noise levels")
    noise_offset: float = loss(
        0.0, "strength of a noise offset per channel, for darker and brighter images", at_least=0, at_most=1
    )
    rescale_betas_zero_snr: bool = loss(False, "a noise schedule that ends in pure noise (for v_prediction)")
    loss_type: str = loss("l2", "squared error, pseudo-Huber, or pseudo-Huber divided by c", choices=LOSSES)
    huber_c: float = huber(
        0.1, "c: where the loss changes from squared to absolute error", above=0, at_most=1
    )
    huber_schedule: str = huber(
        "snr", "c by timestep: from near 1 with little noise to huber_c; or constant", choices=HUBER_SCHEDULES
    )
    with_prior_preservation: bool = prior(False, "train on class images too, to preserve the class")
    class_data_dir: str | None = prior(
        None, "folder of class images; the base generates missing ones", kind="images", resumable=True
    )
    class_prompt: str | None = prior(None, "prompt and caption of class images", kind="text")
    prior_loss_weight: float = prior(1.0, "weight of the class images' loss", at_least=0)
    num_class_images: int = prior(100, "class images to train on", at_least=1)
    sample_batch_size: int = prior(4, "class images generated at once", at_least=1, resumable=True)
    prior_generation_precision: str | None = prior(
        None, "precision for class images; by default the run's", choices=("no", "fp32", "fp16", "bf16")
    )
    allocate: str | None = ranks(
        None, "rule that gives each layer its rank, at the parameter count of --rank", choices=ALLOCATE
    )
    allocation: str | None = ranks(None, "another run's allocation.json, for its ranks", kind="allocation")
    gora_init: str | None = gora(
        None,
        "initialization from gradients: svd (default), random (GoRA as published), or zero",
        choices=STARTS,
    )
    gora_gamma: float | None = gora(
        None,
        "norm of the initial delta relative to the gradient's; by default searched",
        at_least=0,
        at_most=1e6,
    )
    gora_batches: int = gora(64, "maximum number of batches in the gradient pass", at_least=1, at_most=2**20)
    gora_tolerance: float = gora(
        0.05, "end the pass when less than this share of the parameters would move", at_least=0, at_most=1
    )
    gora_min_rank: int | None = gora(None, "lowest rank; by default half of --rank", at_least=1)
    gora_max_rank: int | None = gora(None, "highest rank; by default four times --rank", at_least=1)
    gora_rounding: str = gora(
        "exact", "the exact parameter count of --rank, or the paper's rounding", choices=("exact", "paper")
    )
    gora_memory: float | None = gora(
        None, "GiB of gradient sums kept at once; further passes compute the rest", above=0
    )
    report_to: str = tracking("none", "tracker, in addition to metrics.jsonl", choices=TRACKERS)
    logging_dir: str = tracking("logs", "folder in the run folder for tensorboard's files", kind="folder")
    push_to_hub: bool = tracking(False, "upload adapter, samples and a model card to the hub at the end")
    hub_token: str | None = tracking(
        None, "hub token; by default that of `hf auth login`; never written to a file", kind="secret"
    )
    hub_model_id: str | None = tracking(None, "repository on the hub; by default the run folder's name")

    def __post_init__(self):
        check_rules(self)
        check_needs(self)
        refuse(training_problems(self))

    @property
    def adapter_name(self) -> str:
        """What names and cards call the adapter: gora where a plain LoRA starts as GoRA does."""
        return "gora" if self.adapter.method == "lora" and self.gora_init == "random" else self.adapter.method

    def resolved(self) -> "TrainConfig":
        """Fill the options that depend on the base: the embedded one and SDXL need other values."""
        filled = dict(EMBEDDED_DEFAULTS if self.pretrained_model_name_or_path is None else SDXL_DEFAULTS)
        if self.optimizer == "Prodigy":
            filled["learning_rate"] = 1.0
        if self.allocate or self.allocation:
            filled["gora_init"] = "svd"
        if self.num_train_epochs is not None:
            del filled["max_train_steps"]
        open_options = {name: value for name, value in filled.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_options)
