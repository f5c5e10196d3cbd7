"""What the options of a TrainConfig mean together: contradictions, and paths that are not there."""

import os
import re
from collections.abc import Iterator

from gralora_diffusion.console import counted
from gralora_diffusion.options import ConfigError

LEAST_SIDE, MOST_SIDE = 64, 8192  # pixels of an image
SIZE = re.compile(r"([0-9]{1,6})[xX]([0-9]{1,6})")

Problem = tuple[str, str]  # (what is wrong, in one sentence; the option's name)


def refuse(problems: Iterator[Problem]) -> None:
    """Raises ConfigError for the first problem, if there is one."""
    for sentence, option in problems:
        raise ConfigError(sentence, option=option)


def parse_size(text: str, flag: str = "--size") -> tuple[int, int]:
    """(height, width) of a text such as 832x1216, the width first.  Raises ConfigError."""
    match = SIZE.fullmatch(text.strip())
    option = option_of(flag)
    if match is None:
        raise ConfigError(f"{flag} is {text!r}; it must be WIDTHxHEIGHT, such as 832x1216", option=option)
    width, height = int(match[1]), int(match[2])
    return check_side(height, flag, "height"), check_side(width, flag, "width")


def option_of(flag: str) -> str | None:
    """The option's name; None for words that are no flag."""
    return flag.removeprefix("--") if flag.startswith("--") else None


def check_side(pixels: int, flag: str, side: str = "") -> int:
    """A side of an image.  Raises ConfigError unless the VAE can make it."""
    what = f"{flag} has a {side} of {pixels}" if side else f"{flag} is {pixels}"
    option = option_of(flag)
    if not LEAST_SIDE <= pixels <= MOST_SIDE:
        rule = f"it must be from {LEAST_SIDE} to {MOST_SIDE} pixels"
        raise ConfigError(f"{what}; {rule}", option=option)
    if pixels % 8:
        near = pixels // 8 * 8
        raise ConfigError(f"{what}; it must be divisible by 8, such as {near} or {near + 8}", option=option)
    return pixels


def adapter_problems(config) -> Iterator[Problem]:
    """Of an AdapterConfig: sizes and patterns that do not fit its method."""
    blocks = {
        "hybrid_rank": ("--hybrid_rank", config.hybrid_rank),
        "k": ("--gralora_k", config.k not in (None, 1)),
        "k_pattern": ("--k_pattern", config.k_pattern),
    }
    given = {name: flag for name, (flag, is_given) in blocks.items() if is_given}
    if config.method != "gralora" and given:
        flags = " and ".join(given.values())
        of_it = "is an option of GraLoRA: drop it" if len(given) == 1 else "are options of GraLoRA: drop them"
        yield f"{flags} {of_it}, or use --adapter gralora", next(iter(given))
    least = config.tlora_min_rank
    if least is not None and least > config.rank:
        yield f"--tlora_min_rank is {least}; it must be at most the rank {config.rank}", "tlora_min_rank"
    for name in ("rank_pattern", "k_pattern"):
        if not all(type(value) is int and value > 0 for value in getattr(config, name).values()):
            yield f"--{name} must map regular expressions to positive whole numbers", name


def training_problems(config) -> Iterator[Problem]:
    """Of a TrainConfig: options that contradict each other."""
    if config.resolution is not None and config.resolution % 8:
        yield f"--resolution is {config.resolution}; it must be divisible by 8", "resolution"
    if config.offload_unet and config.base_model_precision:
        yield "--offload_unet needs a base that is not quantized: drop --base_model_precision", "offload_unet"
    if config.start_from and (config.allocate or config.allocation):
        problem = "starts with the ranks and factors of another adapter"
        others = "--allocate, --allocation and --adapter gora set others"
        yield f"--start_from {problem}, but {others}: drop --start_from, or use none of them", "start_from"
    if config.compile and (config.offload_unet or config.base_model_precision):
        other = "--offload_unet" if config.offload_unet else "--base_model_precision"
        problem = "--compile needs a UNet whose weights stay in place and are not quantized"
        yield f"{problem}: drop it, or {other}", "compile"
    if config.validation_size is not None:
        parse_size(config.validation_size, "--validation_size")
    yield from data_problems(config)
    yield from noise_problems(config)
    yield from prior_problems(config)
    yield from stopping_problems(config)
    yield from optimizer_problems(config)
    yield from start_problems(config)
    yield from rank_problems(config)


def start_problems(config) -> Iterator[Problem]:
    """Where the adapter's first factors have two sources, or none."""
    origin = config.adapter.orthogonal_start
    both_sides = config.adapter.method == "ortholora"
    if (origin or both_sides) and (config.allocate or config.allocation):
        problem = "--allocate, --allocation and --adapter gora set the initial factors"
        way = "use --adapter lora or gralora" if both_sides else "drop --orthogonal_start"
        yield f"{problem}: {way}", "method" if both_sides else "orthogonal_start"
    if origin == "base" and config.base_model_precision:
        problem = "--orthogonal_start base needs the base's weights, which --base_model_precision quantizes"
        yield f"{problem}: use random", "orthogonal_start"


def data_problems(config) -> Iterator[Problem]:
    """Where options of images and captions contradict each other."""
    sources = ("dataset_name", "instance_data_dir", "concepts")
    given = [name for name in sources if getattr(config, name) is not None]
    if len(given) > 1:
        yield f"--{given[0]} and --{given[1]} both name the images: give one of them", given[0]
    if config.max_token_length % 75:
        problem = f"--max_token_length is {config.max_token_length}; it must be 75, 150 or 225"
        yield problem, "max_token_length"
    if config.masked_loss and config.dataset_name is not None:
        problem = "--masked_loss needs masks, and those of --dataset_name are not read"
        yield f"{problem}: save its images to a folder with NAME-masklabel.png beside them", "masked_loss"
    if config.mask_dir is not None and config.concepts is not None:
        problem = "--mask_dir is for a single folder of images"
        yield f"{problem}: give each entry of --concepts its mask_folder instead", "mask_dir"
    if config.max_train_steps is not None and config.num_train_epochs is not None:
        problem = "--max_train_steps and --num_train_epochs both set the length of the run"
        yield f"{problem}: give one of them", "num_train_epochs"
    if config.with_prior_preservation and not (config.class_data_dir or config.concepts):
        yield "--with_prior_preservation needs --class_data_dir and --class_prompt", "class_data_dir"


def stopping_problems(config) -> Iterator[Problem]:
    """Where evaluations lack what they are made from."""
    held_out = config.validation_split or config.validation_dir
    if config.validation_split and config.validation_dir:
        problem = "--validation_split and --validation_dir both name the held-out images"
        yield f"{problem}: give one of them", "validation_split"
    if config.keep_best == "loss" and not held_out:
        problem = "--keep_best loss needs held-out images"
        yield f"{problem}: give --validation_split 0.1 or --validation_dir", "keep_best"
    if config.skip_final_inference and (config.score_encoders or config.keep_best == "score"):
        name = "score_encoders" if config.score_encoders else "keep_best"
        yield f"--{name} scores the sample images: drop --skip_final_inference", name


def prior_problems(config) -> Iterator[Problem]:
    """Where --prior_by_prediction lacks a prompt, or something it works without is given."""
    if not config.prior_by_prediction:
        return
    name = "prior_by_prediction"
    if config.with_prior_preservation:
        problem = "--with_prior_preservation trains on class images, and --prior_by_prediction uses none"
        yield f"{problem}: drop one of the two", name
    if not (config.class_prompt or "").strip():
        yield "--prior_by_prediction needs --class_prompt, such as 'a photo of a dog'", "class_prompt"
    if config.class_data_dir:
        yield "--prior_by_prediction uses no class images: drop --class_data_dir", "class_data_dir"
    if config.compile:
        problem = "--prior_by_prediction switches the adapters off and on, which does not work with --compile"
        yield f"{problem}: drop one of the two", "compile"


def noise_problems(config) -> Iterator[Problem]:
    """Where timesteps, noise and what is predicted do not fit together."""
    if config.min_timestep >= config.max_timestep:
        bounds = f"--min_timestep {config.min_timestep} and --max_timestep {config.max_timestep}"
        yield f"{bounds} leave no timesteps: the first must be lower", "min_timestep"
    if config.multires_noise_iterations and config.noise_offset:
        problem = "--multires_noise_iterations and --noise_offset both change the brightness of the noise"
        yield f"{problem}: drop one of the two", "noise_offset"
    if config.prediction_type != "flow":
        if config.flow_shift is not None and config.prediction_type is not None:
            problem = f"--flow_shift needs --prediction_type flow, not {config.prediction_type}"
            yield f"{problem}: drop it", "flow_shift"
        return
    weights = {
        "snr_gamma": config.snr_gamma is not None,
        "debiased_estimation": config.debiased_estimation,
        "rescale_betas_zero_snr": config.rescale_betas_zero_snr,
    }
    for name, given in weights.items():
        if given:
            yield f"--{name} is for diffusion models, and the base is a rectified flow: drop it", name


def optimizer_problems(config) -> Iterator[Problem]:
    """Where the optimizer, its schedule and its rates do not fit together."""
    schedule, warmup, steps = config.lr_scheduler, config.lr_warmup_steps, config.max_train_steps
    if config.optimizer == "AdamWScheduleFree" and (schedule != "constant" or config.adam_beta1 == 0):
        wrong = "adam_beta1" if schedule == "constant" else "lr_scheduler"
        yield "AdamWScheduleFree needs --lr_scheduler constant, and --adam_beta1 above 0", wrong
    rates = {config.text_encoder_lr, config.text_encoder_2_lr} - {None, 0, config.learning_rate or 1.0}
    of_parts = config.scale_lr or config.loraplus_lr_ratio != 1 or config.lr_pattern
    if config.optimizer == "Prodigy" and (rates or of_parts):
        ways = "drop --scale_lr, --loraplus_lr_ratio, --lr_pattern, and a text encoder's rate unless it is 0"
        yield f"Prodigy finds one learning rate for all layers: {ways}", "optimizer"
    for factor in config.lr_pattern.values():
        if type(factor) not in (int, float) or not 0 <= factor <= 1e4:
            problem = "must map regular expressions to numbers from 0 to 10000"
            yield f"--lr_pattern {problem}, and one is {factor!r}", "lr_pattern"
    rules = r"(\d+(\.\d+)?:\d+,)+\d+(\.\d+)?"
    if schedule == "piecewise_constant" and not re.fullmatch(rules, config.lr_step_rules or ""):
        given = f"--lr_step_rules is {config.lr_step_rules!r}; " if config.lr_step_rules else ""
        need = "--lr_scheduler piecewise_constant needs --lr_step_rules such as '1:100,0.5:300,0.1'"
        yield f"{given}{need}", "lr_step_rules"
    if steps is not None and warmup >= steps:
        problem = f"--lr_warmup_steps is {warmup}, and the run ends after {counted(steps, 'step')}: use fewer"
        yield problem, "lr_warmup_steps"


def rank_problems(config) -> Iterator[Problem]:
    """Where ranks have two sources, or the rule does not fit the adapter."""
    adapter, fixed = config.adapter, config.allocation or config.allocate == "uniform"
    if config.allocate and config.allocation:
        yield "--allocate makes ranks and --allocation reads them from a file: give one of them", "allocation"
    source = "allocation" if config.allocation else "allocate"
    if config.allocate or config.allocation:
        if adapter.rank_pattern or adapter.k_pattern or adapter.hybrid_rank:
            own = "--rank_pattern, --k_pattern and --hybrid_rank"
            yield f"--allocate, --allocation and --adapter gora choose the ranks: drop {own}", source
        if config.base_model_precision:
            need = "which --allocate, --allocation and --adapter gora need: drop one of them"
            yield (
                f"--base_model_precision leaves no weights whose gradients can be taken, {need}",
                "base_model_precision",
            )
    if config.allocate == "ralora" and (adapter.method != "gralora" or adapter.k):
        yield "--allocate ralora chooses GraLoRA's k: use --adapter gralora without --gralora_k", "allocate"
    for name in ("gora_min_rank", "gora_max_rank"):
        if fixed and getattr(config, name) is not None:
            given = "--allocation" if config.allocation else "--allocate uniform"
            yield f"--{name} has no effect with {given}: drop --{name}", name
    if config.gora_rounding == "paper" and (fixed or config.allocate == "energy"):
        rule = f"--allocate {config.allocate}" if config.allocate else "--allocation"
        problem = f"--gora_rounding paper rounds importances, and {rule} has none"
        yield f"{problem}: use --gora_rounding exact", "gora_rounding"


def check_paths(config) -> None:
    """Raises ConfigError for paths that are wrong, as far as can be seen before any library is loaded."""
    folder, base = config.instance_data_dir, config.pretrained_model_name_or_path
    if folder is not None and folder.isprintable() and not os.path.isdir(folder):
        problem = f"{folder} is not a folder: --instance_data_dir must name a folder of images"
        raise ConfigError(problem, option="instance_data_dir")
    masks = config.mask_dir
    if masks is not None and masks.isprintable() and not os.path.isdir(masks):
        problem = f"{masks} is not a folder: --mask_dir must name a folder of masks"
        raise ConfigError(problem, option="mask_dir")
    concepts = config.concepts
    if concepts is not None and concepts.isprintable() and not os.path.isfile(concepts):
        problem = f"{concepts} is not a file: --concepts must name a JSON or TOML file"
        raise ConfigError(problem, option="concepts")
    local = base is not None and base.isprintable() and base.startswith(("/", "./", "../"))
    if local and not os.path.exists(base):
        problem = f"no SDXL base can be loaded from {base}: there is no such folder or file"
        raise ConfigError(problem, option="pretrained_model_name_or_path")


def in_home(path: str, name: str | None = None) -> str:
    """A path with ~ or ~USER replaced by the home folder, where a shell has not done it, as in --option=~/x.

    Raises ConfigError for a user who is not there.  name: of the option.
    """
    if not path.startswith("~"):
        return path
    try:
        found = os.path.expanduser(path)
    except RuntimeError:
        found = path
    if found == path:
        user = path.replace("\\", "/").partition("/")[0]
        flag = f"--{name} is {path}, and " if name else f"{path}: "
        problem = f"{flag}there is no home folder for {user}"
        raise ConfigError(f"{problem}: write the full path, or ./{path}", option=name)
    return found
