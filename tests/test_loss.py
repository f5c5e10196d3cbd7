"""The objective against diffusers' own schedulers and formulas."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from gralora_diffusion.loss import add_noise, diffusion_loss, draw, generator, snr_weights, target

SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
X, NOISE = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
T = torch.tensor([0, 1, 250, 500, 998, 999])


def test_noise_and_targets_equal_the_schedulers():
    assert torch.equal(add_noise(X, NOISE, T, SCHEDULE.alphas_cumprod), SCHEDULE.add_noise(X, NOISE, T))
    torch.testing.assert_close(target(X, NOISE, T, SCHEDULE.alphas_cumprod, "v_prediction"), SCHEDULE.get_velocity(X, NOISE, T))
    assert torch.equal(target(X, NOISE, T, SCHEDULE.alphas_cumprod, "epsilon"), NOISE)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_each_picture_by_its_own_timestep(prediction):
    snr = compute_snr(SCHEDULE, T)
    expected = torch.minimum(snr, torch.full_like(snr, 5.0)) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction]
    torch.testing.assert_close(snr_weights(T, SCHEDULE.alphas_cumprod, prediction, 5.0), expected)
    out = torch.zeros_like(X)
    wanted = target(X, NOISE, T, SCHEDULE.alphas_cumprod, prediction)
    by_hand = sum(w * (wanted[i] ** 2).mean() for i, w in enumerate(expected)) / len(T)
    torch.testing.assert_close(diffusion_loss(out, X, NOISE, T, SCHEDULE.alphas_cumprod, prediction, 5.0), by_hand)
    plain = diffusion_loss(out, X, NOISE, T, SCHEDULE.alphas_cumprod, prediction)
    torch.testing.assert_close(plain, (wanted**2).mean())


def test_randomness_belongs_to_the_picture_not_to_the_batch():
    whole = draw((4, 8, 8), 1000, 7, range(6))
    parts = [draw((4, 8, 8), 1000, 7, range(i, i + 2)) for i in (0, 2, 4)]
    for i, tensor in enumerate(whole):
        assert torch.equal(tensor, torch.cat([p[i] for p in parts]))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(draw((4, 8, 8), 1000, 8, range(6))[1], whole[1])


def test_draws_are_gaussian_and_uniform():
    a, b, t = draw((4, 4, 4), 1000, 0, range(2000))
    assert abs(a.mean()) < 0.01
    assert abs(b.std() - 1) < 0.01
    assert abs((a * b).mean()) < 0.01
    assert t.min() >= 0
    assert t.max() <= 999
    assert abs(t.float().mean() - 499.5) < 30
    assert len({generator(s, n).initial_seed() for s in range(50) for n in range(50)}) == 2500
