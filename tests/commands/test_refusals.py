"""The table of bad inputs: each is answered with one sentence, before anything is written."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from bad_images import BAD
from helpers import gora
from PIL import Image
from safetensors.torch import load_file, save_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.training.train import train

QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2), max_train_steps=2, train_batch_size=2, skip_final_inference=True
)


def option(**options):
    """A run with these options; {tmp} in a text is the test's folder."""

    def begin(tmp, _):
        given = {
            name: value.format(tmp=tmp) if isinstance(value, str) else value
            for name, value in options.items()
        }
        train(dataclasses.replace(QUICK, **dict(output_dir=str(tmp / "out" / "run")) | given))

    return begin


def adapter(**options):
    return lambda tmp, run: option(adapter=AdapterConfig(**dict(rank=8) | options))(tmp, run)


def again(**options):
    """A run that is done, begun again with other options."""

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


def folder(*entries, prompt="a photo of sks dog", **options):
    """A run on a folder with a good image and these entries: (name, bytes), or a function that is given the folder."""

    def begin(tmp, _):
        (tmp / "images").mkdir()
        Image.new("RGB", (80, 64), "red").save(tmp / "images" / "good.png")
        for entry in entries:
            entry(tmp / "images") if callable(entry) else (tmp / "images" / entry[0]).write_bytes(entry[1])
        option(instance_data_dir="{tmp}/images", instance_prompt=prompt, **options)(tmp, None)

    return begin


def unwritable(tmp, _):
    """As a user whose folder it is not, and before a base is loaded: there is none at that path."""
    (tmp / "closed").mkdir(mode=0o555)
    root = os.geteuid() == 0
    parents = (
        [p for p in tmp.parents if p.stat().st_uid == os.geteuid() and p != Path("/")][:3] if root else []
    )
    modes = {p: p.stat().st_mode for p in (tmp, *parents)}
    with contextlib.ExitStack() as stack:
        if root:
            for path, mode in modes.items():
                os.chmod(path, mode | 0o055)
                stack.callback(os.chmod, path, mode)
            os.seteuid(65534)
            stack.callback(os.seteuid, 0)
        option(output_dir="{tmp}/closed/run", cache_latents=False, pretrained_model_name_or_path="/nowhere")(
            tmp, None
        )


def vanished(tmp, _):
    (tmp / "images").mkdir()
    shutil.copy(EXAMPLE / "00.png", tmp / "images" / "a.png")
    (found,) = find_images(tmp / "images", "x")
    (tmp / "images" / "a.png").unlink()
    found.open()


def two_precisions(tmp, _):
    option(output_dir="{tmp}/first", max_train_steps=1)(tmp, None)
    option(mixed_precision="bf16")(tmp, None)


def base(change, **options):
    """A copy of the embedded base with a change."""

    def begin(tmp, _):
        shutil.copytree(EMBEDDED, tmp / "base")
        change(tmp / "base")
        option(pretrained_model_name_or_path="{tmp}/base", **options)(tmp, None)

    return begin


def without(name):
    return lambda path: (path / name).unlink() if (path / name).is_file() else shutil.rmtree(path / name)


def edited(name, **values):
    return lambda path: (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | values))


def cut_short(name):
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-1000])


def file(name, content):
    """An adapter file with these bytes."""

    def read(tmp, _):
        (tmp / name).write_bytes(content)
        read_adapter(tmp / name)

    return read


def header(**changes):
    """The run's adapter with another config in its header."""

    def read(tmp, run):
        from safetensors import safe_open

        with safe_open(run / "adapter.safetensors", "pt") as opened:
            facts = json.loads(opened.metadata()["gralora_diffusion"])
        facts["config"] |= changes
        save_file(
            load_file(run / "adapter.safetensors"),
            tmp / "x.safetensors",
            {"gralora_diffusion": json.dumps(facts)},
        )
        read_adapter(tmp / "x.safetensors")

    return read


def keys(change):
    def read(tmp, run):
        from safetensors import safe_open

        with safe_open(run / "adapter.safetensors", "pt") as opened:
            said = opened.metadata()
        save_file(change(load_file(run / "adapter.safetensors")), tmp / "x.safetensors", said)
        read_adapter(tmp / "x.safetensors")

    return read


def first(tensors):
    return sorted(tensors)[0]


PNG = (EXAMPLE / "00.png").read_bytes()
UNET = "unet/diffusion_pytorch_model.safetensors"
ROWS = {
    **{name: (folder((file_name, content)), words) for name, (file_name, content, words) in BAD.items()},
    # images and captions
    "empty folder": (folder(lambda path: (path / "good.png").unlink()), "holds no images"),
    "no folder": (option(instance_data_dir="{tmp}/nowhere"), "is not a folder: --instance_data_dir"),
    "only a sub-folder": (
        folder(lambda path: (path / "good.png").unlink(), lambda path: (path / "10_dog").mkdir()),
        "holds no images",
    ),
    "pipe": (folder(lambda path: os.mkfifo(path / "a.png")), "a pipe, a socket or a device"),
    "symlink loop": (folder(lambda path: (path / "a.png").symlink_to(path / "a.png")), "symbolic links"),
    "dangling symlink": (folder(lambda path: (path / "a.png").symlink_to(path / "b.png")), "No such file"),
    "no captions": (
        folder(("more.png", PNG), prompt=None),
        "^[^;]*no caption for any of its images: give --instance_prompt, or captions[^;]*$",
    ),
    "some without captions": (
        folder(("more.png", PNG), ("more.txt", b"a dog"), prompt=None),
        r"good\.png \(no caption",
    ),
    "all bad files at once": (
        folder(("a.png", b""), ("b.png", b""), ("c.jpg", b"x")),
        r"3 file\(s\).*a\.png, b\.png \(empty file\); c\.jpg",
    ),
    "unknown file": (folder(("a.heic", b"x")), r"a\.heic \(not an image\)"),
    "metadata outside": (
        folder(("metadata.jsonl", b'{"file_name": "../x.png", "text": "x"}')),
        "line 1 names a file outside",
    ),
    "image that vanished": (vanished, "could be used when the run started, and now cannot: No such file"),
    "column of nothing": (option(caption_column="words"), "there is neither"),
    "no data set": (option(dataset_name="{tmp}/nowhere"), "no data set can be read from"),
    # the run folder, saving and resuming
    "output is a file": (
        option(output_dir=str(EXAMPLE / "00.png")),
        "is a file: choose another --output_dir",
    ),
    "output below a file": (option(output_dir=str(EXAMPLE / "00.png" / "x")), "cannot be"),
    "output not writable": (unwritable, "cannot be written: .* there is no permission"),
    "logs in a file": (option(logging_dir=str(EXAMPLE / "00.png")), "--logging_dir .* is a file"),
    "resume of nothing": (option(resume_from_checkpoint="latest"), "holds no run"),
    "resume with another rank": (again(adapter=AdapterConfig(rank=8, k=2)), "--gralora_rank 16, not 8"),
    "resume with another k": (again(adapter=AdapterConfig(rank=16, k=4)), "--gralora_k 2, not 4"),
    "resume with other targets": (
        again(adapter=AdapterConfig(rank=16, k=2, targets="attn1")),
        "--targets attention, not attn1",
    ),
    "resume with another seed": (again(seed=4), "--seed 3, not 4"),
    "resume with another optimizer": (again(optimizer="Adafactor"), "--optimizer AdamW, not Adafactor"),
    "resume on another base": (
        again(pretrained_model_name_or_path=str(EMBEDDED)),
        "--pretrained_model_name_or_path None, not",
    ),
    "resume with other data": (
        again(instance_data_dir=str(EXAMPLE), instance_prompt="a photo of sks robot"),
        "--instance_data_dir None, not",
    ),
    "resume from elsewhere": (
        again(resume_from_checkpoint="x/checkpoint-20"),
        "resumes from its own checkpoints",
    ),
    "resume to fewer steps": (again(max_train_steps=5), "at step 20 already, beyond the 5"),
    # numbers and options
    "rank above the layers": (adapter(rank=65536), "rank is 65536; for this layer"),
    "rank that k does not divide": (
        adapter(rank=63, k=4),
        "63 is not divisible by k 4; the nearest ranks that fit are 60 and 64",
    ),
    "unknown targets": (
        adapter(targets="to_nowhere"),
        r"matches no linear layer, such as attn1\.to_q, attn1\.to_k.*ff\.net\.0\.proj",
    ),
    "targets that are no expression": (adapter(targets="("), "not a regular expression"),
    "pattern that matches nothing": (adapter(rank_pattern={"atn2": 8}), "'atn2' matches none"),
    "GoRA's rank below its range": (
        option(**gora(8), gora_min_rank=9),
        "--allocate gora cannot meet --rank",
    ),
    "GoRA's rank above its range": (
        option(**gora(8), gora_max_rank=4),
        "ranks go from 4 to 4",
    ),
    "GoRA's rank above the layers": (
        option(**gora(500)),
        "rank is 500|cannot meet --rank",
    ),
    "ranks off the grid": (
        option(adapter=AdapterConfig(rank=8, k=2), allocate="gora", gora_min_rank=9, gora_max_rank=9),
        "in steps of 2",
    ),
    "limits of given ranks": (
        option(allocate="uniform", gora_max_rank=9),
        "--gora_max_rank has no effect",
    ),
    "gradients of a quantised base": (
        option(base_model_precision="int8-torchao", allocate="gora"),
        "no weights to take gradients of",
    ),
    "fp16 without a GPU": (option(mixed_precision="fp16"), "fp16 needs a GPU"),
    "two precisions in one process": (
        two_precisions,
        "used --mixed_precision no before, .* train with bf16 in another process",
    ),
    "a schedule longer than the run": (
        option(lr_scheduler="cosine", lr_warmup_steps=9),
        "the run ends after 2 steps",
    ),
    "a folder's name that is none on the hub": (
        option(output_dir="{tmp}/out/my dog!", push_to_hub=True),
        "name 'my dog!' cannot be",
    ),
    "a repository's name that is none": (
        option(hub_model_id="a/b/c", push_to_hub=True),
        "--hub_model_id 'a/b/c' cannot be",
    ),
    "a token that is none": (option(hub_token="hf_ x", push_to_hub=True), "holds a space or a line break"),
    # weights
    "no base": (
        option(pretrained_model_name_or_path="/nowhere/model"),
        "no SDXL base can be .* /nowhere/model",
    ),
    "pickled base": (option(pretrained_model_name_or_path="model.ckpt"), "is a pickle"),
    "base without its UNet": (base(without("unet")), "/base"),
    "base without a text encoder": (base(without("text_encoder_2")), "/base"),
    "base cut short": (base(cut_short(UNET)), "/base"),
    "base that is inpainting": (base(edited("unet/config.json", in_channels=9)), "/base"),
    "base that is SD 1.5": (base(edited("unet/config.json", addition_embed_type=None)), "/base"),
    "NaN from the VAE": (base(edited("vae/config.json", scaling_factor=float("inf"))), "/base|not finite"),
    "adapter that is not there": (lambda tmp, _: read_adapter(tmp / "x.safetensors"), "is not there"),
    "adapter that is a pickle": (file("x.safetensors", b"\x80\x04\x95."), "not a complete .safetensors file"),
    "adapter .bin": (file("x.bin", b"\x80\x04\x95."), "x.bin"),
    "header of 4 EiB": (
        file("x.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
        "not a complete .safetensors file",
    ),
    "header of 100 MB": (
        file("x.safetensors", (10**8).to_bytes(8, "little") + b"{" * 10**8),
        "not a complete .safetensors file",
    ),
    "header that lies of the rank": (header(rank=65536), "the header says rank 65536"),
    "header with a rank of 10^30": (header(rank=10**30), "the header says rank 10000"),
    "header with a k that does not divide": (header(k=3), "the header says rank 16, k 3"),
    "header with an unknown option": (header(surprise=1), "'surprise'"),
    "missing key": (keys(lambda t: {n: v for n, v in t.items() if n != first(t)}), "needs"),
    "extra key": (keys(lambda t: t | {"surprise": torch.zeros(1)}), "unknown tensor 'surprise'"),
    "wrong keys": (
        keys(lambda t: {n.replace("to_q", "to_z"): v for n, v in t.items()}),
        "SDXL has no such layer",
    ),
    "NaN in an adapter": (keys(lambda t: t | {first(t): t[first(t)] * float("nan")}), "not finite"),
    # evaluators
    "unknown encoder": (lambda *_: load_encoder("embeded"), "did you mean 'embedded'"),
}
WRITES = {
    "two precisions in one process",
    "NaN from the VAE",
}  # the first run of two; the images are encoded in the run


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_bad_inputs(name, tmp_path, finished_run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    do, words = ROWS[name]
    with pytest.raises((ConfigError, TrainingError)) as caught:
        do(tmp_path, finished_run)
    said = str(caught.value)
    assert re.search(words, said) or words in said, said
    assert said.isprintable()
    assert name in WRITES or not (tmp_path / "out").exists()


def test_what_is_neither_image_nor_caption_is_left_out_and_said(tmp_path, capsys):
    shutil.copy(EXAMPLE / "00.png", tmp_path / "a.png")
    for name in ("notes.md", "README.md", ".DS_Store", "Thumbs.db", "desktop.ini", "latents.npz", "list.csv"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.path.name for p in find_images(tmp_path, "a dog")] == ["a.png"]
    said = capsys.readouterr().err
    assert "neither images nor captions, which are left out: latents.npz, list.csv, notes.md\n" in said


def test_a_base_of_the_same_kind_is_no_mistake(tmp_path):
    """The rows with a changed base fail by their change alone."""
    shutil.copytree(EMBEDDED, tmp_path / "base")
    assert load_sdxl(str(tmp_path / "base")).unet.config.in_channels == 16
