"""The current run in a strip above all tabs, with Stop and a progress bar."""

import gradio as gr

from gralora_diffusion.console import clock_time, speed_text
from gralora_diffusion.ui import run_view
from gralora_diffusion.ui.card import device_name
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, notify
from gralora_diffusion.ui.look import Look
from gralora_diffusion.ui.notifications import FOLLOW
from gralora_diffusion.ui.run_files import WORDS
from gralora_diffusion.ui.run_queue import RunQueue

WORKING, IDLE = 2, 5  # seconds between two looks at the run
ACTIVE = ("queued", "starting", "running", "stopping")
STRIP = ("Run", "State", "Step", "Speed", "Time left", "Now", "Memory", "Device")
NOTHING = "-"  # the value of a text that is hidden


class StatusStrip:
    """Texts, of which those without a value are hidden; Watch updates `outputs` with its own.

    seen: the values that the browser has.
    """

    def __init__(self, queue: RunQueue, timer: gr.Timer):
        self.queue = queue
        with gr.Column(elem_id="status"):
            with gr.Row(elem_id="strip"):
                texts = [self.build_text(label) for label in STRIP]
                self.stop = gr.Button(
                    "Stop & save",
                    variant="stop",
                    elem_id="strip-stop",
                    interactive=False,
                    min_width=110,
                    size="sm",
                )
            bar = gr.HTML(progress_bar(0), elem_id="bar", padding=False)
        self.seen = gr.State([])
        self.outputs = [*texts, self.stop, bar, timer, self.seen]
        self.refresh_event = dict(fn=guarded(self.refresh), inputs=self.seen, outputs=self.outputs, **QUIET)
        self.stopping = self.stop.click(guarded(self.stop_run), None, None, queue=False, **PRIVATE)
        shown = dict(zip(STRIP, texts, strict=True))
        self.run, self.state = shown["Run"], shown["State"]
        followed = [shown[label] for label in ("Run", "State", "Step")]
        gr.on([text.change for text in followed], None, followed, None, js=FOLLOW, **PRIVATE)

    @staticmethod
    def build_text(label: str) -> gr.Textbox:
        return gr.Textbox(
            NOTHING,
            label=label,
            interactive=False,
            max_lines=1,
            elem_id=f"strip-{label.lower().replace(' ', '-')}",
            min_width=80,
            container=True,
            visible=True if label == "State" else "hidden",
        )

    def refresh(self, before: list | None) -> tuple:
        return self.updates(Look(self.queue), before)

    def updates(self, look: Look, before: list | None) -> tuple:
        """Updates of the texts, Stop and the bar, skipped where `before` has the same; then all values."""
        *texts, stoppable, fraction = now = strip_values(look)
        seconds = WORKING if texts[STRIP.index("State")] in ACTIVE else IDLE
        updates = [gr.update(value=text, visible="hidden" if text == NOTHING else True) for text in texts]
        updates += [gr.update(interactive=stoppable), progress_bar(fraction), gr.Timer(seconds)]
        now = [*now, seconds]
        before = before or [None] * len(now)
        for i, value in enumerate(now):
            if before[i] == value:
                updates[i] = gr.skip()
        return *updates, now

    def stop_run(self) -> None:
        notify(self.queue.stop_active())

    def status(self) -> dict:
        """{label: text} of the current run."""
        return dict(zip(STRIP, strip_values(Look(self.queue)), strict=False))


def strip_values(look: Look) -> list:
    """The texts of STRIP, whether the run can be stopped, and the fraction of its steps that are done."""
    name = look.current()
    if name is None:
        return [NOTHING, "idle", *[NOTHING] * 5, device_name(), False, 0]
    now = run_view.progress(look, look.workspace.runs / name)
    return [
        name,
        WORDS.get(now.state, now.state),
        f"{now.step} / {now.steps}" if now.steps else NOTHING,
        speed_text(now.seconds),
        clock_time(now.seconds_left),
        now.doing or NOTHING,
        run_view.memory_text(now),
        now.device or device_name(),
        now.state in ("starting", "running"),
        round(now.step / now.steps, 4) if now.steps else 0,
    ]


def progress_bar(fraction: float) -> str:
    percent = round(100 * min(1.0, max(0.0, float(fraction))), 1)
    role = f'role="progressbar" aria-label="progress of the run" aria-valuenow="{percent}"'
    return f'<div class="bar" {role}><i style="width:{percent}%"></i></div>'
