"""What turns gradients into a new adapter: flat factors, optimizer, schedule, average and gradient scaler."""

from dataclasses import dataclass

import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.training.average import EMA
from gralora_diffusion.training.flat_factors import FlatFactors
from gralora_diffusion.training.optim import make_optimizer, make_schedule, parameter_groups
from gralora_diffusion.training.optimizer_state import load_optimizer_state, optimizer_state
from gralora_diffusion.training.setup import TrainingSetup


@dataclass
class Optimization:
    """What turns gradients into a new adapter, and its state between two steps."""

    factors: FlatFactors
    optimizer: object
    schedule: object
    ema: EMA | None
    scaler: object

    @classmethod
    def of(cls, setup: TrainingSetup) -> "Optimization":
        """That of a run, with the state of the checkpoint it resumes from; its models stay where they are."""
        config, accelerator = setup.config, setup.accelerator
        groups = parameter_groups(setup.models, config, accelerator.num_processes)
        factors = FlatFactors.of_models(groups, setup.models.values(), setup.dtype)
        made = cls.over(factors, config, setup.steps, accelerator)
        made.load(setup.state)
        return made

    @classmethod
    def over(cls, factors: FlatFactors, config: TrainConfig, steps: int, accelerator) -> "Optimization":
        """A fresh one."""
        optimizer = make_optimizer(factors, config)
        schedule = make_schedule(optimizer, config, steps)
        ema = EMA(factors.values, config.ema_decay) if config.ema_decay else None
        return cls(factors, accelerator.prepare_optimizer(optimizer), schedule, ema, accelerator.scaler)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self) -> dict:
        return dict(
            optimizer=optimizer_state(self.optimizer),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict() if self.scaler else None,
            ema=self.ema.state() if self.ema else None,
        )

    def load(self, state: dict) -> None:
        if not state:
            return
        load_optimizer_state(self.optimizer, *state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load(*state["ema"])
