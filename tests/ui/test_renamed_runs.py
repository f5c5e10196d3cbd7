"""While a run is renamed, a browser asks with the old name; it is led to the run, and to no other."""

import asyncio
import json
import os
import shutil

import gradio as gr
import pytest

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import form_memory, sample_memory
from gralora_diffusion.ui.form_memory import browser_state
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.sample_fields import NAMES
from gralora_diffusion.ui.sampler import Sampler
from gralora_diffusion.ui.status_strip import StatusStrip
from gralora_diffusion.ui.tab_compare import CompareTab
from gralora_diffusion.ui.tab_export import ExportTab
from gralora_diffusion.ui.tab_sample import SampleTab
from gralora_diffusion.ui.tab_watch import WatchTab


@pytest.fixture
def queue(workspace):
    """Of two finished runs, "old" and the newer "new"."""
    for moment, name in enumerate(("old", "new"), 1):
        run = workspace.runs / name
        (run / "checkpoint-7").mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(dict(steps=1)))
        os.utime(run / "config.json", (moment, moment))
        for folder in (run, run / "checkpoint-7"):
            (folder / "adapter.safetensors").touch()
    return RunQueue(workspace)


def built(make):
    async def build():  # in a loop that is closed; Gradio would leave one of its own open
        with gr.Blocks():
            return make()

    return asyncio.run(build())


def watch(queue) -> WatchTab:
    return built(lambda: WatchTab(queue.workspace, queue, StatusStrip(queue, gr.Timer(1))))


def chosen_in_watch(tab, chosen) -> dict:
    return tab.refresh(None, chosen, 0.9, None)[tab.refresh_event["outputs"].index(tab.run)]


def test_watch_stays_with_a_run_whose_renaming_has_not_been_answered(queue, monkeypatch):
    tab, seen = watch(queue), []
    monkeypatch.setattr(
        "gralora_diffusion.ui.run_changes.write_report_of_renamed",
        lambda run: seen.append(chosen_in_watch(tab, "old")["value"]),
    )
    RunChanges(queue).rename("old", "renamed")
    assert seen == ["renamed"]
    RunChanges(queue).rename("renamed", "again")
    assert chosen_in_watch(tab, "old")["value"] == chosen_in_watch(tab, "renamed")["value"] == "again"
    RunChanges(queue).rename("again", "old")
    assert chosen_in_watch(tab, "again")["value"] == chosen_in_watch(tab, "old")["value"] == "old"
    assert chosen_in_watch(tab, "gone")["value"] == "new"


def make_run(workspace, name: str) -> None:
    run = workspace.runs / name
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "adapter.safetensors").touch()


def test_a_new_run_of_the_old_name_is_itself_and_leads_nowhere_when_it_is_deleted(queue, workspace):
    changes = RunChanges(queue)
    changes.rename("old", "renamed")
    make_run(workspace, "old")
    assert chosen_in_watch(watch(queue), "old")["value"] == "old"
    changes.delete("old")
    assert workspace.name_now("old", workspace.run_names()) is None
    assert "renamed" in workspace.run_names()


def test_an_earlier_name_does_not_lead_to_another_run_of_the_later_one(queue, workspace):
    changes = RunChanges(queue)
    changes.rename("old", "renamed")
    changes.delete("renamed")
    make_run(workspace, "renamed")
    assert workspace.name_now("old", workspace.run_names()) is None


def test_a_file_that_has_the_old_name_of_a_run_is_itself(queue, workspace):
    changes = RunChanges(queue)
    changes.rename("old", "old.safetensors")
    changes.rename("old.safetensors", "renamed")
    (workspace.adapters / "old.safetensors").touch()
    names = workspace.adapter_names()
    assert workspace.name_now("old.safetensors", names) == "old.safetensors"
    assert workspace.name_now("old", names) == "renamed"


def test_a_folder_that_was_deleted_by_hand_leads_nowhere(queue, workspace):
    RunChanges(queue).rename("old", "renamed")
    shutil.rmtree(workspace.runs / "renamed")
    for number in range(8):  # one of which may get the inode
        make_run(workspace, f"fresh-{number}")
    assert workspace.name_now("old", workspace.run_names()) is None


def test_a_restored_run_has_its_earlier_names_still(queue, workspace):
    changes = RunChanges(queue)
    changes.rename("old", "renamed")
    changes.delete("renamed")
    assert workspace.name_now("old", workspace.run_names()) is None
    changes.undo_delete()
    assert workspace.name_now("old", workspace.run_names()) == "renamed"


@pytest.mark.parametrize("name", [None, "", ["old"], {"old": 1}, 1, "../old", "/", "a\0b", "x" * 100_000])
def test_what_is_no_name_leads_nowhere(queue, workspace, name):
    RunChanges(queue).rename("old", "renamed")
    assert workspace.name_now(name, workspace.run_names()) is None
    assert chosen_in_watch(watch(queue), name)["value"] == "new"


def test_lists_of_adapters_follow_a_renamed_run(queue, workspace):
    def lists_of(tab, *chosen) -> tuple:
        blank = [None] * (len(tab.lists_event["inputs"]) - len(chosen))
        return tab.lists(*chosen, *blank)

    sample = built(lambda: SampleTab(workspace, Sampler(workspace), browser_state(workspace, "sample")))
    compare, export = built(lambda: (CompareTab(workspace, Sampler(workspace)), ExportTab(workspace)))
    RunChanges(queue).rename("old", "renamed")
    assert lists_of(sample, "old")[0]["value"] == "renamed"
    assert lists_of(sample, "old/checkpoint-7")[0]["value"] == "renamed/checkpoint-7"
    assert lists_of(sample, "new", None, "old")[1]["value"] == "renamed"
    assert lists_of(compare, ["old", "new"])[0]["value"] == ["renamed", "new"]
    assert lists_of(compare, ["old", "renamed"])[0]["value"] == ["renamed"]
    assert lists_of(export, "old")[0]["value"] == "renamed"
    for tab, chosen in ((sample, "old"), (export, "old"), (compare, ["old"])):  # as the tab had chosen it
        assert lists_of(tab, chosen, "old")[0]["value"] == ("new" if chosen == "old" else ["new"])


def test_what_the_browser_kept_follows_a_renamed_run(queue, workspace):
    sample = built(lambda: SampleTab(workspace, Sampler(workspace), browser_state(workspace, "sample")))
    RunChanges(queue).rename("old", "renamed")
    saved = dict(user=None, fields=dict(adapter="old/checkpoint-7", start_from="old", allocation="old"))
    fields = sample_memory.restored(saved, None, sample.fields, workspace)
    assert fields["adapter"] == "renamed/checkpoint-7"
    values = form_memory.restored(saved, None, workspace)["values"]
    assert values["start_from"] == values["allocation"] == "renamed"
    as_chosen_by_the_tab = ["old" if name == "adapter" else sample.fields[name].value for name in NAMES]
    assert sample.kept(gr.Request(username=None), "old", *as_chosen_by_the_tab)["fields"] == {}


def test_the_run_of_the_question_is_deleted_and_no_other(queue, workspace):
    def with_blocks() -> tuple:
        tab = WatchTab(workspace, queue, StatusStrip(queue, gr.Timer(1)))
        return tab.history, gr.context.Context.root_block.fns

    history, functions = built(with_blocks)
    question, shown, asked = history.ask("old")
    assert "Delete old " in question
    assert shown["visible"] is True
    assert history.withdraw("new", None)["visible"] is False
    assert history.withdraw("old", asked) == gr.skip()  # a change that is late
    assert history.withdraw("new", asked)["visible"] is False
    events = [event for event in functions.values() if (history.confirm._id, "click") in event.targets]
    assert events[0].inputs == [history.asked]
    changes = RunChanges(queue)
    changes.rename("old", "renamed")
    changes.rename("new", "old")
    for out_of_date in (asked, None):  # None: the page was restarted since
        with pytest.raises(ConfigError, match="choose Delete run again"):
            history.delete_run(out_of_date)
    history.delete_run(history.ask("old")[-1])
    assert workspace.run_names() == ["renamed"]
