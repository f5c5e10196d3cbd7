"""Watch: every run, and of the chosen one the progress, loss, sample images and log."""

from types import SimpleNamespace

import gradio as gr

from gralora_diffusion.ui import run_view as watching
from gralora_diffusion.ui.config_form import from_config
from gralora_diffusion.ui.handlers import plain, tell
from gralora_diffusion.ui.run_queue import AT_WORK, RunQueue, config_of, log_tail
from gralora_diffusion.ui.workspace import Workspace, free_name

RESUMABLE = ("stopped", "failed", "killed", "withdrawn", "unknown")
HEAD = ["run", "state", "step", "loss", "adapter", "rank", "base"]


def build(home: Workspace, work: RunQueue) -> SimpleNamespace:
    empty = gr.Markdown(
        "### Nothing has run yet\nGo to **Train** and press **Start**: with nothing changed, it learns the bundled robot.",
        visible=False,
        elem_id="no-runs",
    )
    with gr.Row(elem_classes="tight", elem_id="run-row"):
        run = gr.Dropdown([], allow_custom_value=True, label="Run", elem_id="run", scale=3, min_width=200)
        stop = gr.Button("Stop & save", variant="stop", elem_id="stop", interactive=False, min_width=110)
        resume = gr.Button("Resume", elem_id="resume", interactive=False, min_width=90)
        clone = gr.Button("Clone", elem_id="clone", interactive=False, min_width=80)
    message = gr.Textbox(label="What happened", interactive=False, visible=False, elem_id="message", lines=2)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            plot = gr.LinePlot(
                visible=False,  # drawn without points, it would take steps for names and keep to that
                x="step",
                y="loss",
                color="line",
                title="Loss",
                height=280,
                elem_id="loss",
                color_map={"each step": "#94a3b855", "smoothed": "#0d9488"},
            )
            smoothing = gr.Slider(0, 0.99, 0.9, step=0.01, label="Smoothing", elem_id="smoothing")
        with gr.Column(scale=2, min_width=300):
            log = gr.Textbox(
                label="Log", lines=17, max_lines=17, interactive=False, elem_id="log", autoscroll=True
            )
    images = gr.Gallery(
        label="Sample images: a row for each prompt, the base first, then step by step",
        columns=4,
        height="auto",
        format="png",
        elem_id="samples",
        object_fit="contain",
    )
    history = gr.Dataframe(
        headers=HEAD, datatype="str", interactive=False, label="All runs", elem_id="history", wrap=True
    )
    seen = gr.State({})

    def choose(current, names):
        """The run on show: the one that was chosen, or the one at work."""
        return current if current in names else watching.at_work(work)

    def refresh(current, weight, before):
        """What has changed since `before`; everything at the first call."""
        names = home.run_names()
        current = choose(current, names)
        now, parts = {}, {}

        def part(name, version, make):
            now[name] = version
            parts[name] = make() if before.get(name) != version else gr.skip()

        folder = home.runs / current if current else None
        told = watching.progress(work, folder) if folder else dict(state="", message="")
        state = told["state"]
        lines = watching.metrics(folder) if folder else []
        files = watching.sample_files(folder) if folder else []
        drawn = [(step, [(p.name, p.stat().st_mtime_ns) for p in f if p.exists()]) for step, f in files]
        rows, tail = watching.history(work), log_tail(folder) if folder else ""
        part("run", [current, names], lambda: gr.update(choices=names, value=current))
        part(
            "stop",
            state in (*AT_WORK, "queued") and state != "stopping",
            lambda: gr.update(interactive=now["stop"]),
        )
        part("resume", state in RESUMABLE, lambda: gr.update(interactive=now["resume"]))
        part("clone", bool(current), lambda: gr.update(interactive=now["clone"]))
        part(
            "message",
            told["message"] if state != "done" else "",
            lambda: gr.update(value=now["message"], visible=bool(now["message"])),
        )
        part(
            "plot",
            [current, len(lines), weight],
            lambda: gr.update(value=watching.curve(folder, weight) if lines else None, visible=bool(lines)),
        )
        part("log", tail, lambda: tail)
        part("images", [current, drawn], lambda: grid(folder))
        part("history", rows, lambda: rows or None)
        part("empty", not names, lambda: gr.update(visible=not names))
        return *parts.values(), now

    def grid(folder):
        if folder is None:
            return gr.update(value=None)
        shown, columns = watching.samples(home, folder)
        return gr.update(value=shown, columns=columns)

    def ask_stop(name):
        tell(work.stop(name))

    def ask_resume(name):
        tell(work.resume(name))

    def to_clone(name):
        """(values of the form, a name for the new run) of a run's config."""
        values = from_config(config_of(home.run(name)), home)
        return values, free_name(values["instance_data_dir"], home.run_names())

    def pick(event: gr.SelectData):
        names = home.run_names()
        row = event.index[0] if isinstance(event.index, list | tuple) else -1
        return names[row] if isinstance(row, int) and 0 <= row < len(names) else gr.skip()

    shown = [run, stop, resume, clone, message, plot, log, images, history, empty, seen]
    watch = dict(
        fn=plain(refresh),
        inputs=[run, smoothing, seen],
        outputs=shown,
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    history.select(plain(pick), None, run, api_visibility="private", queue=False)
    gr.on([run.change, smoothing.release], trigger_mode="always_last", **watch)
    stop.click(plain(ask_stop), run, None, queue=False, api_name="stop").then(**watch)
    resume.click(plain(ask_resume), run, None, queue=False, api_name="resume").then(**watch)
    return SimpleNamespace(run=run, watch=watch, clone=clone, to_clone=to_clone)
