"""Base models and adapter files that cannot be used."""

import json
import shutil

import pytest
import torch
from refusals import assert_refused, train_with
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gralora_diffusion import load_sdxl
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.sdxl.load import EMBEDDED

UNET = "unet/diffusion_pytorch_model.safetensors"


def train_on_base(change, **options):
    """A run on a copy of the embedded base with a change."""

    def start(tmp, _):
        shutil.copytree(EMBEDDED, tmp / "base")
        change(tmp / "base")
        train_with(pretrained_model_name_or_path="{tmp}/base", **options)(tmp, None)

    return start


def without(name):
    def delete(base):
        path = base / name
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)

    return delete


def edited(name, **values):
    def edit(base):
        path = base / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def cut_short(name):
    def cut(base):
        path = base / name
        path.write_bytes(path.read_bytes()[:-1000])

    return cut


def read_file(name, content):
    """An adapter file with these bytes."""

    def read(tmp, _):
        (tmp / name).write_bytes(content)
        read_adapter(tmp / name)

    return read


def read_with_config(**changes):
    """The run's adapter with another config in its header."""

    def read(tmp, run):
        tensors, metadata = opened(run)
        facts = json.loads(metadata["gralora_diffusion"])
        facts["config"] |= changes
        save_file(tensors, tmp / "x.safetensors", {"gralora_diffusion": json.dumps(facts)})
        read_adapter(tmp / "x.safetensors")

    return read


def read_with_tensors(change):
    """The run's adapter with other tensors."""

    def read(tmp, run):
        tensors, metadata = opened(run)
        save_file(change(tensors), tmp / "x.safetensors", metadata)
        read_adapter(tmp / "x.safetensors")

    return read


def opened(run):
    """(tensors, metadata) of the run's adapter"""
    path = run / "adapter.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def first(tensors):
    return sorted(tensors)[0]


ROWS = {
    "no base": (
        train_with(pretrained_model_name_or_path="/nowhere/model"),
        "no SDXL base can be .* /nowhere/model",
    ),
    "pickled base": (train_with(pretrained_model_name_or_path="model.ckpt"), "is a pickle"),
    "base without its UNet": (train_on_base(without("unet")), "/base"),
    "base without a text encoder": (train_on_base(without("text_encoder_2")), "/base"),
    "base cut short": (train_on_base(cut_short(UNET)), "/base"),
    "base that is inpainting": (train_on_base(edited("unet/config.json", in_channels=9)), "/base"),
    "base that is SD 1.5": (train_on_base(edited("unet/config.json", addition_embed_type=None)), "/base"),
    "NaN from the VAE": (
        train_on_base(edited("vae/config.json", scaling_factor=float("inf"))),
        "/base|not finite",
    ),
    "adapter that is not there": (lambda tmp, _: read_adapter(tmp / "x.safetensors"), "does not exist"),
    "adapter that is a pickle": (
        read_file("x.safetensors", b"\x80\x04\x95."),
        "is a pickle",
    ),
    "adapter .bin": (read_file("x.bin", b"\x80\x04\x95."), "x.bin"),
    "header of 4 EiB": (
        read_file("x.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
        "not a complete .safetensors file",
    ),
    "header of 100 MB": (
        read_file("x.safetensors", (10**8).to_bytes(8, "little") + b"{" * 10**8),
        "not a complete .safetensors file",
    ),
    "header with a wrong rank": (read_with_config(rank=65536), "the header says rank 65536"),
    "header with a rank of 10^30": (read_with_config(rank=10**30), "the header says rank 10000"),
    "header with a k that does not divide": (read_with_config(k=3), "the header says rank 16, k 3"),
    "header with an unknown option": (read_with_config(surprise=1), "'surprise'"),
    "missing key": (
        read_with_tensors(lambda t: {n: v for n, v in t.items() if n != first(t)}),
        "layers need gralora_A",
    ),
    "extra key": (read_with_tensors(lambda t: t | {"surprise": torch.zeros(1)}), "unknown tensor 'surprise'"),
    "wrong keys": (
        read_with_tensors(lambda t: {n.replace("to_q", "to_z"): v for n, v in t.items()}),
        "SDXL has no such layer",
    ),
    "NaN in an adapter": (
        read_with_tensors(lambda t: t | {first(t): t[first(t)] * float("nan")}),
        "not finite",
    ),
}
WRITES = "NaN from the VAE"  # the images are encoded in the run


@pytest.mark.parametrize("name", ROWS)
def test_bad_weights_are_refused(name, tmp_path, finished_run):
    assert_refused(ROWS[name], tmp_path, finished_run, writes=name == WRITES)


def test_a_base_of_the_same_kind_is_no_mistake(tmp_path):
    """The rows with a changed base fail by their change alone."""
    shutil.copytree(EMBEDDED, tmp_path / "base")
    assert load_sdxl(str(tmp_path / "base")).unet.config.in_channels == 16
