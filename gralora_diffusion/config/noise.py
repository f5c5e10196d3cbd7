"""Options: which timesteps and which noise a run trains on."""

from dataclasses import dataclass

from gralora_diffusion.config.choices import DENSITIES
from gralora_diffusion.config.groups import logit, loss, pyramid


@dataclass(frozen=True)
class NoiseOptions:
    """Which timesteps and which noise a run trains on."""

    min_timestep: int = loss(
        0, "lowest timestep: 0 is no noise", label="Lowest timestep", at_least=0, at_most=999
    )
    max_timestep: int = loss(
        1000,
        "highest timestep, itself excluded: 1000 is pure noise",
        label="Highest timestep",
        at_least=1,
        at_most=1000,
    )
    timestep_density: str = loss(
        "uniform",
        "distribution that timesteps are drawn from",
        label="Timestep distribution",
        choices=DENSITIES,
    )
    logit_mean: float = logit(
        0.0, "mean of the logit: above 0 is more noise", label="Logit mean", at_least=-10, at_most=10
    )
    logit_std: float = logit(
        1.0, "spread of the logit: lower is closer to the mean", label="Logit spread", above=0, at_most=10
    )
    flow_shift: float | None = loss(
        None,
        "shift of a rectified flow's timesteps toward noise (3 in SD3); by default the base's",
        label="Flow shift",
        above=0,
        at_most=100,
    )
    multires_noise_iterations: int = loss(
        0,
        "levels of multi-resolution noise, for darker and brighter images (6 is usual)",
        label="Multi-resolution noise (levels)",
        at_least=0,
        at_most=16,
    )
    multires_noise_discount: float = pyramid(
        0.3,
        "strength of each level relative to the previous one",
        label="Multi-resolution discount",
        above=0,
        at_most=1,
    )
