"""Which timesteps and which noise a run draws, against their formulas, and the same at each position."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from gralora_diffusion import TrainConfig
from gralora_diffusion.adapters.gradients import stratified
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.loss import draw_noise
from gralora_diffusion.training.timesteps import multires, shaped, shares_of_tenths, timesteps_at

SHAPE = (4, 8, 8)
N = 4000
FLOW = dict(prediction_type="flow")


def drawn(config: TrainConfig, positions=range(N), draw=draw_noise):
    return shaped(draw, config)((4, 2, 2), 1000, config.seed, positions, config.noise_offset)


def test_without_options_nothing_is_wrapped():
    assert shaped(draw_noise, TrainConfig()) is draw_noise
    assert shaped(draw_noise, TrainConfig(prediction_type="epsilon", noise_offset=0.1)) is draw_noise


@pytest.mark.parametrize(
    ("options", "cdf"),
    [
        (dict(min_timestep=200, max_timestep=500), stats.uniform(200, 300).cdf),
        (FLOW, stats.uniform(0, 1000).cdf),
        (dict(timestep_density="logit_normal", logit_mean=1.0, logit_std=0.5), None),
        (dict(timestep_density="logit_normal", logit_mean=-0.5, **FLOW), None),
    ],
    ids=["some", "flow", "dense", "dense flow"],
)
def test_timesteps_have_the_density(options, cdf):
    config = TrainConfig(**options)
    timesteps = drawn(config)[2]
    assert timesteps.is_floating_point() == (options.get("prediction_type") == "flow")
    if cdf is None:
        normal = stats.norm(config.logit_mean, config.logit_std)
        cdf = lambda t: normal.cdf(torch.logit(torch.as_tensor(t, dtype=torch.double) / 1000))  # noqa: E731
    found = timesteps.double() + (0 if timesteps.is_floating_point() else 0.5)
    assert stats.kstest(found.numpy(), cdf).pvalue > 1e-3


def test_flows_shift_is_that_of_diffusers_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    places = torch.arange(1, 1001, dtype=torch.double) / 1000
    ours = timesteps_at(places, 1000, TrainConfig(flow_shift=3.0, **FLOW))
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0).timesteps.flip(0)
    torch.testing.assert_close(ours, theirs)


def test_bounds_are_kept_for_flows_too():
    config = TrainConfig(
        min_timestep=300, max_timestep=400, flow_shift=5.0, timestep_density="logit_normal", **FLOW
    )
    timesteps = drawn(config)[2]
    assert timesteps.min() >= 300
    assert timesteps.max() <= 400
    assert timesteps.median() > 360  # the shift


@pytest.mark.parametrize(
    "options",
    [dict(multires_noise_iterations=6), dict(timestep_density="logit_normal"), FLOW, dict(max_timestep=700)],
    ids=str,
)
def test_each_position_has_its_own_whatever_the_batch(options):
    config = TrainConfig(**options)
    whole = drawn(config, range(6))
    parts = [drawn(config, range(start, start + 2)) for start in (0, 2, 4)]
    for number in range(3):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])
    other = drawn(dataclasses.replace(config, seed=1), range(6))
    assert not torch.equal(other[1], whole[1])


def test_the_gradient_pass_covers_the_density_evenly():
    """With stratified draws each tenth has its share to a few parts in a hundred."""
    config = TrainConfig(timestep_density="logit_normal")
    timesteps = drawn(config, range(500), stratified(draw_noise))[2]
    tenths = torch.bincount(timesteps // 100, minlength=10) / 500
    torch.testing.assert_close(tenths, torch.tensor(shares_of_tenths(config)), rtol=0, atol=0.012)


def test_multires_noise_is_the_formula_and_has_unit_deviation():
    noise = torch.randn(SHAPE, generator=generator(1))
    found = multires(noise, generator(2), 3, 0.5)
    random = generator(2)
    expected = noise.clone()
    for level in range(3):
        ratio = (2 + 2 * torch.rand(1, generator=random).item()) ** level
        side = max(1, int(8 / ratio))
        coarse = torch.randn(1, 4, side, side, generator=random)
        expected += 0.5**level * torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")[0]
        if side == 1:
            break
    torch.testing.assert_close(found, expected / expected.std())
    assert found.std().item() == pytest.approx(1, abs=1e-5)


def test_multires_noise_has_more_of_the_low_frequencies():
    plain, levels = TrainConfig(), TrainConfig(multires_noise_iterations=6, multires_noise_discount=0.8)
    means = []
    for config in (plain, levels):
        noise = shaped(draw_noise, config)(SHAPE, 1000, 0, range(400), 0.0)[1]
        means.append(noise.mean((2, 3)).std().item())
    assert means[1] > 2 * means[0]


def test_the_dry_run_shows_the_shares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = plan(TrainConfig(timestep_density="logit_normal", logit_mean=1.0)).text()
    edges = torch.logit(torch.linspace(0, 1, 11, dtype=torch.double)).numpy()
    shares = " ".join(f"{100 * share:.0f}" for share in np.diff(stats.norm(1, 1).cdf(edges)))
    assert f"timesteps: {shares} % of the steps in each tenth, from little noise to much" in text
    assert "timesteps:" not in plan(TrainConfig()).text()


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        (dict(min_timestep=500, max_timestep=500), "min_timestep", "leave no timesteps"),
        (dict(multires_noise_iterations=6, noise_offset=0.1), "noise_offset", "drop one of the two"),
        (dict(multires_noise_discount=0.5), "multires_noise_discount", "needs --multires_noise_iterations"),
        (dict(logit_mean=0.5), "logit_mean", "needs --timestep_density logit_normal"),
        (dict(flow_shift=3.0, prediction_type="epsilon"), "flow_shift", "needs --prediction_type flow"),
        (dict(snr_gamma=5.0, **FLOW), "snr_gamma", "is a rectified flow"),
        (dict(debiased_estimation=True, **FLOW), "debiased_estimation", "is a rectified flow"),
        (dict(rescale_betas_zero_snr=True, **FLOW), "rescale_betas_zero_snr", "is a rectified flow"),
    ],
)
def test_contradictions_are_refused(options, option, words):
    with pytest.raises(ConfigError, match=words) as caught:
        TrainConfig(**options)
    assert caught.value.option == option
