"""The masked loss: its formula, its exact zeros, and that a watermark outside of the masks is not learned."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_adapter, load_sdxl
from gralora_diffusion.data.concepts import EXAMPLE
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.images import to_pixels
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import encode_images, encode_prompts, predict, time_ids
from gralora_diffusion.seeding import generator
from gralora_diffusion.training.loss import (
    add_noise,
    area_weights,
    diffusion_loss,
    draw_noise,
    noise_schedule,
    target,
)
from gralora_diffusion.training.train import train

PROMPT = "a photo of sks robot"
QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2),
    instance_prompt=PROMPT,
    max_train_steps=3,
    train_batch_size=2,
    skip_final_inference=True,
    masked_loss=True,
)
SCHEDULE = noise_schedule(DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))
T = torch.tensor([10, 400, 900])


def random(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def masks_of_three():
    """Hard, soft, and of a single cell."""
    masks = torch.zeros(3, 8, 8)
    masks[0, :, :4] = 1
    masks[1] = torch.rand(8, 8, generator=generator(9))
    masks[2, 3, 5] = 1
    return masks


@pytest.mark.parametrize("background", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "options", [{}, dict(snr_gamma=5.0, loss_type="huber", prediction_type="v_prediction")]
)
def test_each_images_loss_is_its_weighted_mean(background, options):
    x, noise, out = random(3, 4, 8, 8), random(3, 4, 8, 8, seed=1), random(3, 4, 8, 8, seed=2)
    masks, own = masks_of_three(), torch.tensor([1.0, 0.5, 2.0])
    area = area_weights(masks, background)
    found = diffusion_loss(out, x, noise, T, SCHEDULE, weights=own, area=area, **options)
    expected = []
    for i in range(3):
        one = slice(i, i + 1)
        w = background + (1 - background) * masks[i]
        cells = []  # the loss of each cell alone: with all of the weight on it
        for place in range(64):
            alone = torch.zeros(64)
            alone[place] = 64
            of_cell = dict(weights=own[one], area=alone.view(1, 8, 8))
            cells.append(diffusion_loss(out[one], x[one], noise[one], T[one], SCHEDULE, **of_cell, **options))
        expected.append((w.flatten() * torch.stack(cells)).sum() / w.sum())
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-5, atol=0)


def test_without_a_background_its_gradient_is_exactly_zero():
    x, noise, masks = random(3, 4, 8, 8), random(3, 4, 8, 8, seed=1), masks_of_three()
    for options in ({}, dict(loss_type="huber"), dict(loss_type="smooth_l1", debiased_estimation=True)):
        out = random(3, 4, 8, 8, seed=2).requires_grad_()
        diffusion_loss(out, x, noise, T, SCHEDULE, area=area_weights(masks, 0.0), **options).backward()
        selected = (masks > 0).unsqueeze(1).expand_as(out)
        assert (out.grad[~selected] == 0).all()
        assert (out.grad[selected] != 0).all()


def test_a_background_of_full_weight_is_no_mask():
    x, noise, out = random(3, 4, 8, 8), random(3, 4, 8, 8, seed=1), random(3, 4, 8, 8, seed=2)
    plain = diffusion_loss(out, x, noise, T, SCHEDULE)
    assert torch.equal(area_weights(masks_of_three(), 1.0), torch.ones(3, 8, 8))
    assert torch.equal(diffusion_loss(out, x, noise, T, SCHEDULE, area=torch.ones(3, 8, 8)), plain)
    assert torch.equal(area_weights(torch.ones(3, 8, 8), 0.0), torch.ones(3, 8, 8))


# runs


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    """The bundled robots with a magenta square in a corner, and masks of what is not near it."""
    folder = tmp_path_factory.mktemp("robots")
    for path in sorted(EXAMPLE.glob("*.png")):
        image = Image.open(path).convert("RGB")
        width, height = image.size
        image.paste((255, 0, 255), (width * 5 // 8, height * 5 // 8, width, height))
        image.save(folder / path.name)
        mask = Image.new("L", image.size, 255)
        mask.paste(0, (width // 2, height // 2, width, height))
        mask.save(folder / f"{path.stem}-masklabel.png")
    return folder


def run_of(config, folder, images, **options):
    return train(
        dataclasses.replace(config, output_dir=str(folder), instance_data_dir=str(images), **options)
    )


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def learned(run):
    return load_file(run / "adapter.safetensors")


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def errors_of(run, robots):
    """(in the square's corner, in the masks) mean squared error of x_0, predicted at timestep 700."""
    pipeline = load_sdxl()
    if run:
        load_adapter(pipeline, run)
    images = [image.open().resize((64, 64)) for image in find_images(robots, PROMPT)]
    moments = encode_images(pipeline.vae, torch.stack([to_pixels(image) for image in images]))
    latents, n = moments[:, 0], len(images)
    alphas = noise_schedule(pipeline.scheduler)
    timesteps = torch.full((n,), 700)
    noise = draw_noise(latents.shape[1:], 1000, 5, range(n))[1]
    sizes = time_ids((64, 64), (0, 0), (64, 64)).expand(n, -1)
    noisy = add_noise(latents, noise, timesteps, alphas)
    predicted = predict(pipeline.unet, noisy, timesteps, encode_prompts(pipeline, [PROMPT] * n), sizes)
    wanted = target(latents, noise, timesteps, alphas, "epsilon")
    error = (predicted - wanted).square() * (1 - alphas[700]) / alphas[700]
    return error[:, :, 5:, 5:].mean().item(), error[:, :, :4, :4].mean().item()


@pytest.mark.slow
def test_a_watermark_outside_of_the_masks_is_not_learned(robots, tmp_path):
    config = TrainConfig(
        adapter=AdapterConfig(rank=16, k=2, targets="attention+ff"),
        instance_prompt=PROMPT,
        max_train_steps=40,
        learning_rate=3e-3,
        train_batch_size=6,
        center_crop=True,
        skip_final_inference=True,
    )
    mark, subject = errors_of(None, robots)
    mark_plain, subject_plain = errors_of(run_of(config, tmp_path / "plain", robots), robots)
    run = run_of(config, tmp_path / "masked", robots, masked_loss=True)
    mark_masked, subject_masked = errors_of(run, robots)
    assert mark_plain < 0.3 * mark  # 0.09 times
    assert mark_masked > 0.6 * mark  # 0.92 times
    assert subject_masked < 0.7 * subject  # 0.47 times
    assert subject_masked < subject_plain


def test_a_full_background_trains_as_without_masks(robots, tmp_path):
    plain = run_of(QUICK, tmp_path / "plain", robots, masked_loss=False)
    full = run_of(QUICK, tmp_path / "full", robots, mask_background_weight=1.0)
    half = run_of(QUICK, tmp_path / "half", robots, mask_background_weight=0.5)
    assert losses(plain) == losses(full)
    assert equal(learned(plain), learned(full))
    assert losses(plain) != losses(half)


def test_class_images_count_whole(robots, tmp_path):
    """With one kind of image each, the loss is the sum of the masked and of the whole mean."""
    for number, path in enumerate(sorted(EXAMPLE.glob("*.png"))[:4]):
        (tmp_path / "class").mkdir(exist_ok=True)
        image = Image.open(path).convert("RGBA")
        image.putalpha(Image.new("L", image.size, 255 * (number % 2)))  # none of these is a mask
        image.save(tmp_path / "class" / path.name)
    prior = dict(
        with_prior_preservation=True,
        class_data_dir=str(tmp_path / "class"),
        class_prompt="a photo of a robot",
        num_class_images=4,
        max_train_steps=1,
    )
    both = run_of(QUICK, tmp_path / "both", robots, **prior)
    alone = run_of(QUICK, tmp_path / "alone", robots, max_train_steps=1)
    unmasked = run_of(QUICK, tmp_path / "unmasked", robots, masked_loss=False, **prior)
    instance = run_of(QUICK, tmp_path / "instance", robots, masked_loss=False, max_train_steps=1)
    of_class = losses(unmasked)[0] - losses(instance)[0]
    assert losses(both)[0] == pytest.approx(losses(alone)[0] + of_class, rel=1e-4)
    assert losses(alone)[0] != pytest.approx(losses(instance)[0], rel=1e-2)


EVERYTHING = dict(
    snr_gamma=5.0,
    noise_offset=0.1,
    loss_type="huber",
    gradient_accumulation_steps=2,
    train_text_encoder=True,
    random_flip=True,
    use_aspect_ratio_buckets=True,
    mask_background_weight=0.1,
    checkpointing_steps=1,
)


def test_a_masked_run_with_many_options_resumes_bit_exactly(robots, tmp_path):
    run = run_of(QUICK, tmp_path / "run", robots, **EVERYTHING)
    whole, lines = learned(run), losses(run)
    for step in (2, 3):
        (run / f"checkpoint-{step}").rename(tmp_path / f"away-{step}")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | dict(state="stopped")))
    again = run_of(QUICK, run, robots, **EVERYTHING)
    assert losses(again) == lines
    assert equal(learned(again), whole)


def test_another_mask_is_another_run(robots, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in robots.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    run_of(QUICK, tmp_path / "run", images)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 32))
    mask.save(images / "00-masklabel.png")
    longer = dict(max_train_steps=4)
    with pytest.raises(ConfigError, match=r"was made with different masks: .* --start_from"):
        run_of(QUICK, tmp_path / "run", images, **longer)
    with pytest.raises(ConfigError, match="was started with --masked_loss True, not False"):
        run_of(QUICK, tmp_path / "run", images, masked_loss=False, **longer)


def test_ranks_from_gradients_are_those_of_the_masked_loss(robots, tmp_path):
    ranks = {}
    for masked in (False, True):
        adapter = AdapterConfig(method="lora", rank=4)
        options = dict(adapter=adapter, allocate="gora", gora_init="zero", gora_batches=4, masked_loss=masked)
        run = run_of(QUICK, tmp_path / str(masked), robots, **options)
        layers = json.loads((run / "allocation.json").read_text())["layers"]
        ranks[masked] = {name: layer["importance"] for name, layer in layers.items()}
    assert ranks[False] != ranks[True]
