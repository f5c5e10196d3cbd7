"""Options: the optimizer, the loss, and ranks from gradients."""

from dataclasses import dataclass

from gralora_diffusion.config.choices import (
    ALLOCATE,
    HUBER_SCHEDULES,
    LOSSES,
    OPTIMIZERS,
    POLYNOMIAL,
    PREDICTIONS,
    RESTARTS,
    SCHEDULES,
    STARTS,
)
from gralora_diffusion.config.groups import (
    ADAMW,
    MASKED,
    NO_AVERAGE,
    STEPPED,
    WARMUP,
    betas,
    gora,
    huber,
    loss,
    optim,
    prodigy,
    ranks,
    text_decay,
)


@dataclass(frozen=True)
class LearningOptions:
    """The optimizer, the loss, and ranks from gradients."""

    optimizer: str = optim("AdamW", "optimizer", label="Optimizer", choices=OPTIMIZERS)
    use_8bit_adam: bool = optim(
        False, "AdamW with 8-bit state (needs bitsandbytes)", label="8-bit AdamW", needs=ADAMW
    )
    lr_scheduler: str = optim(
        "constant", "learning-rate schedule", label="Learning-rate schedule", choices=SCHEDULES
    )
    lr_warmup_steps: int = optim(
        0, "steps over which the learning rate rises", label="Warm-up (steps)", at_least=0, needs=WARMUP
    )
    lr_num_cycles: int = optim(
        1,
        f"restarts of {RESTARTS}",
        label="Schedule restarts",
        at_least=1,
        needs={"lr_scheduler": (RESTARTS,)},
    )
    lr_power: float = optim(
        1.0, f"power of {POLYNOMIAL}", label="Schedule power", above=0, needs={"lr_scheduler": (POLYNOMIAL,)}
    )
    lr_step_rules: str | None = optim(
        None,
        "factors: '1:100,0.5:300,0.1' is 1 to step 100, 0.5 to step 300, then 0.1",
        label="Schedule rules",
        needs=STEPPED,
    )
    scale_lr: bool = optim(
        False,
        "multiply the learning rate by batch size x accumulation x processes",
        label="Scale learning rate by batch",
    )
    lr_pattern: dict = optim(
        {},
        'factors for the learning rates of some layers, as JSON: {"regular expression": factor}',
        label="Learning-rate factors by layer (JSON)",
    )
    loraplus_lr_ratio: float = optim(
        1.0, "LoRA+: ratio of B's learning rate to A's (16 is usual)", label="LoRA+ ratio", above=0
    )
    adam_beta1: float = betas(0.9, "the optimizer's beta1", label="Beta 1", at_least=0, at_most=0.999999)
    adam_beta2: float = betas(0.999, "the optimizer's beta2", label="Beta 2", at_least=0, at_most=0.999999)
    adam_epsilon: float = betas(1e-8, "the optimizer's epsilon", label="Epsilon", above=0)
    adam_weight_decay: float = optim(
        1e-4, "weight decay of every optimizer", label="Weight decay", at_least=0
    )
    adam_weight_decay_text_encoder: float | None = text_decay(
        None,
        "weight decay of the text encoders' adapters; by default the UNet's",
        label="Text encoder weight decay",
        at_least=0,
    )
    prodigy_beta3: float | None = prodigy(
        None,
        "beta3 of Prodigy; by default the square root of beta2",
        label="Prodigy beta 3",
        at_least=0,
        at_most=0.999999,
    )
    prodigy_decouple: bool = prodigy(
        True, "decoupled weight decay in Prodigy, as in AdamW", label="Prodigy decoupled decay"
    )
    prodigy_use_bias_correction: bool = prodigy(
        True, "Adam's bias correction in Prodigy", label="Prodigy bias correction"
    )
    prodigy_safeguard_warmup: bool = prodigy(
        True, "keep warm-up rates out of Prodigy's step size", label="Prodigy warm-up safeguard"
    )
    max_grad_norm: float = optim(
        1.0, "gradients are clipped to this norm", label="Gradient clipping (norm)", above=0
    )
    ema_decay: float | None = optim(
        None,
        "moving average of the adapter with this decay (0.999 is usual)",
        label="EMA decay",
        above=0,
        at_most=0.999999,
        needs=NO_AVERAGE,
    )
    prediction_type: str | None = loss(
        None,
        "what the UNet predicts; by default what the base predicts",
        label="Prediction type",
        blank="that of the base model",
        choices=PREDICTIONS,
    )
    snr_gamma: float | None = loss(
        None, "min-SNR loss weights with this gamma (5 is usual)", label="Min-SNR gamma", above=0
    )
    debiased_estimation: bool = loss(
        False, "loss weights 1/sqrt(SNR), which balance the noise levels", label="Debiased estimation"
    )
    noise_offset: float = loss(
        0.0,
        "strength of a noise offset per channel, for darker and brighter images",
        label="Noise offset",
        at_least=0,
        at_most=1,
    )
    rescale_betas_zero_snr: bool = loss(
        False, "a noise schedule that ends in pure noise (for v_prediction)", label="Zero terminal SNR"
    )
    loss_type: str = loss(
        "l2", "squared error, pseudo-Huber, or pseudo-Huber divided by c", label="Loss type", choices=LOSSES
    )
    huber_c: float = huber(
        0.1,
        "c: where the loss changes from squared to absolute error",
        label="Huber c",
        hint="Where the loss changes from squared to absolute error",
        above=0,
        at_most=1,
    )
    huber_schedule: str = huber(
        "snr",
        "c by timestep: from near 1 with little noise to huber_c; or constant",
        label="Huber schedule",
        hint="How c depends on the timestep: from near 1 with little noise to Huber c; or constant",
        choices=HUBER_SCHEDULES,
    )
    masked_loss: bool = loss(
        False,
        "train only on what the images' masks select, with equal weight per image",
        label="Masked loss",
        hint="Learn only what the masks of the images select",
    )
    mask_background_weight: float = loss(
        0.0,
        "weight of what a mask does not select",
        label="Background weight",
        at_least=0,
        at_most=1,
        needs=MASKED,
    )
    allocate: str | None = ranks(
        None,
        "rule that assigns a rank to each layer, for as many parameters as with equal ranks",
        label="Rank allocation",
        blank="none: equal ranks",
        choices=ALLOCATE,
    )
    allocation: str | None = ranks(
        None,
        "another run's allocation.json, whose ranks are used",
        label="Ranks of another run",
        hint="Name of a run whose ranks are used",
        kind="allocation",
    )
    gora_init: str | None = gora(
        None,
        "initialization from gradients: svd (default), random (GoRA as published), or zero",
        label="Gradient initialization",
        blank="that of the method",
        choices=STARTS,
    )
    gora_gamma: float | None = gora(
        None,
        "norm of the initial delta relative to the gradient's; by default searched",
        label="Initial delta norm",
        at_least=0,
        at_most=1e6,
    )
    gora_batches: int = gora(
        64,
        "maximum number of batches in the gradient pass",
        label="Gradient pass (batches)",
        at_least=1,
        at_most=2**20,
    )
    gora_tolerance: float = gora(
        0.05,
        "end the pass when less than this share of the parameters would move",
        label="Gradient pass tolerance (share)",
        at_least=0,
        at_most=1,
    )
    gora_min_rank: int | None = gora(
        None, "lowest rank; by default half the rank", label="Lowest rank", at_least=1
    )
    gora_max_rank: int | None = gora(
        None, "highest rank; by default four times the rank", label="Highest rank", at_least=1
    )
    gora_rounding: str = gora(
        "exact",
        "exactly as many parameters as with equal ranks, or the paper's rounding",
        label="Rank rounding",
        choices=("exact", "paper"),
    )
    gora_memory: float | None = gora(
        None,
        "GiB of gradient sums kept at once; further passes compute the rest",
        label="Gradient sums (GiB)",
        above=0,
    )
