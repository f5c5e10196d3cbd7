"""Every option, defined once: the command line, --help, config.json and the adapter's header are derived from these fields."""

import argparse
import dataclasses
import difflib
import json
import math
import sys
import types
import typing
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path

METHODS = ("gralora", "lora")


def option(default, help: str, flags: tuple = (), choices: tuple | None = None, least=None, above=None, most=None, free=False):
    """A dataclass field that is an option; `flags` are its names on the command line where they differ from the field's.

    free: the option changes nothing of what is learnt up to a step, so that a run may be resumed with another value.
    """
    metadata = dict(help=help, flags=flags, choices=choices, least=least, above=above, most=most, free=free)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


class ConfigError(ValueError):
    """An option, or a file it names, cannot be used; the message is one sentence for the user."""


class TrainingError(RuntimeError):
    """A run cannot go on; the message is one sentence for the user."""


def check_numbers(config) -> None:
    """Every number finite and within its option's bounds."""
    for f in fields(config):
        value, least, above, most = getattr(config, f.name), *(f.metadata.get(name) for name in ("least", "above", "most"))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        wrong = (
            "a finite number" if abs(value) == math.inf or value != value
            else f"at least {least}" if least is not None and value < least
            else f"above {above}" if above is not None and value <= above
            else f"at most {most}" if most is not None and value > most
            else None
        )  # fmt: skip
        if wrong:
            raise ConfigError(f"{(f.metadata['flags'] or ('--' + f.name,))[0]} is {value}; it must be {wrong}")


def one_of(name: str, value, choices) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained: the kind of adapter, its size, and which layers get one."""

    method: str = option("gralora", "kind of adapter", ("--adapter",), METHODS)
    rank: int = option(64, "total rank, hybrid_rank included", ("--gralora_rank", "--rank"), least=1)
    k: int | None = option(None, "GraLoRA's blocks per side; by default rank/k^2 is about 8", ("--gralora_k",), least=1)
    alpha: float | None = option(
        None, "scale is alpha/rank; by default alpha = rank, so that the scale is 1", ("--gralora_alpha", "--lora_alpha"), above=0, most=1e6
    )
    hybrid_rank: int = option(0, "part of the rank that goes to a plain LoRA beside GraLoRA's blocks", least=0)
    dropout: float = option(0.0, "dropout on the adapter's input", ("--lora_dropout",), least=0, most=0.99)
    rslora: bool = option(False, "scale by alpha/sqrt(rank) in place of alpha/rank")
    targets: str = option("attention", "attention, attention+ff, all-linear, or a regular expression on module paths")
    rank_pattern: dict = option({}, 'other ranks for some layers, as JSON: {"regular expression": rank}')
    k_pattern: dict = option({}, 'other k for some layers, as JSON: {"regular expression": k}')

    def __post_init__(self):
        one_of("method (--adapter)", self.method, METHODS)
        if self.method == "lora" and (self.hybrid_rank or self.k not in (None, 1) or self.k_pattern):
            raise ConfigError("k and hybrid_rank belong to GraLoRA: drop them, or use --adapter gralora")
        check_numbers(self)
        for name, pattern in (("rank_pattern", self.rank_pattern), ("k_pattern", self.k_pattern)):
            if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in pattern.values()):
                raise ConfigError(f"{name} must map regular expressions to positive whole numbers")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.  Options whose default is None are filled by resolved()."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    pretrained_model_name_or_path: str | None = option(
        None, "SDXL base: a folder in diffusers layout, a single .safetensors checkpoint, or a hub id; by default the embedded tiny base"
    )
    pretrained_vae_model_name_or_path: str | None = option(None, "another VAE, for instance madebyollin/sdxl-vae-fp16-fix")
    revision: str | None = option(None, "revision of the base on the hub")
    variant: str | None = option(None, "variant of the base's files, for instance fp16")
    cache_dir: str | None = option(None, "where downloads from the hub are kept", free=True)
    instance_data_dir: str | None = option(
        None, "folder with the pictures to learn; NAME.txt beside a picture is its caption; by default the bundled robot"
    )
    instance_prompt: str | None = option(None, "caption of pictures without one of their own, with a rare word for the subject: 'a photo of sks dog'")
    output_dir: str | None = option(None, "the run folder; by default runs/NAME, numbered when that exists", free=True)
    resolution: int | None = option(None, "side of the training pictures in pixels; by default the base's own", least=64, most=8192)
    center_crop: bool = option(False, "crop pictures in the middle; by default at four random places, drawn once")
    random_flip: bool = option(False, "mirror pictures at random")
    seed: int = option(0, "seed of everything random", least=0, most=2**40)
    train_batch_size: int | None = option(None, "pictures per step and process", least=1)
    max_train_steps: int | None = option(None, "optimizer steps", least=1, free=True)
    num_train_epochs: int | None = option(None, "passes over the pictures, in place of --max_train_steps", least=1, free=True)
    gradient_accumulation_steps: int = option(1, "batches per optimizer step", least=1)
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: slower, far less memory")
    train_text_encoder: bool = option(False, "adapt both text encoders too")
    mixed_precision: str | None = option(
        None, "precision of the frozen base and of the computation; by default what accelerate is set to", (), ("no", "fp16", "bf16")
    )
    learning_rate: float | None = option(None, "learning rate of the UNet's adapters", above=0)
    text_encoder_lr: float | None = option(None, "learning rate of the text encoders' adapters; by default the UNet's", least=0)
    lr_scheduler: str = option(
        "constant", "learning-rate schedule", (), ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
    )
    lr_warmup_steps: int = option(0, "steps over which the learning rate rises", least=0)
    adam_beta1: float = option(0.9, "AdamW's beta1", least=0, most=0.999999)
    adam_beta2: float = option(0.999, "AdamW's beta2", least=0, most=0.999999)
    adam_weight_decay: float = option(1e-4, "AdamW's weight decay", least=0)
    adam_epsilon: float = option(1e-8, "AdamW's epsilon", above=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above=0)
    snr_gamma: float | None = option(None, "min-SNR loss weights with this gamma (5 is usual)", above=0)
    validation_prompt: str | None = option(
        None, "prompts of the sample pictures, separated by |; by default the instance prompt in four places", free=True
    )
    num_validation_images: int = option(1, "sample pictures per prompt", least=1, free=True)
    num_inference_steps: int = option(25, "denoising steps of a sample picture", least=1, free=True)
    guidance_scale: float | None = option(None, "classifier-free guidance of the sample pictures", least=0, free=True)
    output_kohya_format: bool = option(
        False, "write the adapter in kohya's naming with diffusers' UNet names too, as diffusers' trainers do", free=True
    )
    skip_final_inference: bool = option(False, "no sample pictures, neither before nor after", free=True)
    validation_epochs: int | None = option(None, "sample pictures every so many passes over the pictures too", least=1, free=True)
    validation_steps: int | None = option(None, "sample pictures every so many steps too", least=1, free=True)
    checkpointing_steps: int = option(500, "a checkpoint every so many steps, and at the end", least=1, free=True)
    checkpoints_total_limit: int | None = option(None, "keep no more than so many checkpoints; the oldest go", least=1, free=True)
    resume_from_checkpoint: str | None = option(
        None, "latest, or a checkpoint-N folder of this run; the same command resumes the latest without this option", free=True
    )
    report_to: str = option("none", "tracker beside metrics.jsonl", (), ("none", "tensorboard", "wandb", "all"), free=True)
    logging_dir: str = option("logs", "folder in the run folder for tensorboard's files", free=True)
    allow_tf32: bool = option(False, "let the GPU multiply fp32 matrices in TF32: faster, and a little less exact")
    upcast_before_saving: bool = option(False, "write pytorch_lora_weights.safetensors in fp32 also after mixed precision", free=True)
    push_to_hub: bool = option(False, "upload the run's adapter, samples and a model card to the hub at the end", free=True)
    hub_token: str | None = option(None, "token for --push_to_hub; by default that of `hf auth login`; never written to a file", free=True)
    hub_model_id: str | None = option(None, "repository for --push_to_hub; by default the run folder's name", free=True)
    dry_run: bool = option(False, "print the resolved config and the plan, and stop", free=True)

    def __post_init__(self):
        check_numbers(self)
        if self.resolution is not None and self.resolution % 8:
            raise ConfigError(f"--resolution is {self.resolution}; it must be divisible by 8")
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise ConfigError("--lr_warmup_steps has no effect with --lr_scheduler constant: use constant_with_warmup")
        if self.max_train_steps is not None and self.num_train_epochs is not None:
            raise ConfigError("--max_train_steps and --num_train_epochs say the same thing: give one of them")

    def resolved(self) -> "TrainConfig":
        """Fill the options that depend on the base: what suits the embedded one differs from what suits SDXL."""
        defaults = EMBEDDED if self.pretrained_model_name_or_path is None else SDXL
        given = {name for name in defaults if getattr(self, name) is not None}
        if self.num_train_epochs is not None:
            given.add("max_train_steps")
        return dataclasses.replace(self, **{name: value for name, value in defaults.items() if name not in given})


EMBEDDED = dict(learning_rate=1e-3, train_batch_size=8, max_train_steps=600, guidance_scale=3.0)
SDXL = dict(learning_rate=1e-4, train_batch_size=1, max_train_steps=500, guidance_scale=5.0)


def to_dict(config) -> dict:
    return dataclasses.asdict(config)


def from_dict(cls, values: dict):
    """Build a config from parsed JSON; an unknown key or a value of the wrong type raises ConfigError."""
    known = {f.name: f for f in fields(cls)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{did_you_mean(name, known)}")
        allowed = typing.get_args(known[name].type) if isinstance(known[name].type, types.UnionType) else (known[name].type,)
        if AdapterConfig in allowed:
            allowed = (AdapterConfig, dict)
        if not (type(value) in allowed or (type(value) is int and float in allowed)):
            raise ConfigError(f"option {name!r} is {value!r}; it must be {' or '.join(t.__name__ for t in allowed)}")
    if isinstance(values.get("adapter"), dict):
        values = values | {"adapter": from_dict(AdapterConfig, values["adapter"])}
    return cls(**values)


def did_you_mean(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one sentence and exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            first = message.removeprefix(prefix).split()[0]
            message = f"unknown option {first}{did_you_mean(first, self._option_string_actions)}; --help lists all options"
        fail(message)


def fail(message: str, code: int = 2):
    """One sentence on stderr, and the exit code: 2 for a mistake in what was asked, 1 for a run that failed."""
    print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
    raise SystemExit(code)


def plain_warnings() -> None:
    """Warnings as one line for a user, without the place in the code."""
    name = Path(sys.argv[0]).stem
    warnings.formatwarning = lambda message, *_, **__: f"{name}: {message}\n"


def add_options(parser: argparse.ArgumentParser, cls) -> None:
    for f in fields(cls):
        if f.type is AdapterConfig:
            add_options(parser, AdapterConfig)
            continue
        kind = typing.get_args(f.type)[0] if isinstance(f.type, types.UnionType) else f.type
        names = f.metadata["flags"] or (f"--{f.name}",)
        shown = "" if f.default in (None, dataclasses.MISSING) else f" (default: {f.default})"
        common = dict(dest=f.name, default=argparse.SUPPRESS, help=f.metadata["help"].replace("%", "%%") + shown)
        if kind is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
        else:
            convert = json_object if kind is dict else kind
            parser.add_argument(
                *names, type=convert, choices=f.metadata["choices"], metavar=None if f.metadata["choices"] else kind.__name__.upper(), **common
            )


def json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object such as {{"attn2": 32}}')
    return value


def parse(description: str, argv=None) -> TrainConfig:
    """The command line of training."""
    parser = Parser(description=description)
    add_options(parser, TrainConfig)
    given = vars(parser.parse_args(argv))
    names = {f.name for f in fields(AdapterConfig)}
    try:
        adapter = AdapterConfig(**{n: v for n, v in given.items() if n in names})
        return TrainConfig(adapter=adapter, **{n: v for n, v in given.items() if n not in names})
    except ConfigError as error:
        parser.error(str(error))
