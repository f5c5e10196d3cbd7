"""An image that was generated is displayed, whatever the disk says."""

import asyncio
import base64
import io
import os
import re

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from gralora_diffusion import devices
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.form_memory import browser_state
from gralora_diffusion.ui.sampler import ImageRequest, Sampler
from gralora_diffusion.ui.tab_sample import SampleTab

PREVIEWS = dict(with_base=False, preview_every=1)


@pytest.fixture
def tab(workspace, monkeypatch):
    monkeypatch.setattr(devices, "best_device", lambda: devices.torch.device("cpu"))

    async def build() -> SampleTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return SampleTab(workspace, Sampler(workspace), browser_state(workspace, "sample"))

    return asyncio.run(build())


def generated(tab, **values):
    return tab.sample("none", 1, "a robot", 1, 3, steps=2, **PREVIEWS, **values)


def test_an_image_that_cannot_be_kept_is_displayed_with_a_note(tab, workspace):
    workspace.history.write_text("a file where the folder of the history should be")
    *_, (images, slider, pairs, _, progress, unsaved) = list(generated(tab))
    assert len(images) == len(pairs) == 1
    assert os.path.isfile(slider[1])
    assert "The image could not be saved (File exists)" in progress
    assert "1 of 1" in progress
    assert unsaved == ""


def test_on_a_full_disk_the_browser_gets_the_image_itself(tab, workspace, file_size_limit):
    expected = Sampler(workspace).generate(ImageRequest("a robot", 3, (), 2, None), None)
    events = generated(tab)
    with file_size_limit(0):
        event = next(events)  # no preview: there is no space for it
        with pytest.raises(ConfigError, match=r"could not be saved \(File too large\)"):
            next(events)
    url = re.search(r'src="data:image/png;base64,([^"]+)"', event[-1])[1]
    with Image.open(io.BytesIO(base64.b64decode(url))) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert "a robot" in image.text["parameters"]
    assert not [name for _, _, names in os.walk(workspace.root) for name in names]
