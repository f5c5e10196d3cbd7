"""Watch: of the chosen run the progress, loss, scores, sample images, log and report; then every run."""

from urllib.parse import quote

import gradio as gr

from gralora_diffusion.ui import run_cards, run_view
from gralora_diffusion.ui.config_form import IMAGES, from_config
from gralora_diffusion.ui.follow_log import FOLLOW_LOG
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, notify
from gralora_diffusion.ui.look import Look
from gralora_diffusion.ui.notifications import ASK
from gralora_diffusion.ui.page_words import page_words
from gralora_diffusion.ui.part_updates import Changes
from gralora_diffusion.ui.run_files import config_of, log_tail, read_job
from gralora_diffusion.ui.run_plots import loss_plot, plot_update, score_plot
from gralora_diffusion.ui.run_queue import ACTIVE, RunQueue
from gralora_diffusion.ui.run_references import free_run_name
from gralora_diffusion.ui.status_strip import StatusStrip
from gralora_diffusion.ui.tab_history import RunHistory
from gralora_diffusion.ui.workspace import Workspace, real_file

STOP, DEQUEUE = "Stop & save", "Remove from queue"
FIRST_STEPS = (
    "**The loss appears here after the first step.** Before it, the base model is loaded, images and "
    "captions are encoded, and the first sample images are generated."
)
NO_LOG = "No log: this run was started on the command line, which shows its output"
RESUMABLE = ("stopped", "failed", "killed", "canceled", "withdrawn", "unknown")


class WatchTab:
    """The tab's components, handlers and events but for Duplicate settings, which the page connects."""

    def __init__(self, workspace: Workspace, queue: RunQueue, strip: StatusStrip):
        self.workspace = workspace
        self.queue = queue
        self.strip = strip
        self.empty = gr.Markdown(
            "### Nothing has run yet\n"
            "Go to **Train** and press **Start**: with nothing changed, it trains on the bundled robot.",
            visible=False,
            elem_id="no-runs",
        )
        self.build_run_row()
        self.message = gr.Textbox(
            label="What happened", interactive=False, visible=False, elem_id="message", lines=2
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                self.build_plot()
            with gr.Column(scale=2, min_width=300):
                self.log = gr.Textbox(
                    label="Log", lines=17, max_lines=17, interactive=False, elem_id="log", autoscroll=False
                )
        self.samples = gr.Gallery(
            label="Sample images: a row for each prompt, the base or start adapter first, then step by step",
            columns=4,
            height="auto",
            format="png",
            elem_id="samples",
            object_fit="contain",
            visible=False,
        )
        self.history = RunHistory(queue, self.run)
        self.seen = gr.State({})
        self.connect()

    def build_run_row(self) -> None:
        with gr.Row(elem_classes="tight", elem_id="run-row"):
            self.run = gr.Dropdown(
                [], allow_custom_value=True, label="Run", elem_id="run", scale=3, min_width=200
            )
            self.stop = gr.Button(STOP, variant="stop", elem_id="stop", visible=False, min_width=110)
            self.resume = gr.Button("Resume", elem_id="resume", interactive=False, min_width=90)
            self.clone = gr.Button("Duplicate settings", elem_id="clone", interactive=False, min_width=80)
            self.notify = gr.Button("Notify me", elem_id="notify", min_width=80)
        with gr.Row(visible=False, elem_classes="tight", elem_id="done-row") as self.done:
            self.done_text = gr.Textbox(
                label="Next step",
                show_label=False,
                interactive=False,
                container=False,
                elem_id="done-text",
                scale=3,
            )
            self.try_it = gr.Button("Try it", variant="primary", elem_id="try-it", min_width=100)
            self.export = gr.Button("Export", elem_id="go-to-export", min_width=100)
            self.report = gr.Button(
                "Open report", elem_id="open-report", link_target="_blank", link="", min_width=110
            )

    def build_plot(self) -> None:
        self.waiting = gr.Markdown(visible=False, elem_id="waiting", elem_classes="hint")
        self.losses = gr.HTML(visible=False, elem_id="loss", elem_classes="plot")
        self.scores = gr.HTML(visible=False, elem_id="score-plot", elem_classes="plot")
        self.smoothing = gr.Slider(
            0, 0.99, 0.9, step=0.01, label="Smoothing", elem_id="smoothing", visible="hidden"
        )

    def connect(self) -> None:
        self.refresh_event = dict(
            fn=guarded(self.refresh),
            inputs=[self.strip.seen, self.run, self.smoothing, self.seen],
            outputs=[
                *self.strip.outputs,
                self.run,
                self.stop,
                self.resume,
                self.clone,
                self.history.rename,
                self.history.delete,
                self.message,
                self.waiting,
                self.losses,
                self.scores,
                self.smoothing,
                self.log,
                self.samples,
                self.history.cards,
                self.history.order,
                self.history.undo,
                self.history.empty,
                self.done,
                self.done_text,
                self.report,
                self.empty,
                self.seen,
            ],
            **QUIET,
        )
        self.history.connect(self.seen, self.refresh_event)
        self.log.change(None, None, None, js=FOLLOW_LOG, **PRIVATE)
        self.notify.click(None, None, self.notify, js=ASK, **PRIVATE)
        changes = [self.run.change, self.smoothing.release]
        gr.on(changes, trigger_mode="always_last", **self.refresh_event)
        stopped = self.stop.click(guarded(self.stop_run), self.run, None, queue=False, api_name="stop")
        stopped.then(**self.refresh_event)
        resumed = self.resume.click(guarded(self.resume_run), self.run, None, queue=False, api_name="resume")
        resumed.then(**self.refresh_event)

    def refresh(self, strip_before: list | None, chosen: str | None, smoothing: float, before: dict | None):
        """Updates of the strip and the tab where they have changed; of the whole tab at the first call."""
        look = Look(self.queue)
        strip = self.strip.updates(look, strip_before)
        return *strip, *self.updates(look, chosen, smoothing, before)

    def updates(self, look: Look, chosen: str | None, smoothing: float, before: dict | None) -> tuple:
        """Updates of what has changed since `before`, then what the browser has after them."""
        names = self.workspace.run_names()
        name = self.workspace.name_now(chosen, names) or look.current()
        run = self.workspace.runs / name if name else None
        progress = run_view.progress(look, run) if run else None
        state = progress.state if run else ""
        message = page_words(progress.message, self.workspace) if run and state != "done" else ""
        working = state in ("starting", "running")
        queued = state == "queued"
        # the strip above has the button for the current run
        stoppable = queued or (working and name != look.current())
        resumable = state in RESUMABLE
        steps = len(run_view.metrics(run)) if run else 0
        evaluated = len(run_view.evaluations(run)) if run else 0
        log = self.log_of(run) if run else ""
        has_report = bool(run and real_file(run / "report.html"))
        finished = state == "done" and name in self.workspace.adapter_names()

        changes = Changes(before)
        changes.add("run", [name, names], lambda: gr.update(choices=names, value=name))
        stop = gr.update(visible=stoppable, value=DEQUEUE if queued else STOP)
        changes.add("stop", stop, lambda: stop)
        changes.add("resume", resumable, lambda: gr.update(interactive=resumable))
        changes.add("clone", bool(name), lambda: gr.update(interactive=bool(name)))
        idle = bool(name) and state not in (*ACTIVE, "queued")
        for part in ("rename", "delete"):
            changes.add(part, idle, lambda: gr.update(interactive=idle))
        changes.add("message", message, lambda: gr.update(value=message, visible=bool(message)))
        waiting = "" if steps else self.waiting_text(look, name, state)
        changes.add("waiting", waiting, lambda: gr.update(value=waiting, visible=bool(waiting)))
        hundredth = max(1, steps // 100)  # a plot is much to send and to lay out
        drawn = steps // hundredth if progress and progress.state in ACTIVE else steps
        measured = [name, run_view.birth(run) if run else 0, evaluated]
        version = [*measured, hundredth, drawn, smoothing]
        changes.add("losses", version, lambda: plot_update(loss_plot(run, smoothing) if run else None))
        changes.add("scores", measured, lambda: plot_update(score_plot(run) if run else None))
        changes.add("smoothing", bool(steps), lambda: gr.update(visible=True if steps else "hidden"))
        hint = NO_LOG if run and not log and not read_job(run) else ""
        shown = bool(log or hint)
        changes.add("log", [log, hint], lambda: gr.update(value=log, placeholder=hint, visible=shown))
        changes.add("samples", [name, sample_versions(run)], lambda: self.sample_images(run))
        cards = run_cards.cards(look)
        changes.add("cards", cards, lambda: gr.update(value=cards or None, visible=bool(cards)))
        changes.add("order", queued, lambda: gr.update(visible=queued))
        deleted = self.history.changes.deleted()
        in_bin = [str(run) for run in deleted]
        changes.add("undo", in_bin, lambda: self.history.undo_update(deleted))
        changes.add("empty bin", in_bin, lambda: self.history.empty_update(deleted))
        changes.add("done", finished, lambda: gr.update(visible=finished))
        changes.add("done text", [name, finished], lambda: f"{name} is done. What next?" if finished else "")
        link = f"report/{quote(name)}/" if has_report else ""
        changes.add("report", link, lambda: gr.update(link=link or None, interactive=has_report))
        changes.add("empty", not names, lambda: gr.update(visible=not names))
        return *changes.updates, changes.versions

    @staticmethod
    def waiting_text(look: Look, name: str | None, state: str) -> str:
        """What is in the place of the loss before the first step."""
        if state == "queued":
            place = look.queued().index(name) + 1 if name in look.queued() else 1
            return f"**Number {place} in the queue.** It starts when every run before it has ended."
        return FIRST_STEPS if state in ACTIVE else ""

    def log_of(self, run) -> str:
        """The end of the log, with the labels of the form for flags."""
        return "\n".join(page_words(line, self.workspace) for line in log_tail(run).split("\n"))

    def sample_images(self, run):
        if run is None:
            return gr.update(value=None, visible=False)
        images, columns = run_view.samples(self.workspace, run)
        return gr.update(value=images, columns=columns, visible=bool(images))

    def stop_run(self, name: str) -> None:
        notify(self.queue.stop(name))

    def resume_run(self, name: str) -> None:
        notify(self.queue.resume(name))

    def form_of(self, name: str) -> tuple[dict, str]:
        """(values of the form, a name for the new run) of a run's config."""
        values = from_config(config_of(self.workspace.run(name)), self.workspace)
        return values, free_run_name(self.workspace, values[IMAGES])


def sample_versions(run) -> list:
    """[step, file, mtime] of each sample image of a run: what changes when an image does."""
    found = []
    for step, files in run_view.sample_files(run) if run else []:
        found += [[step, file.name, file.stat().st_mtime_ns] for file in files if file.exists()]
    return found
