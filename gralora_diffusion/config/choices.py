"""The values that options can take, and defaults that the base determines."""

METHODS = ["gralora", "lora", "ortholora"]  # adapters.kinds.register() adds to it
ALLOCATE = ("gora", "energy", "uniform", "random", "inverse", "ralora")
OPTIMIZERS = ("AdamW", "Prodigy", "Adafactor", "AdamWScheduleFree", "SGD")
RESTARTS, POLYNOMIAL, STEP_RULES = "cosine_with_restarts", "polynomial", "piecewise_constant"
SCHEDULES = ("linear", "cosine", RESTARTS, POLYNOMIAL, "constant", "constant_with_warmup", STEP_RULES)
INTERPOLATIONS = ("nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
QUANTIZED = ("int8-torchao", "nf4-torchao")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
DENSITIES = ("uniform", "logit_normal")
CAPTION_LINES = ("first", "join", "random")
SAMPLERS = (  # of sdxl/schedulers.py
    "euler", "euler_karras", "euler_a", "heun", "heun_karras", "dpm2", "dpm2_karras", "dpm2_a",
    "dpm2_a_karras", "lms", "lms_karras", "ddim", "ddpm", "pndm", "dpm++_2m", "dpm++_2m_karras",
    "dpm++_2m_sde", "dpm++_2m_sde_karras", "dpm++_3m_sde", "dpm++_3m_sde_karras", "dpm++_2s",
    "dpm++_2s_karras", "dpm++_sde", "dpm++_sde_karras", "deis", "unipc", "sa_solver", "lcm", "tcd",
    "lightning", "turbo",
)  # fmt: skip
PRECISIONS = ("no", "fp16", "bf16")
LOSSES = ("l2", "huber", "smooth_l1")
HUBER_SCHEDULES = ("snr", "exponential", "constant")
BEST_BY = ("loss", "score")
STARTS = ("random", "svd", "zero")
ORIGINS = ("random", "base")
RANK, ALPHA = ("--gralora_rank", "--rank"), ("--gralora_alpha", "--lora_alpha")
MODEL, BAD = "base_model", ("stop", "skip")
TRACKERS = ("none", "tensorboard", "wandb", "all")

EMBEDDED_DEFAULTS = dict(learning_rate=1e-3, train_batch_size=8, max_train_steps=600, guidance_scale=3.0)
EMBEDDED_RESOLUTION, SDXL_RESOLUTION = 64, 1024  # what a blank resolution stands for
SDXL_DEFAULTS = dict(learning_rate=1e-4, train_batch_size=1, max_train_steps=500, guidance_scale=5.0)


def by_base(name: str) -> str:
    """What help says of a default that the base determines."""
    return f"by default {SDXL_DEFAULTS[name]:g}, or {EMBEDDED_DEFAULTS[name]:g} on the embedded base"
