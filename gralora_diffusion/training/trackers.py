"""Trackers beside metrics.jsonl: tensorboard and wandb."""

import importlib.util

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError


def trackers_of(config: TrainConfig) -> list[str] | None:
    """Their names for accelerate; raises ConfigError when a package is not installed, or wandb has no key."""
    names = {"none": [], "all": ["tensorboard", "wandb"]}.get(config.report_to, [config.report_to])
    for name in names:
        if importlib.util.find_spec(name) is None:
            problem = f"--report_to {config.report_to} needs the package {name}: pip install {name}"
            raise ConfigError(problem, option="report_to")
    if "wandb" in names:
        check_wandb()
    return names or None


def check_wandb() -> None:
    """Raises ConfigError where wandb would ask for a key in the middle of the run, or would reject it."""
    import wandb

    try:
        ready = wandb.setup().settings.mode in ("offline", "dryrun", "disabled") or wandb.login(prompt=False)
    except TypeError:
        problem = "--report_to wandb needs wandb 0.30 or newer: pip install -U wandb"
        raise ConfigError(problem, option="report_to") from None
    except (wandb.Error, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        problem = f"--report_to wandb: {reason}; WANDB_MODE=offline logs without its server"
        raise ConfigError(problem, option="report_to") from None
    if not ready:
        ways = "run wandb login, or set WANDB_MODE=offline to log without its server"
        raise ConfigError(f"--report_to wandb: wandb has no API key: {ways}", option="report_to")
