"""What Export tells before a file is made: its size, the error of a smaller rank, trigger words."""

import asyncio
import shutil
from pathlib import Path

import gradio as gr
import pytest
from adapter_files import sdxl_sized
from helpers import adapted_pipeline

from gralora_diffusion import AdapterConfig, save_adapter
from gralora_diffusion.files import sha256
from gralora_diffusion.formats.nearest import nearest
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_native
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.adapter_files import EMBEDDED_HEADER
from gralora_diffusion.ui.copy_to_tool import copy_to_tool
from gralora_diffusion.ui.export import DOWNLOADS, export
from gralora_diffusion.ui.export_facts import (
    export_with_preview,
    fits_sdxl,
    preview_of_adapter,
    trigger_words,
)
from gralora_diffusion.ui.export_sizes import error_of, size_text, sizes_of
from gralora_diffusion.ui.tab_export import ExportTab
from gralora_diffusion.ui.workspace import Workspace


@pytest.fixture
def workspace(tmp_path, finished_run):
    (tmp_path / "loras").mkdir()
    workspace = Workspace(tmp_path / "h", {"ComfyUI": tmp_path / "loras"})
    workspace.delete_served()
    shutil.copytree(finished_run, workspace.runs / "robot-1")
    return workspace


@pytest.fixture
def tab(workspace):
    async def build() -> ExportTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return ExportTab(workspace)

    return asyncio.run(build())


@pytest.mark.parametrize(("tools", "submits"), [({"ComfyUI": "."}, 1), ({"ComfyUI": ".", "Forge": "."}, 0)])
def test_enter_in_the_file_name_copies_where_there_is_one_tool(tmp_path, tools, submits):
    async def build() -> tuple[gr.Blocks, ExportTab]:
        with gr.Blocks() as page:
            workspace = Workspace(tmp_path / "h", dict.fromkeys(tools, tmp_path))
            return page, ExportTab(workspace)

    page, tab = asyncio.run(build())
    targets = []
    for event in page.config["dependencies"]:
        targets += event["targets"]
    assert targets.count((tab.file_name._id, "submit")) == submits


@pytest.mark.parametrize(("dtype", "rank"), [("fp16", None), ("bf16", None), ("fp32", 4), ("fp8", 4)])
def test_the_size_is_known_before_the_file_is_made(workspace, rank, dtype):
    sizes = sizes_of(workspace, "robot-1", rank, dtype)
    assert sizes.keys() == DOWNLOADS.keys()
    for kind, size in sizes.items():
        path, _ = export(workspace, "robot-1", kind, rank, dtype)
        assert size == pytest.approx(path.stat().st_size, rel=0.02), kind


def add_adapter(workspace, name: str, config: AdapterConfig, names=("unet",)) -> None:
    _, models = adapted_pipeline(config, names)
    save_adapter(workspace.adapters / name, models, base=EMBEDDED_HEADER)


def test_sizes_hold_where_blocks_add_up_to_more_rank_than_a_layer_has_sides(workspace):
    """64 ranks in each of 4 x 4 blocks are a plain LoRA of rank 256 in layers of 160 and 192 channels."""
    add_adapter(workspace, "blocks.safetensors", AdapterConfig(rank=64, k=4))
    sizes = sizes_of(workspace, "blocks.safetensors", None, "fp16")
    assert sizes["comfyui"] > 2 * sizes["native"]
    for kind in ("comfyui", "diffusers", "peft", "native"):
        path, _ = export(workspace, "blocks.safetensors", kind, None, "fp16")
        assert size_text(sizes[kind]) == size_text(path.stat().st_size), kind


def test_a_format_that_cannot_hold_the_adapter_says_so_before(workspace):
    several = AdapterConfig(rank=16, k=2, rank_pattern={"attn2": 32})
    add_adapter(workspace, "several.safetensors", several)
    sizes = sizes_of(workspace, "several.safetensors", None, "fp16")
    assert [kind for kind, size in sizes.items() if size is None] == ["peft", "samples"]
    with pytest.raises(ConfigError, match="one rank and one k"):
        export(workspace, "several.safetensors", "peft", None, "fp16")
    labels = [label for label, kind in ExportTab.formats(sizes) if kind == "peft"]
    assert labels == ["peft: for PeftModel.from_pretrained of PEFT · not for this one"]
    assert sizes_of(workspace, "several.safetensors", 4, "fp16")["peft"]


@pytest.mark.parametrize("rank", ["", "32"])
def test_no_format_is_called_exact_whatever_the_rank(tab, rank):
    """The nearest LoRA of a rank is not, in the native format too."""
    update = tab.sizes("robot-1", rank, "fp16")
    assert not [label for label, _ in update["choices"] if "exact" in label]


@pytest.mark.parametrize(
    ("config", "rank", "smaller"),
    [
        (AdapterConfig(method="lora", rank=16), "32", False),
        (AdapterConfig(method="lora", rank=16), "16", False),
        (AdapterConfig(method="lora", rank=16), "8", True),
        (AdapterConfig(rank=32, k=2), "32", True),  # a plain LoRA of rank 64
    ],
)
def test_export_says_where_a_rank_makes_no_smaller_file(workspace, tab, config, rank, smaller):
    add_adapter(workspace, "own.safetensors", config)
    *_, text = tab.error_text("own.safetensors", rank)
    assert ("no smaller: choose Exact" in text) is not smaller
    sizes = [
        export(workspace, "own.safetensors", "comfyui", number, "fp16")[0].stat().st_size
        for number in (None, int(rank))
    ]
    assert (sizes[1] < sizes[0]) is smaller


def test_an_adapter_of_the_demo_model_fits_no_sdxl(workspace, tab, tmp_path):
    assert not fits_sdxl(workspace, "robot-1")
    assert "fits no SDXL model" in tab.warning_of("robot-1")["value"]
    add_adapter(workspace, "text.safetensors", AdapterConfig(rank=4, method="lora"), ("text_encoder",))
    assert not fits_sdxl(workspace, "text.safetensors")
    config = AdapterConfig(method="lora", rank=1, targets="attn1.to_q$|q_proj$")
    write_native(workspace.adapters / "sdxl.safetensors", sdxl_sized(config, tmp_path / "base.safetensors"))
    assert fits_sdxl(workspace, "sdxl.safetensors")
    assert [tab.warning_of(name)["visible"] for name in ("sdxl.safetensors", "", "robot-1")] == [
        False,
        False,
        True,
    ]


def test_the_preview_comes_with_the_file_for_other_tools(workspace):
    (file, _), (preview, digest) = export_with_preview(workspace, "robot-1", "comfyui", None, "fp16")
    assert (file.name, preview.name) == ("robot-1.safetensors", "robot-1.png")
    assert preview.parent == file.parent
    assert preview.read_bytes() == preview_of_adapter(workspace, "robot-1").read_bytes()
    assert digest == sha256(preview)
    for kind in ("diffusers", "native", "samples"):
        assert len(export_with_preview(workspace, "robot-1", kind, None, "fp16")) == 1
    add_adapter(workspace, "added.safetensors", AdapterConfig(rank=4, method="lora"))
    assert len(export_with_preview(workspace, "added.safetensors", "comfyui", None, "fp16")) == 1


def test_trigger_words_are_shown_only_where_there_are_some(workspace, tab):
    add_adapter(workspace, "added.safetensors", AdapterConfig(rank=4, method="lora"))
    assert not tab.triggers.visible  # before there is an adapter
    for adapter, visible in (("robot-1", True), ("added.safetensors", False), ("", False)):
        words = tab.facts(adapter)[2]
        assert (words["visible"], bool(words["value"])) == (visible, visible), adapter


def test_copies_are_offered_where_there_is_something_to_copy(tab):
    assert not tab.copy_row.visible
    assert [tab.facts(adapter)[3]["visible"] for adapter in ("robot-1", "")] == [True, False]
    tab.copies.clear()  # as where the owner named no folder
    assert not tab.facts("robot-1")[3]["visible"]


def test_the_error_of_a_smaller_rank_is_that_of_the_file(workspace):
    adapter = read_adapter(workspace.adapter("robot-1"))
    errors = [error_of(workspace, "robot-1", rank) for rank in (1, 4, 4096)]
    assert errors[:2] == [nearest(adapter, rank).error for rank in (1, 4)]
    assert 1 > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_sizes_are_in_the_unit_that_suits_them():
    texts = [size_text(size) for size in (None, 12_345, 1_234_567, 6_940_000_000)]
    assert texts == ["", "12 kB", "1.2 MB", "6.9 GB"]


def test_preview_and_trigger_words_are_those_of_the_run(workspace):
    assert preview_of_adapter(workspace, "robot-1").parent.name == "step-00020"
    assert "sks robot" in trigger_words(workspace, "robot-1").splitlines()[0]


def test_a_copy_never_replaces_a_file(workspace, tmp_path):
    loras = tmp_path / "loras"
    assert copy_to_tool(workspace, "ComfyUI", "robot-1", "mine", None, "fp16") == "mine.safetensors"
    assert {path.name for path in loras.iterdir()} == {"mine.safetensors", "mine.png"}
    assert read_adapter(loras / "mine.safetensors").components == ["unet"]
    (loras / "other.safetensors").write_text("another's")
    (loras / "link.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    before = {path.name: path.stat(follow_symlinks=False).st_mtime_ns for path in loras.iterdir()}
    for name in ("mine", "other", "link", "mine.safetensors"):
        with pytest.raises(ConfigError, match="choose another file name"):
            copy_to_tool(workspace, "ComfyUI", "robot-1", name, None, "fp16")
    after = {path.name: path.stat(follow_symlinks=False).st_mtime_ns for path in loras.iterdir()}
    assert after == before
    assert not (tmp_path / "nowhere.safetensors").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", "", "a\0b", "CON", "x" * 300, "--help"])
def test_a1_a_copy_stays_in_the_folder_that_the_owner_named(workspace, tmp_path, name):
    with pytest.raises(ConfigError):
        copy_to_tool(workspace, "ComfyUI", "robot-1", name, None, "fp16")
    for tool in ("A1111", "", str(tmp_path), None):
        with pytest.raises(ConfigError):
            copy_to_tool(workspace, tool, "robot-1", "mine", None, "fp16")
    assert list(Path(tmp_path / "loras").iterdir()) == []
