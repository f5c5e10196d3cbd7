"""The page: header, status strip, tabs, and what goes from one tab to another."""

import gradio as gr

from gralora_diffusion.ui import run_view as watching
from gralora_diffusion.ui import tab_compare, tab_dataset, tab_export, tab_sample, tab_train, tab_watch
from gralora_diffusion.ui.config_form import BY_NAME
from gralora_diffusion.ui.drawing import Sampler
from gralora_diffusion.ui.handlers import plain, tell, whatever_came
from gralora_diffusion.ui.run_queue import AT_WORK, RunQueue
from gralora_diffusion.ui.theme import HEADER
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, free_name


def build(home: Workspace, work: RunQueue, studio: Sampler) -> gr.Blocks:
    with gr.Blocks(title="GraLoRA: personalise SDXL", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(HEADER, elem_id="header", padding=False)
        with gr.Column(elem_id="status"):
            with gr.Row(elem_id="strip"):
                strip = [
                    gr.Textbox(
                        "-",
                        label=label,
                        interactive=False,
                        max_lines=1,
                        elem_id=f"strip-{label.lower()}",
                        min_width=80,
                        container=True,
                    )
                    for label in ("Run", "State", "Step", "Speed", "Left", "Memory")
                ]
                stop = gr.Button(
                    "Stop & save",
                    variant="stop",
                    elem_id="strip-stop",
                    interactive=False,
                    min_width=110,
                    size="sm",
                )
            bar = gr.HTML(progress_bar(0), elem_id="bar", padding=False)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Dataset", id="dataset"):
                dataset = tab_dataset.build(home)
            with gr.Tab("Train", id="train"):
                train = tab_train.build(home, work)
            with gr.Tab("Watch", id="watch"):
                watch = tab_watch.build(home, work)
            with gr.Tab("Sample", id="sample") as sample_tab:
                sample = tab_sample.build(home, studio)
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare = tab_compare.build(home, studio)
            with gr.Tab("Export", id="export") as export_tab:
                export = tab_export.build(home)
        connect(page, home, work, tabs, dataset, train, watch)
        quiet = dict(queue=False, show_progress="hidden")
        timer, seen = gr.Timer(1), gr.State([])
        poll = dict(
            fn=plain(lambda before: status(work, before)),
            inputs=seen,
            outputs=[*strip, stop, bar, seen],
            **quiet,
        )
        timer.tick(**poll, trigger_mode="once", api_name="status")
        timer.tick(**watch.watch, trigger_mode="once")
        stop.click(plain(lambda: tell(stop_current(work))), None, None, queue=False, api_visibility="private")
        page.load(**poll, api_visibility="private")
        page.load(**watch.watch)
        page.load(plain(dataset.show), dataset.chosen, dataset.shown, api_visibility="private")
        page.load(**train.preview)
        for tab, lists in (
            (sample_tab, sample.listed),
            (compare_tab, compare.listed),
            (export_tab, export.listed),
        ):
            gr.on([page.load, tab.select], **lists)

        def list_runs() -> list:
            return watching.history(work)

        gr.api(plain(list_runs), api_name="list_runs")
    return page


def connect(page, home, work, tabs, dataset, train, watch) -> None:
    """Start goes to Watch, Clone to Train, and the set of Dataset is the one that Train learns."""
    sets = train.fields["instance_data_dir"]
    start = train.start.click(
        plain(train.begin),
        train.inputs,
        [train.name, watch.run, tabs, *train.told],
        show_progress="hidden",
        api_name="start",
        cancels=[train.checking],
        concurrency_id="start",
        concurrency_limit=1,
    )
    whatever_came(start, None, train.told[1], None, js=tab_train.MARK_AND_SHOW)
    start.then(**watch.watch)

    def fresh():
        """What has come into the folders since the page was built: a browser that opens it later gets it too."""
        names = home.set_names()
        own = [gr.update(choices=names if name == "instance_data_dir" else ["", *names]) for name in of_sets]
        return (
            gr.update(choices=names),
            gr.update(choices=home.base_names()),
            free_name(BUNDLED, home.run_names()),
            *own,
        )

    of_sets = [name for name in train.fields if BY_NAME[name].kind == "images"]
    bases = train.fields["pretrained_model_name_or_path"]
    page.load(
        plain(fresh),
        None,
        [dataset.chosen, bases, train.name, *(train.fields[name] for name in of_sets)],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )

    def learn(name):
        home.image_set(name)
        return gr.update(choices=home.set_names(), value=name), free_name(name, home.run_names())

    dataset.chosen.change(
        plain(learn),
        dataset.chosen,
        [sets, train.name],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )

    def clone(name):
        values, new = watch.to_clone(name)
        return *train.filled(values), new, gr.Tabs(selected="train")

    watch.clone.click(
        plain(clone), watch.run, [*train.fields.values(), train.name, tabs], api_visibility="private"
    )


def status(work: RunQueue, before: list) -> tuple:
    """The strip's texts, whether Stop can be pressed, the bar; what has not changed is left as it is."""
    name = watching.at_work(work)
    now = watching.progress(work, work.home.runs / name) if name else {}
    step = f"{now['step']} / {now['steps']}" if now.get("steps") else "-"
    memory = f"{now['memory'] / 2**30:.2f} GiB" if now.get("memory") else "-"
    texts = [
        name or "-",
        now.get("state", "nothing has run yet"),
        step,
        watching.speed(now.get("seconds")),
        watching.clock(now.get("left")),
        memory,
    ]
    stoppable = now.get("state") in ("starting", "running")
    fraction = now["step"] / now["steps"] if now.get("steps") else 0
    values = [*texts, stoppable, round(fraction, 4)]
    updates = [
        gr.skip() if len(before) > i and before[i] == value else value for i, value in enumerate(values)
    ]
    if updates[6] in (True, False):
        updates[6] = gr.update(interactive=stoppable)
    if isinstance(updates[7], int | float):
        updates[7] = progress_bar(fraction)
    return *updates, values


def progress_bar(fraction: float) -> str:
    percent = round(100 * min(1.0, max(0.0, float(fraction))), 1)
    return f'<div class="bar" role="progressbar" aria-label="progress of the run" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'


def stop_current(work: RunQueue) -> str:
    name = watching.at_work(work)
    if name is None or work.state(work.home.runs / name)["state"] not in AT_WORK:
        return "no run is at work"
    return work.stop(name)
