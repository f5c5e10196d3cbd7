"""Images: the same whatever the batch size, and nothing left behind in the pipeline."""

import numpy as np
import pytest
from helpers import adapted_pipeline
from PIL import Image

from gralora_diffusion import AdapterConfig, load_sdxl
from gralora_diffusion.sdxl.sampling import sample, sheet


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
