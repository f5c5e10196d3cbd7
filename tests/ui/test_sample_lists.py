"""What Sample, Compare and Export say before an adapter is chosen."""

import asyncio

import gradio as gr

from gralora_diffusion.ui.form_memory import browser_state
from gralora_diffusion.ui.new_adapters import keeping
from gralora_diffusion.ui.sampler import Sampler
from gralora_diffusion.ui.tab_compare import CompareTab
from gralora_diffusion.ui.tab_export import ExportTab
from gralora_diffusion.ui.tab_sample import NO_ADAPTERS, ONLY_CHECKPOINTS, SampleTab


def hint(tab) -> dict:
    """The update of the hint when the tab is opened with nothing chosen."""
    inputs, outputs = tab.lists_event["inputs"], tab.lists_event["outputs"]
    values = [None] * (len(inputs) - 1)
    return tab.lists(*values, "")[outputs.index(tab.empty)]


def built(workspace) -> SampleTab:
    async def build() -> SampleTab:  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return SampleTab(workspace, Sampler(workspace), browser_state(workspace, "sample"))

    return asyncio.run(build())


def test_what_the_browser_has_is_not_sent_back(workspace):
    """It may have been edited since it was sent: text that is typed would be lost."""
    tab = built(workspace)
    (workspace.adapters / "other.safetensors").parent.mkdir(parents=True, exist_ok=True)
    (workspace.adapters / "other.safetensors").touch()
    assert tab.first_prompt("other.safetensors", "typed") == gr.skip()
    inputs, outputs = tab.lists_event["inputs"], tab.lists_event["outputs"]
    blank = ["none"] * (len(inputs) - 3)
    updates = tab.lists("other.safetensors", None, *blank, "typed")
    assert updates[outputs.index(tab.first.received)] == gr.skip()
    assert "value" not in updates[outputs.index(tab.adapter)]
    updates = tab.lists("gone.safetensors", None, *blank, "typed")
    assert "value" in updates[outputs.index(tab.adapter)]


def test_a_stopped_run_leaves_a_hint_to_choose_its_checkpoint(workspace):
    tab = built(workspace)
    assert hint(tab) == gr.update(value=NO_ADAPTERS, visible=True)
    run = workspace.runs / "dog"
    checkpoint = run / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (checkpoint / "adapter.safetensors").touch()
    assert hint(tab) == gr.update(value=ONLY_CHECKPOINTS, visible=True)
    (run / "adapter.safetensors").touch()
    assert hint(tab)["visible"] is False


def test_compare_and_export_say_what_will_be_offered_and_where_a_file_is_added(workspace):
    async def build() -> list:
        with gr.Blocks():
            return [CompareTab(workspace, Sampler(workspace)), ExportTab(workspace)]

    tabs = asyncio.run(build())

    def hints() -> list[dict]:
        found = []
        for tab in tabs:
            inputs, outputs = tab.lists_event["inputs"], tab.lists_event["outputs"]
            found.append(tab.lists(*[None] * len(inputs))[outputs.index(tab.empty)])
        return found

    for hint in hints():
        assert hint["visible"]
        assert "is offered here when the run is done" in hint["value"]
        assert "**Sample**: **More**, then **Add an adapter file**" in hint["value"]
    checkpoint = workspace.runs / "dog" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "config.json").write_text("{}")
    (checkpoint / "adapter.safetensors").touch()
    for hint in hints():
        assert hint["visible"]
        assert "No finished run yet" in hint["value"]
    (checkpoint.parent / "adapter.safetensors").touch()
    assert not any(hint["visible"] for hint in hints())


def test_the_hints_name_what_the_page_has(workspace):
    tab = built(workspace)
    assert tab.fields.upload.label == "Add an adapter file"
    assert tab.fields.more.label.startswith("More")


def test_when_a_run_ends_its_adapter_is_chosen_only_where_none_was(workspace):
    tab = built(workspace)
    inputs, outputs = tab.lists_event["inputs"], tab.lists_event["outputs"]
    lists, blank = keeping(tab.lists), ["none"] * (len(inputs) - 3)
    for name in ("first", "second"):
        (workspace.runs / name).mkdir(parents=True)
        (workspace.runs / name / "config.json").write_text("{}")
        (workspace.runs / name / "adapter.safetensors").touch()
    newest = workspace.suggested_adapter()
    older = "first" if newest == "second" else "second"
    updates = lists(None, None, *blank, "typed")
    assert updates[0]["value"] == updates[-1] == newest
    updates = lists(older, older, *blank, "typed")  # the tab had suggested it
    assert "value" not in updates[0]
    assert updates[-1] == gr.skip()
    assert {name for _, name in updates[0]["choices"]} == {"first", "second"}
    assert len(updates) == len(outputs)
