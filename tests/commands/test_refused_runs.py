"""Run folders that cannot be used, and runs that cannot be resumed."""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from refusals import QUICK, assert_refused, train_with

from gralora_diffusion import AdapterConfig
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.training.train import train


def resume_with(**options):
    """A finished run, resumed with other options."""

    def resume(tmp, run):
        saved = dataclasses.replace(
            QUICK, adapter=AdapterConfig(rank=16, k=2), max_train_steps=20, train_batch_size=None, seed=3
        )
        shutil.copytree(run, tmp / "run")
        before = {p: p.read_bytes() for p in (tmp / "run").rglob("*") if p.is_file()}
        try:
            train(dataclasses.replace(saved, output_dir=str(tmp / "run"), **options))
        finally:
            assert {p: p.read_bytes() for p in (tmp / "run").rglob("*") if p.is_file()} == before

    return resume


def unwritable(tmp, _):
    """As a user whose folder it is not, and before a base is loaded: there is none at that path."""
    (tmp / "closed").mkdir(mode=0o555)
    shutil.copytree(EXAMPLE, tmp / "images")  # the clone itself may be closed to other users
    given = dict(instance_data_dir="{tmp}/images", instance_prompt="a robot", cache_latents=False)
    start = train_with(**given, output_dir="{tmp}/closed/run", pretrained_model_name_or_path="/nowhere")
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:
            Image.init()  # Pillow loads its plugins when the first image is opened
            mine = [p for p in tmp.parents if p.stat().st_uid == 0 and p != Path("/")]
            for path in (tmp, *mine[:3]):
                stack.callback(os.chmod, path, path.stat().st_mode)
                os.chmod(path, path.stat().st_mode | 0o055)
            os.seteuid(65534)
            stack.callback(os.seteuid, 0)
        start(tmp, None)


def with_another_image(tmp, finished_run):
    shutil.copytree(EXAMPLE, tmp / "images")
    Image.new("RGB", (64, 64), "red").save(tmp / "images" / "more.png")
    (tmp / "images" / "more.txt").write_text("a red square")
    resume_with(instance_data_dir=str(tmp / "images"), max_train_steps=21)(tmp, finished_run)


def into_the_images(folder: str):
    """A function that trains on images/ into this folder."""

    def start(tmp, _):
        shutil.copytree(EXAMPLE, tmp / "images")
        train_with(instance_data_dir="{tmp}/images", output_dir=folder)(tmp, None)

    return start


ROWS = {
    "output among the images": (
        into_the_images("{tmp}/images"),
        "the run folder .*/images is the same as the folder of images .*/images: choose another",
    ),
    "output inside the images": (
        into_the_images("{tmp}/images/runs/dog"),
        "the run folder .*/images/runs/dog is inside the folder of images .*/images: choose another",
    ),
    "output is a file": (
        train_with(output_dir=str(EXAMPLE / "00.png")),
        "is a file: choose another --output_dir",
    ),
    "output below a file": (train_with(output_dir=str(EXAMPLE / "00.png" / "x")), "cannot be"),
    "output not writable": (unwritable, "cannot be written: .* there is no permission"),
    "logs in a file": (train_with(logging_dir=str(EXAMPLE / "00.png")), "--logging_dir .* is a file"),
    "resume of nothing": (train_with(resume_from_checkpoint="latest"), "holds no run"),
    "resume with another rank": (resume_with(adapter=AdapterConfig(rank=8, k=2)), "--gralora_rank 16, not 8"),
    "resume with another k": (resume_with(adapter=AdapterConfig(rank=16, k=4)), "--gralora_k 2, not 4"),
    "resume with other targets": (
        resume_with(adapter=AdapterConfig(rank=16, k=2, targets="attn1")),
        "--targets attention, not attn1",
    ),
    "resume with another seed": (resume_with(seed=4), "--seed 3, not 4"),
    "resume with another optimizer": (resume_with(optimizer="Adafactor"), "--optimizer AdamW, not Adafactor"),
    "resume on another base": (
        resume_with(pretrained_model_name_or_path=str(EMBEDDED)),
        "no --pretrained_model_name_or_path, not",
    ),
    "resume with other data": (
        with_another_image,
        "with different images or captions: use the same to resume it, .* --output_dir, with --start_from",
    ),
    "resume from elsewhere": (
        resume_with(resume_from_checkpoint="x/checkpoint-20"),
        "resumes from its own checkpoints",
    ),
    "resume to fewer steps": (resume_with(max_train_steps=5), "at step 20 already, beyond the 5"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_run_folder_or_resume_is_refused(name, tmp_path, finished_run):
    assert_refused(ROWS[name], tmp_path, finished_run)
