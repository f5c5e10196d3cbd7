"""The options of a training run."""

import dataclasses
from dataclasses import dataclass, field

from gralora_diffusion.checks import in_home, refuse, training_problems
from gralora_diffusion.config.adapter import AdapterConfig
from gralora_diffusion.config.choices import EMBEDDED_DEFAULTS, SDXL_DEFAULTS
from gralora_diffusion.config.data import DataOptions
from gralora_diffusion.config.learning import LearningOptions
from gralora_diffusion.config.noise import NoiseOptions
from gralora_diffusion.config.run import RunOptions
from gralora_diffusion.config.stopping import StoppingOptions
from gralora_diffusion.options import PATHS, check_needs, check_rules, options_of


@dataclass(frozen=True)
class TrainConfig(NoiseOptions, LearningOptions, StoppingOptions, RunOptions, DataOptions):
    """One training run.  Options that are None are filled by resolved(), or from the base or the images."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def __post_init__(self):
        check_rules(self)
        check_needs(self)
        refuse(training_problems(self))

    @property
    def adapter_name(self) -> str:
        """What names and cards call the adapter: gora where a plain LoRA starts as GoRA does."""
        return "gora" if self.adapter.method == "lora" and self.gora_init == "random" else self.adapter.method

    def with_home(self) -> "TrainConfig":
        """~ in paths replaced by the home folder.  Raises ConfigError, see in_home()."""
        changed = {}
        for name, about in options_of(TrainConfig).items():
            value = getattr(self, name, None)
            is_path = about.kind in PATHS or name == "resume_from_checkpoint"
            if is_path and isinstance(value, str) and value.startswith("~"):
                changed[name] = in_home(value, name)
        return dataclasses.replace(self, **changed) if changed else self

    def resolved(self) -> "TrainConfig":
        """Fill the options that depend on the base: the embedded one and SDXL need other values.

        Paths are with_home().
        """
        if (expanded := self.with_home()) is not self:
            return expanded.resolved()
        filled = dict(EMBEDDED_DEFAULTS if self.pretrained_model_name_or_path is None else SDXL_DEFAULTS)
        if self.optimizer == "Prodigy":
            filled["learning_rate"] = 1.0
        if self.allocate or self.allocation:
            filled["gora_init"] = "svd"
        if self.num_train_epochs is not None:
            del filled["max_train_steps"]
        open_options = {name: value for name, value in filled.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_options)
