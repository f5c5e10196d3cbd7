"""Images: the same whatever the batch size, and nothing left behind in the pipeline."""

import re

import numpy as np
import pytest
from helpers import adapted_pipeline
from PIL import Image

from gralora_diffusion import AdapterConfig, load_sdxl
from gralora_diffusion.options import TrainingError
from gralora_diffusion.sdxl.sampling import generate, sample
from gralora_diffusion.sdxl.sampling_settings import SamplingSettings
from gralora_diffusion.sdxl.sheet import sheet


def pixels(images):
    return np.stack([np.asarray(i, dtype=int) for i in images])


def test_a_image_does_not_depend_on_the_batch_size():
    pipeline, _ = adapted_pipeline(AdapterConfig(rank=16, k=2), ["unet"])
    options = dict(
        prompts=["a dog", "a red heart on a blue background"], seed=5, num_images=3, num_inference_steps=4
    )
    one, many = (pixels(sample(pipeline, **options, batch_size=b)) for b in (1, 6))
    assert one.shape == (6, 64, 64, 3)
    assert np.abs(one - many).max() <= 1  # of 255: other batch sizes round otherwise
    assert np.abs(one[0] - one[1]).max() > 10
    alone = pixels(sample(pipeline, options["prompts"][1:], seed=6, num_inference_steps=4))
    assert np.abs(alone[0] - one[4]).max() <= 1


def test_half_precision_draws_the_same_image():
    """The base in bf16, the VAE in fp32, as a run in mixed precision draws its samples."""
    import torch

    full = pixels(sample(load_sdxl(), ["a dog"], num_inference_steps=4))
    half = pixels(sample(load_sdxl(dtype=torch.bfloat16), ["a dog"], num_inference_steps=4))
    assert 0 < np.abs(full - half).mean() < 4


def test_sampling_leaves_the_schedule_as_it_was():
    pipeline = load_sdxl()
    scheduler = pipeline.scheduler
    first = pixels(sample(pipeline, ["a dog"], num_inference_steps=3))
    assert pipeline.scheduler is scheduler
    assert scheduler.num_inference_steps is None
    assert np.array_equal(first, pixels(sample(pipeline, ["a dog"], num_inference_steps=3)))


@pytest.mark.parametrize("size", [64, 512])
def test_sheet_shows_every_image(size):
    red, blue = Image.new("RGB", (size, size), "red"), Image.new("RGB", (size, size), "blue")
    page = sheet(
        {"base": [red, red], "with the adapter": [blue, blue]},
        ["a prompt that is much too long for the column it stands above, really", "b"],
    )
    colors = {c: n for n, c in page.getcolors(1 << 20)}
    assert colors[(255, 0, 0)] == colors[(0, 0, 255)] == 2 * 192 * 192


def test_a_sheets_captions_stand_below_the_rows_that_they_do_not_describe():
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    page = np.asarray(sheet({"drawn": [blue]}, ["a caption"], above={"training images": [red]}))
    ink = (page[:, 110:] < 128).all(-1).any(1).nonzero()[0]
    rows = {
        name: (page[:, 110:] == color).all(-1).any(1).nonzero()[0]
        for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255)))
    }
    assert rows["red"].max() < ink.min() <= ink.max() < rows["blue"].min()


def test_a_negative_prompt_and_a_size_change_the_image():
    pipeline = load_sdxl()
    options = dict(prompts=["a dog on a red background"], num_inference_steps=4)
    plain = pixels(sample(pipeline, **options))
    assert np.abs(plain - pixels(sample(pipeline, **options, negative_prompt="red"))).max() > 10
    same = pixels(sample(pipeline, **options, negative_prompt=options["prompts"][0]))
    unguided = pixels(sample(pipeline, **options, guidance_scale=1.0))
    assert np.abs(same - unguided).max() <= 1  # guided away from what it is guided to: no guidance
    assert np.abs(same - plain).max() > 10
    (wide,) = sample(pipeline, **options, resolution=(64, 96))
    assert wide.size == (96, 64)


def broken(model, monkeypatch, name, fails):
    """The model's method `name` gives NaN wherever fails() is true."""
    whole = getattr(model, name)

    def method(*args, **kwargs):
        found = whole(*args, **kwargs)
        if fails():
            tensor = found[0] if isinstance(found, tuple) else found.sample
            tensor.view(-1)[0] = float("nan")
        return found

    monkeypatch.setattr(model, name, method)


def test_what_is_not_finite_is_an_error_that_names_the_step(monkeypatch):
    pipeline, calls = load_sdxl(), []
    broken(pipeline.unet, monkeypatch, "forward", lambda: calls.append(1) or len(calls) in (2, 6))
    with pytest.raises(TrainingError) as caught:
        sample(pipeline, ["a dog"], num_inference_steps=4)
    words = r"image 1 \(seed 0\): the UNet gave numbers that are not finite in step 2 of 4: check the base's"
    assert re.match(words, str(caught.value)), caught.value
    monkeypatch.undo()
    broken(pipeline.vae, monkeypatch, "decode", lambda: True)
    with pytest.raises(
        TrainingError, match=r"the VAE gave .*--pretrained_vae_model_name_or_path madebyollin"
    ):
        sample(pipeline, ["a dog"], num_inference_steps=2)
    monkeypatch.undo()
    pipeline.text_encoder_2.text_projection.weight.data[0] = float("inf")
    with pytest.raises(TrainingError, match="the text encoders gave numbers that are not finite"):
        sample(pipeline, ["a dog"], num_inference_steps=2)


def test_with_problems_the_other_images_are_there(monkeypatch):
    pipeline, calls, problems = load_sdxl(), [], {}
    broken(pipeline.vae, monkeypatch, "decode", lambda: calls.append(1) or len(calls) == 2)
    wanted = [("a dog", 0), ("a dog", 1), ("a dog", 2)]
    images = generate(pipeline, wanted, SamplingSettings(2, 3.0), problems=problems)
    assert [image is None for image in images] == [False, True, False]
    assert list(problems) == [1]
    assert "image 2 (seed 1): the VAE" in problems[1]


def test_progress_counts_every_image_once():
    shares = []
    settings = SamplingSettings(3, 3.0, scheduler="heun")  # two evaluations a step
    generate(load_sdxl(), [("a dog", n) for n in range(3)], settings, batch_size=2, progress=shares.append)
    assert sum(shares) == pytest.approx(3)
