"""Every scheduler samples the base as it was trained."""

import re

import diffusers
import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from gralora_diffusion import load_sdxl
from gralora_diffusion.config.choices import SAMPLERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import flow_scheduler
from gralora_diffusion.sdxl.sampling import as_trained, generate, sample
from gralora_diffusion.sdxl.sampling_settings import SamplingSettings
from gralora_diffusion.sdxl.schedulers import SCHEDULERS, WITHOUT_SAMPLE, scheduler_named, title_of

PROMPT = "a red heart on a blue background"


@pytest.fixture(scope="module")
def pipeline():
    return load_sdxl()


@pytest.fixture(scope="module")
def expected(pipeline):
    return pixels(sample(pipeline, [PROMPT], seed=1, num_inference_steps=30, guidance_scale=3.0))[0]


def pixels(images):
    return np.stack([np.asarray(image, dtype=float) for image in images])


def test_the_names_of_the_options_are_those_of_the_table():
    assert tuple(SCHEDULERS) == SAMPLERS


def test_all_schedulers_that_diffusers_names_for_the_pipeline_have_a_name():
    ours = {spec.kind for spec in SCHEDULERS.values()}
    theirs = {kind.name for kind in KarrasDiffusionSchedulers}
    other_models = {"EDMEulerScheduler"}  # of bases trained in EDM's way, which is not SDXL's
    same = {"DPMSolverSDEScheduler"}  # DPM++ SDE with one noise for a batch; SINGLESTEP has the image's own
    assert theirs - ours <= other_models | same


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws_the_same_image_as_the_bases_own(pipeline, expected, name):
    settings = SamplingSettings(18, 3.0, scheduler=name)
    images = generate(pipeline, [(PROMPT, 1), ("a dog", 2)], settings)
    assert np.abs(pixels(images[:1])[0] - expected).mean() < 20  # of 255; another prompt gives over 40
    alone = generate(pipeline, [("a dog", 2)], settings)
    assert np.abs(pixels(alone) - pixels(images[1:])).max() <= 1  # noise is the image's own


def test_another_prompt_differs_by_more_than_a_scheduler(pipeline, expected):
    other = pixels(sample(pipeline, ["a dog"], seed=1, num_inference_steps=30, guidance_scale=3.0))[0]
    assert np.abs(other - expected).mean() > 40


@pytest.mark.parametrize("name", SCHEDULERS)
def test_betas_prediction_and_timesteps_of_the_base_are_kept(pipeline, name):
    base = as_trained(pipeline.scheduler, "v_prediction")
    made = scheduler_named(name, base)
    assert made.config.prediction_type == "v_prediction"
    assert made.config.beta_schedule == base.config.beta_schedule
    assert np.allclose(made.betas.numpy(), base.betas.numpy())
    trailing = name in ("lightning", "turbo")
    known = made.config.get("timestep_spacing", "leading")
    assert known == ("trailing" if trailing else "leading")


def test_zero_terminal_snr_is_kept_or_refused(pipeline):
    base = as_trained(pipeline.scheduler, "v_prediction", True)
    kept, refused = set(), set()
    for name in SCHEDULERS:
        try:
            made = scheduler_named(name, base)
        except ConfigError:
            refused.add(name)
            continue
        assert made.config.rescale_betas_zero_snr
        assert made.config.timestep_spacing == "trailing"
        assert made.alphas_cumprod[-1] < 1e-6
        kept.add(name)
    assert {"euler", "ddim", "dpm++_2m_karras", "unipc", "lcm"} <= kept
    assert {"heun", "lms", "pndm", "deis"} <= refused
    with pytest.raises(ConfigError, match="zero terminal SNR; it must be one of euler, "):
        scheduler_named("heun", base)


def test_what_cannot_sample_a_base_that_predicts_the_sample_is_refused(pipeline):
    base = as_trained(pipeline.scheduler, "sample")
    for name, spec in SCHEDULERS.items():
        if spec.kind in WITHOUT_SAMPLE:
            with pytest.raises(ConfigError, match="predicts the sample; it must be one of euler, "):
                scheduler_named(name, base)
        else:
            settings = SamplingSettings(2, 3.0, scheduler=name)
            assert generate(pipeline, [("a dog", 0)], settings, scheduler=base)


def test_lightning_starts_at_the_last_timestep(pipeline):
    made = scheduler_named("lightning", pipeline.scheduler)
    made.set_timesteps(4)
    assert made.timesteps.tolist() == [999, 749, 499, 249]


def test_an_unknown_name_lists_all(pipeline):
    with pytest.raises(ConfigError, match=r"--scheduler is 'eular'; it must be one of euler, .*, turbo"):
        scheduler_named("eular", pipeline.scheduler)


def test_the_bases_own_scheduler_has_a_title(pipeline):
    assert title_of(None, pipeline.scheduler) == ("Euler", None)
    assert title_of(None, diffusers.UniPCMultistepScheduler()) == ("UniPC", None)
    assert title_of("dpm++_2m_karras", None) == ("DPM++ 2M Karras", None)


def test_a_rectified_flow_keeps_its_own_scheduler():
    flow = flow_scheduler(EulerDiscreteScheduler(), 3.0)
    for name in SCHEDULERS:
        with pytest.raises(
            ConfigError, match=f"--scheduler {re.escape(name)} cannot sample a rectified flow"
        ):
            scheduler_named(name, flow)
