"""What a browser keeps of Sample's fields, and what of it is taken back."""

import asyncio
import json
from types import SimpleNamespace

import gradio as gr
import pytest

from gralora_diffusion.ui.form_memory import browser_state
from gralora_diffusion.ui.sample_fields import NAMES, all_requests
from gralora_diffusion.ui.sample_memory import kept, restored
from gralora_diffusion.ui.sampler import Sampler
from gralora_diffusion.ui.tab_sample import SampleTab

CHANGED = dict(
    adapter="dog",
    strength=0.65,
    prompt="a photo of sks dog\na drawing 🐶",
    count=3,
    seed=41,
    second="dog/checkpoint-20",
    second_strength=0.2,
    steps=7,
    guidance="3.5",
    base="Demo model (64 px emoji)",
    with_base=False,
    negative="red",
    size="96x64",
    scheduler="dpm++_2m",
    random_seed=True,
    sweep="0.5, 1",
    third="cat.safetensors",
    third_strength=1.5,
    fourth="none",
    fourth_strength=0.0,
    preview_every=0,
)


@pytest.fixture
def tab(workspace):
    checkpoint = workspace.runs / "dog" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "config.json").write_text("{}")
    for folder in (checkpoint, checkpoint.parent):
        (folder / "adapter.safetensors").touch()
    (workspace.adapters / "cat.safetensors").touch()

    async def build() -> SampleTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return SampleTab(workspace, Sampler(workspace), browser_state(workspace, "sample"))

    return asyncio.run(build())


def untouched(tab) -> dict:
    return {name: tab.fields[name].value for name in NAMES}


def test_the_fields_come_back_as_they_were(tab, workspace):
    ann = SimpleNamespace(username="ann")
    saved = json.loads(json.dumps(tab.kept(ann, None, *(CHANGED[name] for name in NAMES))))
    values = dict(zip(NAMES, tab.restore(ann, saved), strict=True))
    skipped = {name for name, value in values.items() if value == gr.skip()}
    assert skipped == {"fourth"}  # which is as at first
    assert values | dict(fourth="none") == CHANGED


def test_an_untouched_form_keeps_nothing_and_neither_does_a_suggested_adapter(tab):
    values = untouched(tab) | dict(adapter="dog", prompt="a photo of sks dog")
    filled = dict(adapter="dog", prompt="a photo of sks dog")
    assert kept(None, tab.fields, values, filled) == dict(user=None, fields={})
    assert kept(None, tab.fields, values, dict(adapter="other", prompt="x"))["fields"] == filled


@pytest.mark.parametrize(("owner", "user"), [("ann", "bob"), ("ann", None), (None, "ann")])
def test_another_user_of_the_browser_gets_nothing(tab, workspace, owner, user):
    assert restored(kept(owner, tab.fields, CHANGED, {}), user, tab.fields, workspace) == {}


def test_adapters_that_are_gone_are_dropped(tab, workspace):
    saved = kept(None, tab.fields, CHANGED, {})
    (workspace.runs / "dog" / "adapter.safetensors").unlink()
    (workspace.adapters / "cat.safetensors").unlink()
    found = restored(saved, None, tab.fields, workspace)
    assert saved["fields"].keys() - found.keys() == {"adapter", "third"}


HOSTILE = [
    None,
    7,
    "x",
    [],
    {},
    {"user": None, "fields": 7},
    {"user": None, "fields": {"prompt": {"a": 1}, "seed": "x" * 5000, "output_dir": "/etc", "count": 9}},
    {"user": None, "fields": {"prompt": "x" * 100_000, "negative": "x" * 2000, "size": "9" * 12}},
    {"user": None, "fields": {"adapter": "../../etc", "second": "../x", "third": ["dog"], "fourth": ""}},
    {"user": None, "fields": {"adapter": "none", "base": "../../etc", "scheduler": "<img>", "sweep": None}},
    {"user": None, "fields": {"base": "", "seed": -1, "steps": 2.5, "count": True, "with_base": "yes"}},
    {"user": None, "fields": {"strength": float("nan"), "second_strength": 2, "steps": 10**400, "seed": 1.5}},
    {"user": None, "fields": {"guidance": "1" * 9, "random_seed": 1, "preview_every": None, "base": []}},
]


@pytest.mark.parametrize("saved", HOSTILE)
def test_whatever_a_browser_sends_the_fields_can_be_filled(tab, workspace, saved):
    found = restored(saved, None, tab.fields, workspace)
    assert found == {}
    all_requests(workspace, untouched(tab) | found | dict(prompt="a dog"))
