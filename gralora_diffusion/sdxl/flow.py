"""Rectified flow (arXiv 2209.03003) with SDXL's UNet: of x_s = (1 - s) x_0 + s noise it predicts noise - x_0.

It gets s * 1000 as its timestep, and images are sampled along dx/ds by diffusers' Euler steps.
"""

import functools

from gralora_diffusion.sdxl.libraries import import_libraries

FLOW, FLOW_STEPS = "flow", 1000
MOST_SHIFT = 100.0


def is_flow(config) -> bool:
    """Whether a scheduler's config, a mapping, is that of a rectified flow."""
    named = str(config.get("_class_name", ""))
    return named.startswith("FlowMatch") or ("shift" in config and "beta_start" not in config)


def flow_objective(shift: float | None = None) -> dict:
    """The objective of a flow whose sampling is shifted by so much, if it is known: see objective.py."""
    objective = dict(prediction_type=FLOW, rescale_betas_zero_snr=False)
    return objective if shift is None else objective | dict(flow_shift=float(shift))


def flow_scheduler(scheduler, shift: float | None):
    """A flow's scheduler with this shift: the one given where it is that, or a changed copy.

    None: with the shift that the scheduler has, and without one where it is not a flow's.
    """
    import_libraries()
    from diffusers import FlowMatchEulerDiscreteScheduler

    if not is_flow(scheduler.config):
        return FlowMatchEulerDiscreteScheduler(shift=shift or 1.0)
    if shift in (None, scheduler.config.shift):
        return scheduler
    return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, shift=shift)


def for_pipeline(scheduler):
    """A fresh copy of a scheduler as SDXL's pipeline uses it."""
    if is_flow(scheduler.config):
        return stepper().from_config(scheduler.config)
    return type(scheduler).from_config(scheduler.config)


@functools.cache
def stepper():
    """diffusers' Euler steps of a flow, with what SDXL's pipeline asks of every scheduler."""
    import_libraries()
    from diffusers import FlowMatchEulerDiscreteScheduler

    class FlowSteps(FlowMatchEulerDiscreteScheduler):
        init_noise_sigma = 1.0

        def scale_model_input(self, sample, timestep=None):
            return sample

    return FlowSteps
