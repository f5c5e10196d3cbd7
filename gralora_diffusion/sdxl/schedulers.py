"""The schedulers that images can be sampled with, by the names that other tools give them."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import is_flow
from gralora_diffusion.sdxl.libraries import import_libraries


class SchedulerSpec(NamedTuple):
    """A class of diffusers with its options, and what A1111 calls the two."""

    kind: str
    title: str
    options: Mapping = MappingProxyType({})
    schedule: str | None = None  # A1111's "Schedule type", where the title does not say it


KARRAS = dict(use_karras_sigmas=True)  # noise levels of arXiv 2206.00364, equation 5
SDE = dict(algorithm_type="sde-dpmsolver++")  # adds noise in each step, from the image's own generator
LATENTS = dict(clip_sample=False)  # latents are not images in [-1, 1]
TRAILING = dict(timestep_spacing="trailing")  # from the noisiest timestep, as few-step models need it
SINGLE = dict(lower_order_final=True)  # also for an odd number of steps
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
EULER, EULER_A = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"

SCHEDULERS = {
    "euler": SchedulerSpec(EULER, "Euler"),
    "euler_karras": SchedulerSpec(EULER, "Euler Karras", KARRAS),
    "euler_a": SchedulerSpec(EULER_A, "Euler a"),
    "heun": SchedulerSpec("HeunDiscreteScheduler", "Heun"),
    "heun_karras": SchedulerSpec("HeunDiscreteScheduler", "Heun Karras", KARRAS),
    "dpm2": SchedulerSpec("KDPM2DiscreteScheduler", "DPM2"),
    "dpm2_karras": SchedulerSpec("KDPM2DiscreteScheduler", "DPM2 Karras", KARRAS),
    "dpm2_a": SchedulerSpec("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
    "dpm2_a_karras": SchedulerSpec("KDPM2AncestralDiscreteScheduler", "DPM2 a Karras", KARRAS),
    "lms": SchedulerSpec("LMSDiscreteScheduler", "LMS"),
    "lms_karras": SchedulerSpec("LMSDiscreteScheduler", "LMS Karras", KARRAS),
    "ddim": SchedulerSpec("DDIMScheduler", "DDIM", LATENTS | dict(set_alpha_to_one=False)),
    "ddpm": SchedulerSpec("DDPMScheduler", "DDPM", LATENTS),
    "pndm": SchedulerSpec("PNDMScheduler", "PLMS", dict(skip_prk_steps=True)),
    "dpm++_2m": SchedulerSpec(MULTISTEP, "DPM++ 2M"),
    "dpm++_2m_karras": SchedulerSpec(MULTISTEP, "DPM++ 2M Karras", KARRAS),
    "dpm++_2m_sde": SchedulerSpec(MULTISTEP, "DPM++ 2M SDE", SDE),
    "dpm++_2m_sde_karras": SchedulerSpec(MULTISTEP, "DPM++ 2M SDE Karras", SDE | KARRAS),
    "dpm++_3m_sde": SchedulerSpec(MULTISTEP, "DPM++ 3M SDE", SDE | dict(solver_order=3)),
    "dpm++_3m_sde_karras": SchedulerSpec(
        MULTISTEP, "DPM++ 3M SDE Karras", SDE | KARRAS | dict(solver_order=3)
    ),
    "dpm++_2s": SchedulerSpec(SINGLESTEP, "DPM++ 2S", SINGLE),
    "dpm++_2s_karras": SchedulerSpec(SINGLESTEP, "DPM++ 2S Karras", SINGLE | KARRAS),
    "dpm++_sde": SchedulerSpec(SINGLESTEP, "DPM++ SDE", SINGLE | SDE),
    "dpm++_sde_karras": SchedulerSpec(SINGLESTEP, "DPM++ SDE Karras", SINGLE | SDE | KARRAS),
    "deis": SchedulerSpec("DEISMultistepScheduler", "DEIS"),
    "unipc": SchedulerSpec("UniPCMultistepScheduler", "UniPC"),
    "sa_solver": SchedulerSpec("SASolverScheduler", "SA Solver"),
    "lcm": SchedulerSpec("LCMScheduler", "LCM", LATENTS),
    "tcd": SchedulerSpec("TCDScheduler", "TCD", LATENTS),
    "lightning": SchedulerSpec(EULER, "Euler", TRAILING, "SGM Uniform"),
    "turbo": SchedulerSpec(EULER_A, "Euler a", TRAILING, "SGM Uniform"),
}
OF_BASE = (  # what the base was trained with, and how its timesteps are counted
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
)
ZERO_SNR = "rescale_betas_zero_snr"
WITHOUT_SAMPLE = (EULER_A, "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "PNDMScheduler")


def scheduler_named(name: str, of_base, option: str = "scheduler"):
    """A scheduler of SCHEDULERS for a base with the scheduler `of_base`: its betas and what it predicts.

    Raises ConfigError for a name that is not there, and for one that cannot sample what the base predicts.
    option: that it is given by.
    """
    import_libraries()
    import diffusers

    spec = spec_of(name)
    kind = getattr(diffusers, spec.kind)
    known = inspect.signature(kind.__init__).parameters
    config = of_base.config
    if is_flow(config):
        problem = f"--{option} {name} cannot sample a rectified flow"
        raise ConfigError(f"{problem}: drop it, and the flow's own Euler steps are used", option=option)
    if config.get(ZERO_SNR) and ZERO_SNR not in known:
        fit = [other for other, spec in SCHEDULERS.items() if takes(spec, ZERO_SNR)]
        problem = f"--{option} {name} cannot sample a base with zero terminal SNR"
        raise ConfigError(f"{problem}; it must be one of {', '.join(fit)}", option=option)
    if config.get("prediction_type") == "sample" and spec.kind in WITHOUT_SAMPLE:
        fit = [other for other, spec in SCHEDULERS.items() if spec.kind not in WITHOUT_SAMPLE]
        problem = f"--{option} {name} cannot sample a base that predicts the sample"
        raise ConfigError(f"{problem}; it must be one of {', '.join(fit)}", option=option)
    taken = {key: config[key] for key in OF_BASE if key in known and key in config}
    taken = {key: value for key, value in taken.items() if key not in spec.options}
    return kind(**taken, **spec.options)


def takes(spec: SchedulerSpec, option: str) -> bool:
    import_libraries()
    import diffusers

    return option in inspect.signature(getattr(diffusers, spec.kind).__init__).parameters


def spec_of(name: str) -> SchedulerSpec:
    """Raises ConfigError for a name that is not in SCHEDULERS."""
    if name not in SCHEDULERS:
        names = ", ".join(SCHEDULERS)
        raise ConfigError(f"--scheduler is {name!r}; it must be one of {names}", option="scheduler")
    return SCHEDULERS[name]


def title_of(name: str | None, scheduler) -> tuple[str, str | None]:
    """What A1111 calls a scheduler: (sampler, schedule type or None); name: None for the base's own."""
    if name is not None:
        spec = spec_of(name)
        return spec.title, spec.schedule
    kind = type(scheduler).__name__
    for spec in SCHEDULERS.values():
        if spec.kind == kind:
            return spec.title, None
    return kind.removesuffix("Scheduler"), None
