"""A checkpoint in one file loads without the hub, and is refused in one sentence if it is no SDXL."""

import json

import open_clip
import pytest
import torch
from adapter_files import CONFIGS
from helpers import adapted_pipeline
from safetensors.torch import load_file, save_file

from gralora_diffusion import load_sdxl
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl import single_file
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.sdxl.sampling import sample
from gralora_diffusion.sdxl.single_file import PARTS, clip_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The embedded base with an adapter in it, as one file, and as a folder."""
    folder = tmp_path_factory.mktemp("single")
    adapter = Adapter.from_models(adapted_pipeline(CONFIGS["mixed"])[1])
    write_merged(folder / "one.safetensors", adapter, None, torch.float32)
    write_merged(folder / "many", adapter, None, torch.float32)
    return folder / "one.safetensors", folder / "many"


@pytest.fixture
def small(monkeypatch):
    """The embedded base's sizes in place of SDXL's."""
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        config = json.loads((EMBEDDED / name / "config.json").read_text())
        monkeypatch.setattr(
            single_file,
            f"SDXL_{name.upper()}",
            {key: value for key, value in config.items() if not key.startswith("_")},
        )


def test_it_holds_what_the_folder_holds(checkpoint, small, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("the network is used"))
    one, many = (load_sdxl(str(path)) for path in checkpoint)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        first, second = getattr(one, name).state_dict(), getattr(many, name).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert {
        name: one.scheduler.config[name] for name in single_file.SDXL_SCHEDULER
    } == single_file.SDXL_SCHEDULER
    assert one.scheduler.config.prediction_type == "epsilon"
    one.tokenizer, one.tokenizer_2, one.scheduler = many.tokenizer, many.tokenizer_2, many.scheduler
    images = [sample(pipeline, ["a dog"], 0, num_inference_steps=2)[0] for pipeline in (one, many)]
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.parametrize("marks", [["v_pred"], ["v_pred", "ztsnr"]])
def test_a_marked_v_prediction_checkpoint_is_known_for_one(marks, checkpoint, small, tmp_path):
    save_file(load_file(checkpoint[0]) | {mark: torch.zeros(0) for mark in marks}, tmp_path / "v.safetensors")
    scheduler = load_sdxl(str(tmp_path / "v.safetensors")).scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr == ("ztsnr" in marks)
    scheduler.set_timesteps(25)
    assert (scheduler.timesteps[0] == 999) == ("ztsnr" in marks)


def test_a_v_prediction_checkpoint_that_only_its_header_marks(checkpoint, small, tmp_path):
    save_file(load_file(checkpoint[0]), tmp_path / "v.safetensors", {"modelspec.prediction_type": "v"})
    assert load_sdxl(str(tmp_path / "v.safetensors")).scheduler.config.prediction_type == "v_prediction"


TEXTS = [
    "a photo of sks dog, on the moon",
    "café 12345 don't — we'll",
    "",
    "日本語 emoji 🐶",
    "x" * 400 + " y" * 90,
    "A  \n tab\there & <b>",
]


@pytest.mark.parametrize(
    ("padding", "texts"), [("<|endoftext|>", [*TEXTS, "a dog!"]), ("!", TEXTS)]
)  # in the second, "!" is no word
def test_the_tokenizer_is_clips(padding, texts):
    ours, theirs = clip_tokenizer(padding), open_clip.get_tokenizer("ViT-B-32")
    assert len(ours) == 49408
    for text in texts:
        found, wanted = (
            ours(text, padding="max_length", truncation=True).input_ids,
            theirs([text])[0].tolist(),
        )
        end = wanted.index(49407) + 1
        assert found[:end] == wanted[:end]
        assert set(found[end:]) <= {0 if padding == "!" else 49407}
        assert len(found) == 77


def test_what_is_no_sdxl_is_refused_before_it_is_read(checkpoint, tmp_path):
    def refused(tensors, why):
        save_file(
            {name: torch.zeros((1280, 2816) if name == PARTS["UNet"] else 1) for name in tensors},
            tmp_path / "x.safetensors",
        )
        with pytest.raises(ConfigError, match=why):
            load_sdxl(str(tmp_path / "x.safetensors"))

    refused(
        ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"],
        "holds none of its three models",
    )
    refused(
        [PARTS["UNet"], "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"],
        "the refiner",
    )
    refused([*PARTS.values(), "edm_mean", "edm_std"], "EDM's noise levels")
    refused(
        PARTS.values(),
        "no SDXL base can be loaded from [^ ]*x.safetensors: Failed to load AutoencoderKL[^\n]*missing",
    )
    with pytest.raises(ConfigError, match="a different size from SDXL's"):
        load_sdxl(str(checkpoint[0]))
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="not a complete"):
        load_sdxl(str(tmp_path / "x.safetensors"))
