"""Trackers beside metrics.jsonl: tensorboard and wandb."""

import importlib.util

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError


def trackers_of(config: TrainConfig) -> list[str] | None:
    """For accelerate; raises ConfigError when a tracker's package is not installed, or wandb has no key."""
    names = {"none": [], "all": ["tensorboard", "wandb"]}.get(config.report_to, [config.report_to])
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--report_to {config.report_to} needs the package {name}: pip install {name}")
    if "wandb" in names:
        check_wandb()
    return names or None


def check_wandb() -> None:
    """Raises ConfigError where wandb would ask who the user is, or does not believe it, once the run has begun."""
    import wandb

    try:
        ready = wandb.setup().settings.mode in ("offline", "dryrun", "disabled") or wandb.login(prompt=False)
    except TypeError:
        raise ConfigError("--report_to wandb needs wandb 0.30 or a newer one: pip install -U wandb") from None
    except (wandb.Error, ValueError) as error:
        raise ConfigError(
            f"--report_to wandb: {str(error).strip().splitlines()[0]}; WANDB_MODE=offline logs without its server"
        ) from None
    if not ready:
        raise ConfigError(
            "--report_to wandb: wandb has no key of yours: run wandb login, or set WANDB_MODE=offline to log without its server"
        )
