"""Every option, defined once: the command line, --help, config.json and the adapter's header are derived from these fields."""

import dataclasses
import os
import re
from dataclasses import dataclass, field, fields

from gralora_diffusion.options import ConfigError, check_numbers, one_of, option

METHODS = ("gralora", "lora", "gora")
ALLOCATE = ("gora", "energy", "uniform", "random", "inverse", "ralora")
OPTIMIZERS = ("AdamW", "Prodigy", "Adafactor", "AdamWScheduleFree")
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
)
INTERPOLATIONS = ("nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
QUANTIZED = ("int8-torchao", "nf4-torchao")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained: the kind of adapter, its size, and which layers get one."""

    method: str = option("gralora", "kind of adapter", ("--adapter",), METHODS)
    rank: int = option(64, "total rank, hybrid_rank included", ("--gralora_rank", "--rank"), least=1)
    k: int | None = option(
        None, "GraLoRA's blocks per side; by default rank/k^2 is about 8", ("--gralora_k",), least=1
    )
    alpha: float | None = option(
        None,
        "scale is alpha/rank; by default alpha = rank, so that the scale is 1",
        ("--gralora_alpha", "--lora_alpha"),
        above=0,
        most=1e6,
    )
    hybrid_rank: int = option(
        0, "part of the rank that goes to a plain LoRA beside GraLoRA's blocks", least=0
    )
    dropout: float = option(0.0, "dropout on the adapter's input", ("--lora_dropout",), least=0, most=0.99)
    rslora: bool = option(False, "scale by alpha/sqrt(rank) in place of alpha/rank")
    targets: str = option(
        "attention", "attention, attention+ff, all-linear, or a regular expression on module paths"
    )
    rank_pattern: dict = option({}, 'other ranks for some layers, as JSON: {"regular expression": rank}')
    k_pattern: dict = option({}, 'other k for some layers, as JSON: {"regular expression": k}')
    tlora: bool = option(
        False,
        "T-LoRA: where there is more noise, fewer ranks of the UNet's adapters act (in other programs all act)",
    )
    tlora_min_rank: int | None = option(
        None, "T-LoRA's rank at the noisiest timestep; by default half of the rank", least=1
    )

    def __post_init__(self):
        one_of("method (--adapter)", self.method, METHODS)
        if self.method == "gora":  # rsLoRA's scale is part of the method
            object.__setattr__(self, "rslora", True)
            object.__setattr__(self, "alpha", 16.0 if self.alpha is None else self.alpha)
        if self.method != "gralora" and (self.hybrid_rank or self.k not in (None, 1) or self.k_pattern):
            raise ConfigError("k and hybrid_rank belong to GraLoRA: drop them, or use --adapter gralora")
        check_numbers(self)
        if self.tlora_min_rank is not None and not (self.tlora and self.tlora_min_rank <= self.rank):
            raise ConfigError(
                f"--tlora_min_rank is {self.tlora_min_rank}; it belongs to --tlora, and is at most the rank {self.rank}"
            )
        for name, pattern in (("rank_pattern", self.rank_pattern), ("k_pattern", self.k_pattern)):
            if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in pattern.values()):
                raise ConfigError(f"{name} must map regular expressions to positive whole numbers")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.  Options whose default is None are filled by resolved()."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    pretrained_model_name_or_path: str | None = option(
        None,
        "SDXL base: a folder in diffusers layout, a single .safetensors checkpoint, or a hub id; by default the embedded tiny base",
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, "another VAE, for instance madebyollin/sdxl-vae-fp16-fix"
    )
    revision: str | None = option(None, "revision of the base on the hub")
    variant: str | None = option(None, "variant of the base's files, for instance fp16")
    cache_dir: str | None = option(None, "where downloads from the hub are kept", free=True)
    instance_data_dir: str | None = option(
        None,
        "folder with the images to learn; an image's caption is NAME.txt, else NAME.json (caption, text or tags) beside it, else its line in "
        "metadata.jsonl (file_name and text or caption); by default the bundled robot",
    )
    dataset_name: str | None = option(
        None,
        "data set on the hub, or a local folder that the package datasets reads, in place of --instance_data_dir",
    )
    dataset_config_name: str | None = option(None, "the data set's configuration, where it has several")
    image_column: str = option("image", "the data set's column of images")
    caption_column: str | None = option(
        None,
        "column of captions in the data set or in metadata.jsonl; a data set's are used only if it is named",
    )
    streaming: bool = option(
        False,
        "read the data set row by row and keep the images in the cache, in place of downloading all of it",
        free=True,
    )
    max_train_samples: int | None = option(None, "use only the first rows of the data set", least=1)
    instance_prompt: str | None = option(
        None,
        "caption of images without one of their own, with a rare word for the subject: 'a photo of sks dog'",
    )
    output_dir: str | None = option(
        None, "the run folder; by default runs/NAME, numbered when that exists", free=True
    )
    resolution: int | None = option(
        None, "side of the training images in pixels; by default the base's own", least=64, most=8192
    )
    center_crop: bool = option(
        False, "crop images in the middle; by default at up to four places, drawn by each image's content"
    )
    random_flip: bool = option(False, "mirror images at random")
    use_aspect_ratio_buckets: bool = option(
        False,
        "cut images to the nearest of SDXL's shapes with the area of --resolution, in place of a square",
    )
    image_interpolation_mode: str = option("lanczos", "how images are resized", (), INTERPOLATIONS)
    repeats: int = option(1, "how often each image comes in one pass", least=1)
    caption_dropout: float = option(
        0.0, "share of the instance images that train without their caption (0.1 is usual)", least=0, most=1
    )
    shuffle_captions: bool = option(
        False, "show comma-separated tags in other orders too: eight a caption, drawn once"
    )
    keep_tokens: int = option(0, "tags at the front that --shuffle_captions leaves in place", least=0)
    on_bad_image: str = option(
        "stop",
        "stop with a list of the files that cannot be used, or skip them",
        (),
        ("stop", "skip"),
        free=True,
    )
    dataloader_num_workers: int = option(
        0, "threads that read and cut images for the cache", least=0, most=256, free=True
    )
    cache_latents: bool = option(
        True,
        "keep latents and prompt embeddings for later runs, not only for this one in its folder",
        free=True,
    )
    latent_cache_dir: str | None = option(
        None, "where they are kept; by default gralora_diffusion in $XDG_CACHE_HOME or ~/.cache", free=True
    )
    with_prior_preservation: bool = option(
        False, "learn images of the class too, so that it stays as it was (DreamBooth)"
    )
    class_data_dir: str | None = option(
        None, "folder with images of the class; those missing are drawn by the base and kept there"
    )
    class_prompt: str | None = option(
        None, "caption of class images without one of their own, and the prompt to draw those missing"
    )
    prior_loss_weight: float = option(1.0, "weight of the class images' loss", least=0)
    num_class_images: int = option(100, "class images to learn", least=1)
    sample_batch_size: int = option(4, "class images drawn at once, per process", least=1, free=True)
    prior_generation_precision: str | None = option(
        None,
        "precision in which class images are drawn; by default that of the run",
        (),
        ("no", "fp32", "fp16", "bf16"),
    )
    seed: int = option(0, "seed of everything random", least=0, most=2**40)
    train_batch_size: int | None = option(None, "images per step and process", least=1)
    max_train_steps: int | None = option(None, "optimizer steps", least=1, free=True)
    num_train_epochs: int | None = option(
        None, "passes over the images, in place of --max_train_steps", least=1, free=True
    )
    gradient_accumulation_steps: int = option(1, "batches per optimizer step", least=1)
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: slower, far less memory"
    )
    train_text_encoder: bool = option(False, "adapt both text encoders too")
    mixed_precision: str | None = option(
        None,
        "precision of the frozen base and of the computation; by default what accelerate is set to",
        (),
        ("no", "fp16", "bf16"),
    )
    base_model_precision: str | None = option(
        None,
        "keep the frozen UNet's linear weights in 8 or 4 bits: less memory, slower (needs the package torchao)",
        (),
        QUANTIZED,
    )
    learning_rate: float | None = option(
        None,
        "learning rate of the UNet's adapters; Prodigy finds its own and multiplies it by this, 1",
        above=0,
    )
    text_encoder_lr: float | None = option(
        None, "learning rate of the text encoders' adapters; by default the UNet's", least=0
    )
    text_encoder_2_lr: float | None = option(
        None, "learning rate of the second text encoder's adapters; by default the first one's", least=0
    )
    scale_lr: bool = option(
        False,
        "multiply --learning_rate by the images per optimizer step: batch size x accumulation x processes",
    )
    loraplus_lr_ratio: float = option(
        1.0, "LoRA+: the learning rate of every B is this times that of its A (16 is usual)", above=0
    )
    lr_scheduler: str = option("constant", "learning-rate schedule", (), SCHEDULES)
    lr_warmup_steps: int = option(0, "steps over which the learning rate rises", least=0)
    lr_num_cycles: int = option(1, "restarts of cosine_with_restarts", least=1)
    lr_power: float = option(1.0, "power of the polynomial schedule", above=0)
    lr_step_rules: str | None = option(
        None,
        "piecewise_constant's factors: '1:100,0.5:300,0.1' is 1 up to step 100, 0.5 up to step 300, then 0.1",
    )
    optimizer: str = option("AdamW", f"{', '.join(OPTIMIZERS)}, in capitals or not")
    use_8bit_adam: bool = option(False, "AdamW with its state in 8 bits: needs the package bitsandbytes")
    adam_beta1: float = option(0.9, "beta1 of AdamW and Prodigy", least=0, most=0.999999)
    adam_beta2: float = option(0.999, "beta2 of AdamW and Prodigy", least=0, most=0.999999)
    adam_weight_decay: float = option(1e-4, "weight decay, of every optimizer", least=0)
    adam_weight_decay_text_encoder: float | None = option(
        None, "weight decay of the text encoders' adapters; by default the UNet's", least=0
    )
    adam_epsilon: float = option(1e-8, "epsilon of AdamW and Prodigy", above=0)
    prodigy_beta3: float | None = option(
        None, "beta3 of Prodigy's step size; by default the root of beta2", least=0, most=0.999999
    )
    prodigy_decouple: bool = option(True, "Prodigy's weight decay as AdamW's")
    prodigy_use_bias_correction: bool = option(True, "Adam's bias correction in Prodigy")
    prodigy_safeguard_warmup: bool = option(
        True, "keep a warm-up's small learning rates out of Prodigy's step size"
    )
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above=0)
    ema_decay: float | None = option(
        None,
        "sample and export a moving average of the adapter with this decay (0.999 is usual)",
        above=0,
        most=0.999999,
    )
    snr_gamma: float | None = option(None, "min-SNR loss weights with this gamma (5 is usual)", above=0)
    debiased_estimation: bool = option(
        False,
        "loss weights 1/sqrt(SNR), so that the error of the image itself is not biased by the noise level",
    )
    noise_offset: float = option(
        0.0,
        "noise of this strength that is the same at all places of a channel: darker and brighter images",
        least=0,
        most=1,
    )
    prediction_type: str | None = option(
        None, "what the UNet is to predict; by default what the base does", (), PREDICTIONS
    )
    rescale_betas_zero_snr: bool = option(
        False, "a noise schedule that ends in pure noise (meant for v_prediction)"
    )
    loss_type: str = option(
        "l2",
        "squared error, pseudo-Huber, or pseudo-Huber divided by its c",
        (),
        ("l2", "huber", "smooth_l1"),
    )
    huber_c: float = option(0.1, "where the Huber loss goes from squared to absolute error", above=0, most=1)
    huber_schedule: str = option(
        "snr",
        "how c depends on the timestep: near 1 with little noise, huber_c with much, or always huber_c",
        (),
        ("snr", "exponential", "constant"),
    )
    allocate: str | None = option(
        None, "ranks by layer at the parameters of --rank everywhere: by importance as GoRA, by captured gradient energy, or the controls; "
        "with --adapter gora it is gora", (), ALLOCATE,
    )  # fmt: skip
    allocation: str | None = option(None, "allocation.json of another run, whose ranks and k are taken")
    gora_init: str | None = option(
        None, "how adapters start: from the gradient with a random A (GoRA's default), its singular vectors (the default with --allocate), or zero",
        (), ("random", "svd", "zero"),
    )  # fmt: skip
    gora_gamma: float | None = option(
        None,
        "size of the first delta, as a part of the gradient's (0.05 as published); by default searched on held-out noise",
        least=0,
        most=1e6,
    )
    gora_batches: int = option(64, "most batches of the gradient pass", least=1, most=2**20)
    gora_tolerance: float = option(
        0.05,
        "the pass stops when ranks would move less than this part of the parameters; 0: never",
        least=0,
        most=1,
    )
    gora_min_rank: int | None = option(None, "lowest rank; by default half of --rank", least=1)
    gora_max_rank: int | None = option(None, "highest rank; by default four times --rank", least=1)
    gora_rounding: str = option(
        "exact",
        "exact: the parameters of --rank everywhere, to the last one; paper: rounded and clipped",
        (),
        ("exact", "paper"),
    )
    gora_memory: float | None = option(
        None, "GiB of gradient sums kept at once; what does not fit waits for another pass", above=0
    )
    validation_prompt: str | None = option(
        None,
        "prompts of the sample images, separated by |; by default the instance prompt in four places",
        free=True,
    )
    num_validation_images: int = option(1, "sample images per prompt", least=1, free=True)
    num_inference_steps: int = option(25, "denoising steps of a sample image", least=1, free=True)
    guidance_scale: float | None = option(
        None, "classifier-free guidance of the sample images", least=0, free=True
    )
    output_kohya_format: bool = option(
        False,
        "write the adapter in kohya's naming with diffusers' UNet names too, as diffusers' trainers do",
        free=True,
    )
    skip_final_inference: bool = option(False, "no sample images, neither before nor after", free=True)
    validation_epochs: int | None = option(
        None, "sample images every so many passes too; by default none on the way", least=1, free=True
    )
    validation_steps: int | None = option(None, "sample images every so many steps too", least=1, free=True)
    checkpointing_steps: int = option(
        500, "a checkpoint every so many steps, and at the end", least=1, free=True
    )
    checkpoints_total_limit: int | None = option(
        None, "keep no more than so many checkpoints; the oldest go", least=1, free=True
    )
    resume_from_checkpoint: str | None = option(
        None,
        "latest, or a checkpoint-N folder of this run; the same command resumes the latest without this option",
        free=True,
    )
    report_to: str = option(
        "none", "tracker beside metrics.jsonl", (), ("none", "tensorboard", "wandb", "all"), free=True
    )
    logging_dir: str = option("logs", "folder in the run folder for tensorboard's files", free=True)
    allow_tf32: bool = option(
        False, "let the GPU multiply fp32 matrices in TF32: faster, and a little less exact"
    )
    upcast_before_saving: bool = option(
        False, "write pytorch_lora_weights.safetensors in fp32 also after mixed precision", free=True
    )
    push_to_hub: bool = option(
        False, "upload the run's adapter, samples and a model card to the hub at the end", free=True
    )
    hub_token: str | None = option(
        None,
        "token for --push_to_hub; by default that of `hf auth login`; never written to a file",
        free=True,
    )
    hub_model_id: str | None = option(
        None, "repository for --push_to_hub; by default the run folder's name", free=True
    )
    dry_run: bool = option(False, "print the resolved config and the plan, and stop", free=True)

    def __post_init__(self):
        check_numbers(self)
        if self.resolution is not None and self.resolution % 8:
            raise ConfigError(f"--resolution is {self.resolution}; it must be divisible by 8")
        check_optimization(self)
        check_allocation(self)
        if self.max_train_steps is not None and self.num_train_epochs is not None:
            raise ConfigError("--max_train_steps and --num_train_epochs say the same thing: give one of them")
        check_data(self)

    def resolved(self) -> "TrainConfig":
        """Fill the options that depend on the base: what suits the embedded one differs from what suits SDXL."""
        defaults = dict(EMBEDDED if self.pretrained_model_name_or_path is None else SDXL)
        if self.optimizer == "Prodigy":
            defaults["learning_rate"] = 1.0
        given = {name for name in defaults if getattr(self, name) is not None}
        if self.num_train_epochs is not None:
            given.add("max_train_steps")
        filled = {name: value for name, value in defaults.items() if name not in given}
        gora = self.adapter.method == "gora"
        if gora and not self.allocation:
            filled["allocate"] = self.allocate or "gora"
        if gora or self.allocate or self.allocation:
            filled["gora_init"] = self.gora_init or ("random" if gora else "svd")
        return dataclasses.replace(self, **filled)


def check_optimization(config: TrainConfig) -> None:
    """The optimizer, the schedule and the loss fit together, and no option that was given is without effect; spells the optimizer's name."""
    spelled = next(
        (name for name in OPTIMIZERS if name.lower() == config.optimizer.lower()), config.optimizer
    )
    one_of("--optimizer", spelled, OPTIMIZERS)
    object.__setattr__(config, "optimizer", spelled)
    needs = {
        "lr_num_cycles": (
            config.lr_scheduler == "cosine_with_restarts",
            "--lr_scheduler cosine_with_restarts",
        ),
        "lr_power": (config.lr_scheduler == "polynomial", "--lr_scheduler polynomial"),
        "lr_step_rules": (config.lr_scheduler == "piecewise_constant", "--lr_scheduler piecewise_constant"),
        "lr_warmup_steps": (
            config.lr_scheduler not in ("constant", "piecewise_constant") or spelled == "AdamWScheduleFree",
            "a schedule with a warm-up, such as --lr_scheduler constant_with_warmup",
        ),
        "use_8bit_adam": (spelled == "AdamW", "--optimizer AdamW"),
        "prodigy_": (spelled == "Prodigy", "--optimizer Prodigy"),
        "adam_beta": (spelled != "Adafactor", "another optimizer than Adafactor"),
        "adam_epsilon": (spelled != "Adafactor", "another optimizer than Adafactor"),
        "ema_decay": (
            spelled != "AdamWScheduleFree",
            "another optimizer than AdamWScheduleFree, which averages by itself",
        ),
        "huber_": (config.loss_type != "l2", "--loss_type huber or smooth_l1"),
        "text_encoder_": (config.train_text_encoder, "--train_text_encoder"),
        "gora_": (
            config.adapter.method == "gora" or config.allocate or config.allocation,
            "--adapter gora, --allocate or --allocation",
        ),
        "adam_weight_decay_text_encoder": (config.train_text_encoder, "--train_text_encoder"),
    }
    for f in fields(config):
        for start, (fits, needed) in needs.items():
            if f.name.startswith(start) and not fits and getattr(config, f.name) != f.default:
                raise ConfigError(f"--{f.name} is given, and has no effect here: it needs {needed}")
    if spelled == "AdamWScheduleFree" and (config.lr_scheduler != "constant" or config.adam_beta1 == 0):
        raise ConfigError(
            "AdamWScheduleFree needs --lr_scheduler constant (it takes --lr_warmup_steps by itself) and an --adam_beta1 above 0"
        )
    rates = {rate for rate in (config.text_encoder_lr, config.text_encoder_2_lr) if rate} - {
        config.learning_rate or 1.0
    }
    if spelled == "Prodigy" and (rates or config.scale_lr or config.loraplus_lr_ratio != 1):
        raise ConfigError(
            "Prodigy finds one learning rate for all: drop --scale_lr, --loraplus_lr_ratio, and a text encoder's rate unless it is 0"
        )
    if config.lr_scheduler == "piecewise_constant" and not re.fullmatch(
        r"(\d+(\.\d+)?:\d+,)+\d+(\.\d+)?", config.lr_step_rules or ""
    ):
        raise ConfigError(
            f"--lr_step_rules is {config.lr_step_rules!r}; piecewise_constant needs rules such as '1:100,0.5:300,0.1'"
        )
    if config.max_train_steps is not None and config.lr_warmup_steps >= config.max_train_steps:
        raise ConfigError(
            f"--lr_warmup_steps is {config.lr_warmup_steps}, and the run ends after {config.max_train_steps} steps: take fewer"
        )


def check_allocation(config: TrainConfig) -> None:
    """Ranks come from one place, and the rule fits the adapter."""
    adapter = config.adapter
    for name in ("allocate", "gora_init", "gora_rounding"):
        if getattr(config, name) is not None:
            one_of(
                f"--{name}",
                getattr(config, name),
                next(f for f in fields(config) if f.name == name).metadata["choices"],
            )
    if config.allocate and config.allocation:
        raise ConfigError("--allocate makes ranks and --allocation takes them from a file: give one of them")
    if (config.allocate or config.allocation or adapter.method == "gora") and (
        adapter.rank_pattern or adapter.k_pattern or adapter.hybrid_rank
    ):
        raise ConfigError(
            "--allocate, --allocation and --adapter gora do not go with --rank_pattern, --k_pattern or --hybrid_rank: drop these"
        )
    if config.base_model_precision and (config.allocate or config.allocation or adapter.method == "gora"):
        raise ConfigError(
            "--base_model_precision leaves no weights to take gradients of, which --allocate, --allocation and --adapter gora need"
        )
    if config.allocate == "ralora" and (adapter.method != "gralora" or adapter.k):
        raise ConfigError("--allocate ralora chooses GraLoRA's k: use --adapter gralora without --gralora_k")
    for name in ("gora_min_rank", "gora_max_rank"):
        if getattr(config, name) is not None and (config.allocation or config.allocate == "uniform"):
            raise ConfigError(
                f"--{name} is given, and has no effect where the ranks are given: drop it, or --allocation and --allocate uniform"
            )
    if config.gora_rounding == "paper" and (config.allocation or config.allocate in ("energy", "uniform")):
        rule = f"--allocate {config.allocate}" if config.allocate else "--allocation"
        raise ConfigError(f"--gora_rounding paper is a rounding of importances, and {rule} has none")


EMBEDDED = dict(learning_rate=1e-3, train_batch_size=8, max_train_steps=600, guidance_scale=3.0)
SDXL = dict(learning_rate=1e-4, train_batch_size=1, max_train_steps=500, guidance_scale=5.0)


def check_data(config: TrainConfig) -> None:
    """What the options of images and captions say together."""
    if config.dataset_name is not None and config.instance_data_dir is not None:
        raise ConfigError(
            "--dataset_name and --instance_data_dir both say where the images are: give one of them"
        )
    for name in ("dataset_config_name", "streaming", "max_train_samples"):
        if getattr(config, name) and config.dataset_name is None:
            raise ConfigError(f"--{name} belongs to --dataset_name, which is not given")
    if config.keep_tokens and not config.shuffle_captions:
        raise ConfigError("--keep_tokens belongs to --shuffle_captions, which is not given")
    if config.with_prior_preservation and not (config.class_data_dir and config.class_prompt):
        raise ConfigError("--with_prior_preservation needs --class_data_dir and --class_prompt")
    if config.latent_cache_dir is not None and not config.cache_latents:
        raise ConfigError("--latent_cache_dir and --no-cache_latents contradict each other: give one of them")


def check_paths(config: TrainConfig) -> None:
    """What is wrong with the paths, as far as it can be told before any library is loaded."""
    folder, base = config.instance_data_dir, config.pretrained_model_name_or_path
    if folder is not None and folder.isprintable() and not os.path.isdir(folder):
        raise ConfigError(f"{folder} is not a folder: --instance_data_dir must name a folder with images")
    if (
        base is not None
        and base.isprintable()
        and base.startswith(("/", "./", "../"))
        and not os.path.exists(base)
    ):
        raise ConfigError(f"no SDXL base can be loaded from {base}: there is no such folder or file")
