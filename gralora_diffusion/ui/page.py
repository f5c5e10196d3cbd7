"""The page: header, status strip, tabs, and what goes from one tab to another."""

import gradio as gr

from gralora_diffusion.ui import run_view
from gralora_diffusion.ui.config_form import IMAGES
from gralora_diffusion.ui.follow_log import FOLLOW_LOG
from gralora_diffusion.ui.form_memory import browser_state
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, on_end
from gralora_diffusion.ui.mistakes import MARK, MARK_AND_SHOW
from gralora_diffusion.ui.new_adapters import connect_new_adapters
from gralora_diffusion.ui.notifications import LABEL
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.sampler import Sampler
from gralora_diffusion.ui.status_strip import WORKING, StatusStrip
from gralora_diffusion.ui.tab_compare import CompareTab
from gralora_diffusion.ui.tab_dataset import DatasetTab
from gralora_diffusion.ui.tab_export import ExportTab
from gralora_diffusion.ui.tab_sample import SampleTab
from gralora_diffusion.ui.tab_train import TrainTab
from gralora_diffusion.ui.tab_watch import WatchTab
from gralora_diffusion.ui.theme import HEADER
from gralora_diffusion.ui.workspace import Workspace

# Gradio loads what is visible, whatever tab is open, and for a gallery it loads a video player.
OPENED = "() => ({__type__: 'update', visible: true})"
TO_THE_TOP = "() => { scrollTo(0, 0); return []; }"  # a list: the inputs of the event
TO_TOP = dict(fn=None, inputs=None, outputs=None, js=TO_THE_TOP, **PRIVATE)  # after another tab is opened
COUNT = """(strip, watch) => {  // count the ticks of what is in sight
    const row = document.getElementById('run-row');
    return row?.offsetParent ? [strip, watch + 1] : [strip + 1, watch];
}"""


def build(workspace: Workspace, queue: RunQueue, sampler: Sampler) -> gr.Blocks:
    """The whole page, with all events connected."""
    with gr.Blocks(
        title="GraLoRA: train adapters for SDXL", analytics_enabled=False, fill_width=True
    ) as page:
        gr.HTML(HEADER, elem_id="header", padding=False)
        timer = gr.Timer(WORKING)
        strip = StatusStrip(queue, timer)
        # outside of the tabs, which are built when they are opened
        saved_form, saved_fields = (browser_state(workspace, form) for form in ("train", "sample"))
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Dataset", id="dataset"):
                dataset = DatasetTab(workspace)
            with gr.Tab("Train", id="train") as train_tab:
                train = TrainTab(workspace, queue, saved_form)
            with gr.Tab("Watch", id="watch") as watch_tab:
                watch = WatchTab(workspace, queue, strip)
            with gr.Tab("Sample", id="sample") as sample_tab:
                sample = SampleTab(workspace, sampler, saved_fields)
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare = CompareTab(workspace, sampler)
            with gr.Tab("Export", id="export") as export_tab:
                export = ExportTab(workspace)
        connect_start(tabs, train, watch)
        connect_clone(tabs, train, watch)
        connect_next(tabs, watch, sample.adapter, export.adapter)
        connect_sets(workspace, dataset, train)
        dataset.next.click(lambda: gr.Tabs(selected="train"), None, tabs, js=TO_THE_TOP, **QUIET)
        connect_visibility(timer)
        connect_timer(timer, strip, watch)
        page.load(**strip.refresh_event)
        strip.stopping.then(**watch.refresh_event)
        watch_tab.select(**watch.refresh_event)
        page.load(None, None, watch.notify, js=LABEL, **PRIVATE)
        watch_tab.select(None, None, None, js=FOLLOW_LOG, **PRIVATE)
        connect_form(page, train, dataset)
        page.load(**sample.restore_event)
        gr.on([page.load, train_tab.select], **train.lists_event)
        connect_checks(train_tab, train)
        for tab, part in ((sample_tab, sample), (compare_tab, compare), (export_tab, export)):
            tab.select(**part.lists_event)
            connect_new_adapters(strip, part.lists_event)
        sample.history.refresh_on(sample_tab.select)
        compare_tab.select(**compare.blind.refresh)
        for tab, gallery in ((sample_tab, sample.gallery), (compare_tab, compare.gallery)):
            tab.select(None, None, gallery, js=OPENED, **PRIVATE)
        gr.api(guarded(strip.status), api_name="status")

        def list_runs() -> list:
            return run_view.history(queue)

        gr.api(guarded(list_runs), api_name="list_runs")
    return page


def connect_visibility(timer: gr.Timer) -> None:
    """A page that is hidden, in a tab behind another, asks for nothing."""
    for name, active in (("page-hidden", "false"), ("page-visible", "true")):
        button = gr.Button(name, elem_id=name, elem_classes="never")
        update = f"() => ({{__type__: 'update', active: {active}}})"
        button.click(None, None, timer, js=update, **PRIVATE)


def connect_timer(timer: gr.Timer, strip: StatusStrip, watch: WatchTab) -> None:
    """The strip is updated at each tick, and Watch with it while it is in sight.

    A browser spends some 10 ms on each output of an event, changed or not.
    """
    of_strip, of_watch = (gr.Number(0, visible="hidden") for _ in range(2))
    timer.tick(None, [of_strip, of_watch], [of_strip, of_watch], js=COUNT, **PRIVATE)
    of_strip.change(**strip.refresh_event, trigger_mode="once")
    of_watch.change(**watch.refresh_event, trigger_mode="once")


def connect_start(tabs: gr.Tabs, train: TrainTab, watch: WatchTab) -> None:
    """Start queues the run and goes to Watch."""
    start = train.start.click(
        guarded(train.start_run),
        train.inputs,
        [train.name, watch.run, tabs, *train.mistakes],
        show_progress="hidden",
        api_name="start",
        cancels=[train.checking],
        concurrency_id="start",
        concurrency_limit=1,
    )
    on_end(start, None, train.marks, None, js=MARK_AND_SHOW)
    start.success(**TO_TOP)
    start.then(**watch.refresh_event)


def connect_clone(tabs: gr.Tabs, train: TrainTab, watch: WatchTab) -> None:
    """Duplicate settings fills the form with a run's config and goes to Train."""

    def clone(run):
        values, name = watch.form_of(run)
        return *train.filled(values), name, gr.Tabs(selected="train")

    cloned = watch.clone.click(guarded(clone), watch.run, [*train.form, train.name, tabs], **PRIVATE)
    cloned.success(**TO_TOP)


def connect_form(page: gr.Blocks, train: TrainTab, dataset: DatasetTab) -> None:
    """When the page is loaded, the form is as the browser kept it, with its dataset, command and estimate."""
    loaded = page.load(**train.restore_event)
    loaded.then(guarded(dataset.show), train.fields[IMAGES], [dataset.chosen, *dataset.set_view], **PRIVATE)
    for event in (train.preview_event, train.estimate_event):
        loaded = loaded.then(**event)
        loaded.then(None, train.marks, None, js=MARK)


def connect_checks(train_tab: gr.Tab, train: TrainTab) -> None:
    """When Train is opened, the form is checked and its estimate renewed.

    Images or captions may have changed on Dataset, and a run of the same work may have ended.
    """
    opened = train_tab.select(**train.preview_event)
    opened.then(None, train.marks, None, js=MARK)
    renewed = train_tab.select(**train.estimate_event)
    renewed.then(None, train.marks, None, js=MARK)


def connect_next(tabs: gr.Tabs, watch: WatchTab, to_sample: gr.Dropdown, to_export: gr.Dropdown) -> None:
    """Try it and Export go to their tabs with the run's adapter."""

    def choose(tab: str):
        def chosen(run):
            watch.workspace.adapter(run)
            choices = watch.workspace.adapter_choices()
            return gr.update(choices=choices, value=run), gr.Tabs(selected=tab)

        return guarded(chosen)

    watch.try_it.click(choose("sample"), watch.run, [to_sample, tabs], **PRIVATE).success(**TO_TOP)
    watch.export.click(choose("export"), watch.run, [to_export, tabs], **PRIVATE).success(**TO_TOP)


def connect_sets(workspace: Workspace, dataset: DatasetTab, train: TrainTab) -> None:
    """The set of Dataset is the one that Train trains on."""
    images = train.fields[IMAGES]

    def choose(name, trained, run):
        workspace.image_set(name)
        suggested = gr.skip() if name == trained else train.suggest_name(name, run)
        return gr.update(choices=workspace.set_names(), value=name), suggested

    outputs = [images, train.new_name.received]
    dataset.chosen.change(guarded(choose), [dataset.chosen, images, train.name], outputs, **QUIET)
