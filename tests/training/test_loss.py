"""The objective against diffusers' schedulers, and pairs of options against float64, image by image."""

import itertools
import math

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from gralora_diffusion.seeding import generator
from gralora_diffusion.training.loss import (
    add_noise,
    diffusion_loss,
    draw_noise,
    huber_thresholds,
    noise_schedule,
    snr_weights,
    target,
)

SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
X, NOISE = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
T = torch.tensor([0, 1, 250, 500, 998, 999])


def test_noise_and_targets_equal_the_schedulers():
    assert torch.equal(add_noise(X, NOISE, T, SCHEDULE.alphas_cumprod), SCHEDULE.add_noise(X, NOISE, T))
    torch.testing.assert_close(
        target(X, NOISE, T, SCHEDULE.alphas_cumprod, "v_prediction"), SCHEDULE.get_velocity(X, NOISE, T)
    )
    assert torch.equal(target(X, NOISE, T, SCHEDULE.alphas_cumprod, "epsilon"), NOISE)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_each_image_by_its_own_timestep(prediction):
    snr = compute_snr(SCHEDULE, T)
    expected = (
        torch.minimum(snr, torch.full_like(snr, 5.0))
        / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction]
    )
    torch.testing.assert_close(snr_weights(T, SCHEDULE.alphas_cumprod, prediction, 5.0), expected)
    out = torch.zeros_like(X)
    wanted = target(X, NOISE, T, SCHEDULE.alphas_cumprod, prediction)
    by_hand = sum(w * (wanted[i] ** 2).mean() for i, w in enumerate(expected)) / len(T)
    torch.testing.assert_close(
        diffusion_loss(out, X, NOISE, T, SCHEDULE.alphas_cumprod, prediction, 5.0), by_hand
    )
    plain = diffusion_loss(out, X, NOISE, T, SCHEDULE.alphas_cumprod, prediction)
    torch.testing.assert_close(plain, (wanted**2).mean())


def test_randomness_belongs_to_the_image_not_to_the_batch():
    whole = draw_noise((4, 8, 8), 1000, 7, range(6))
    parts = [draw_noise((4, 8, 8), 1000, 7, range(i, i + 2)) for i in (0, 2, 4)]
    for i, tensor in enumerate(whole):
        assert torch.equal(tensor, torch.cat([p[i] for p in parts]))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(draw_noise((4, 8, 8), 1000, 8, range(6))[1], whole[1])


def test_draws_are_gaussian_and_uniform():
    a, b, t = draw_noise((4, 4, 4), 1000, 0, range(2000))
    assert abs(a.mean()) < 0.01
    assert abs(b.std() - 1) < 0.01
    assert abs((a * b).mean()) < 0.01
    assert t.min() >= 0
    assert t.max() <= 999
    assert abs(t.float().mean() - 499.5) < 30
    assert len({generator(s, n).initial_seed() for s in range(50) for n in range(50)}) == 2500


@pytest.mark.parametrize("kind", [DDPMScheduler, EulerDiscreteScheduler])
def test_zero_terminal_snr_is_algorithm_1(kind):
    options = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    plain, rescaled = kind(**options), kind(**options, rescale_betas_zero_snr=True)
    assert torch.equal(noise_schedule(plain), plain.alphas_cumprod)
    ours = noise_schedule(plain, True)
    assert ours.dtype == torch.float32
    assert ours[-1] == 0
    torch.testing.assert_close(ours[0], plain.alphas_cumprod[0], rtol=1e-5, atol=0)
    for base, asked in ((rescaled, False), (rescaled, True)):  # a base that was trained so needs no option
        again = noise_schedule(base, asked)
        assert again[-1] == 0
        torch.testing.assert_close(again, ours, rtol=1e-4, atol=1e-6)
    steps = ours.sqrt().diff() / plain.alphas_cumprod.sqrt().diff()
    torch.testing.assert_close(
        steps, steps[:1].expand_as(steps), rtol=1e-2, atol=0
    )  # shifted and stretched, nothing else


@pytest.mark.parametrize("options", [dict(gamma=5.0), dict(debiased=True), dict(gamma=5.0, debiased=True)])
def test_weighted_losses_do_not_depend_on_what_the_unet_predicts(options):
    """The same guess of x_0, told as noise, as v, or as x_0 itself, costs the same."""
    t = torch.tensor([1, 100, 250, 500, 800, 998])
    alphas = SCHEDULE.alphas_cumprod.double()
    a = alphas[t].view(-1, 1, 1, 1)
    x, noise = X.double(), NOISE.double()
    guess = x + 0.1 * torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    noise_guess = (a.sqrt() * (x - guess) + (1 - a).sqrt() * noise) / (1 - a).sqrt()
    told = {
        "epsilon": noise_guess,
        "v_prediction": a.sqrt() * noise_guess - (1 - a).sqrt() * guess,
        "sample": guess,
    }
    costs = []
    for prediction, out in told.items():
        error = (out - target(x, noise, t, alphas, prediction)).square().mean((1, 2, 3))
        costs.append(error * snr_weights(t, alphas, prediction, **options))
    torch.testing.assert_close(costs[0], costs[1], rtol=1e-8, atol=0)
    torch.testing.assert_close(costs[0], costs[2], rtol=1e-8, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_no_weight_divides_by_the_zero_snr(prediction):
    alphas = noise_schedule(SCHEDULE, True)
    weights = snr_weights(torch.tensor([998, 999]), alphas, prediction, 5.0, True)
    assert weights.isfinite().all()
    assert (
        snr_weights(torch.tensor([999]), alphas, prediction, 5.0)
        == {"epsilon": 1, "v_prediction": 0, "sample": 0}[prediction]
    )
    assert snr_weights(torch.tensor([999]), alphas, "epsilon", None, True) == pytest.approx(1000**0.5)
    assert huber_thresholds(torch.tensor([999]), alphas, 0.1, "snr") == pytest.approx(0.1)


def test_noise_offset_is_one_number_for_each_channel_of_each_image():
    plain, moved = draw_noise((4, 8, 8), 1000, 7, range(300)), draw_noise((4, 8, 8), 1000, 7, range(300), 0.2)
    assert torch.equal(plain[0], moved[0])
    assert torch.equal(plain[2], moved[2])
    offsets = moved[1] - plain[1]
    torch.testing.assert_close(offsets, offsets[:, :, :1, :1].expand_as(offsets), rtol=0, atol=1e-6)
    assert abs(offsets[:, :, 0, 0].std() - 0.2) < 0.02
    assert abs(offsets[:, :, 0, 0].mean()) < 0.02
    alone = draw_noise((4, 8, 8), 1000, 7, [250], 0.2)
    assert torch.equal(alone[1][0], moved[1][250])


OPTIONS = {
    "v": dict(prediction_type="v_prediction"),
    "x_0": dict(prediction_type="sample"),
    "zero terminal SNR": dict(zero=True),
    "min-SNR": dict(snr_gamma=5.0),
    "debiased": dict(debiased_estimation=True),
    "noise offset": dict(offset=0.1),
    "huber": dict(loss_type="huber"),
    "huber, exponential": dict(loss_type="huber", huber_schedule="exponential"),
    "smooth_l1, constant": dict(loss_type="smooth_l1", huber_schedule="constant", huber_c=0.3),
    "prior preservation": dict(weights=torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0, 0.5])),
}
PAIRS = [
    pair
    for pair in itertools.combinations_with_replacement(OPTIONS, 2)
    if pair[0] == pair[1] or not OPTIONS[pair[0]].keys() & OPTIONS[pair[1]]
]


def by_hand(
    out,
    noise,
    prediction_type="epsilon",
    zero=False,
    snr_gamma=None,
    debiased_estimation=False,
    loss_type="l2",
    huber_c=0.1,
    huber_schedule="snr",
    weights=None,
    offset=0.0,
) -> float:
    """The papers' formulas, image by image, in float64; `out` is the prediction, `noise` has its offset."""
    abar, product = [], 1.0
    for beta in SCHEDULE.betas.tolist():
        product *= 1 - beta
        abar.append(product)
    if zero:
        first, last = math.sqrt(abar[0]), math.sqrt(abar[-1])
        abar = [((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in abar]
    total = 0.0
    for i, t in enumerate(T.tolist()):
        a = abar[t]
        x, e, said = X[i].double(), noise[i].double(), out[i].double()
        error = (
            said
            - {"epsilon": e, "v_prediction": a**0.5 * e - (1 - a) ** 0.5 * x, "sample": x}[prediction_type]
        )
        if loss_type == "l2":
            loss = (error**2).mean()
        else:
            sigma = math.sqrt((1 - a) / a) if a else math.inf
            c = {
                "snr": (1 - huber_c) / (1 + sigma) ** 2 + huber_c,
                "exponential": math.exp(math.log(huber_c) * t / 1000),
                "constant": huber_c,
            }
            c = c[huber_schedule]
            loss = ((error**2 + c**2) ** 0.5 - c).mean() * (2 * c if loss_type == "huber" else 2)
        weight, snr = 1.0, a / (1 - a)
        if snr_gamma is not None:
            weight *= min(1.0, snr_gamma / snr) if snr else 1.0
        if debiased_estimation:
            weight /= math.sqrt(min(max(snr, 1e-3), 1e3))
        if (
            snr_gamma is not None or debiased_estimation
        ):  # (error of the noise)^2 is so many times the (error of v or x_0)^2
            weight *= {"epsilon": 1, "v_prediction": a, "sample": snr}[prediction_type]
        total += float(loss) * weight * (1 if weights is None else weights[i].item())
    return total / len(T)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_pair_of_options_together(first, second):
    options = OPTIONS[first] | OPTIONS[second]
    zero, offset = options.pop("zero", False), options.pop("offset", 0.0)
    noise = draw_noise((4, 8, 8), 1000, 0, range(6), offset)[1]
    out = torch.randn(X.shape, generator=generator(5)).requires_grad_()
    loss = diffusion_loss(out, X, noise, T, noise_schedule(SCHEDULE, zero), **options)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(out.detach(), noise, zero=zero, **options), rel=2e-5)
    loss.backward()
    assert out.grad.isfinite().all()


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_crash_1_min_snr_with_prior_preservation_weighs_each_image_by_itself(batch):
    """diffusers' script crashes at batch 2, and weighs instances as class images at batch 1."""
    prior = torch.tensor([1.0, 0.3, 1.0, 0.3, 1.0, 0.3])
    out, alphas = torch.zeros_like(X), SCHEDULE.alphas_cumprod
    parts = [slice(i, i + batch) for i in range(0, 6, batch)]
    losses = [
        diffusion_loss(out[p], X[p], NOISE[p], T[p], alphas, snr_gamma=5.0, weights=prior[p]) for p in parts
    ]
    expected = [
        min(5 / s, 1) * w * e
        for s, w, e in zip(compute_snr(SCHEDULE, T), prior, NOISE.square().mean((1, 2, 3)), strict=True)
    ]
    torch.testing.assert_close(torch.stack(losses).mean(), torch.stack(expected).mean())
    torch.testing.assert_close(losses[0], torch.stack(expected[:batch]).mean())


def test_trap_5_the_schedule_in_bf16_would_lose_the_noise_of_the_first_timesteps():
    """In fp32 little noise is added at t = 0 and 1; a bf16 schedule would add half as much again, or none."""
    a = noise_schedule(SCHEDULE)[:2]
    assert a.dtype == torch.float32
    assert ((1 - a).sqrt() > 0.025).all()
    assert ((1 - a.bfloat16().float()) == 0).all()
