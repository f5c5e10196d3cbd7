"""The lower part of Watch: the newest runs as cards; rename, delete and reorder the chosen one."""

from pathlib import Path

import gradio as gr

from gralora_diffusion.console import counted
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import removed, run_cards
from gralora_diffusion.ui.export_sizes import size_text
from gralora_diffusion.ui.handlers import PRIVATE, guarded, notify
from gralora_diffusion.ui.housekeeping import size_of
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue
from gralora_diffusion.ui.workspace import identity

CONFIRM = """() => [String(confirm('Delete all runs in the bin for good?'))]"""


class RunHistory:
    """Its components and handlers; Watch updates `cards`, `order`, `undo`, and follows changes of `run`."""

    def __init__(self, queue: RunQueue, run: gr.Dropdown):
        self.queue = queue
        self.workspace = queue.workspace
        self.changes = RunChanges(queue)
        self.run = run
        self.cards = gr.Gallery(
            label=f"The newest runs, at most {run_cards.MOST}: choose one to watch it",
            columns=6,
            height="auto",
            format="png",
            allow_preview=False,
            object_fit="cover",
            elem_id="history",
            buttons=[],
            visible=False,
        )
        with gr.Row(visible=False, elem_classes="tight", elem_id="confirm-delete") as self.confirmation:
            self.question = gr.Textbox(
                label="Before deleting",
                show_label=False,
                interactive=False,
                container=False,
                elem_id="delete-question",
                scale=4,
            )
            self.confirm = gr.Button("Delete", variant="stop", elem_id="confirm-delete-run", min_width=80)
            self.keep = gr.Button("Keep", elem_id="keep-run", min_width=80)
        self.asked = gr.State()  # (name, identity) of the run that the question is about
        with gr.Row(elem_classes="tight", elem_id="run-changes"):
            self.name = gr.Textbox(
                label="New name for the run",
                max_length=64,
                elem_id="new-run-name",
                min_width=180,
                scale=2,
            )
            self.rename = gr.Button("Rename", elem_id="rename-run", interactive=False, min_width=80)
            self.delete = gr.Button("Delete run", elem_id="delete-run", interactive=False, min_width=80)
            self.undo = gr.Button("Undo delete", elem_id="undo-delete-run", visible=False, min_width=80)
            self.empty = gr.Button("Empty bin", elem_id="empty-bin", visible=False, min_width=80)
            self.confirmed = gr.Textbox("", label="Confirmed", visible=False)
            with gr.Row(visible=False, elem_classes="tight", elem_id="queue-order") as self.order:
                self.earlier = gr.Button("Earlier in the queue", elem_id="queue-earlier", min_width=80)
                self.later = gr.Button("Later in the queue", elem_id="queue-later", min_width=80)

    def connect(self, seen: gr.State, refresh_event: dict) -> None:
        """seen: that of Watch, whose part "run" has the names in the order of the cards."""
        self.cards.select(guarded(self.run_of_card), seen, self.run, queue=False, **PRIVATE)
        quiet = dict(show_progress="hidden", **PRIVATE)  # in the queue, without which no error is shown
        names = [self.run, self.name]
        wanted = [self.rename.click, self.name.submit]
        renamed = gr.on(wanted, guarded(self.rename_run), names, names, **quiet)
        question = [self.question, self.confirmation, self.asked]
        self.delete.click(guarded(self.ask), self.run, question, **quiet)
        self.keep.click(lambda: gr.update(visible=False), None, self.confirmation, **quiet)
        self.run.change(guarded(self.withdraw), [self.run, self.asked], self.confirmation, **quiet)
        deleted = self.confirm.click(
            guarded(self.delete_run), self.asked, [self.run, self.confirmation], **quiet
        )
        undone = self.undo.click(guarded(self.undo_delete), None, self.run, **quiet)
        emptied = self.empty.click(guarded(self.empty_bin), self.confirmed, None, js=CONFIRM, **quiet)
        moved = [self.earlier.click(guarded(self.mover(-1)), self.run, None, **quiet)]
        moved.append(self.later.click(guarded(self.mover(1)), self.run, None, **quiet))
        for changed in (renamed, deleted, undone, emptied, *moved):
            changed.then(**refresh_event)

    def run_of_card(self, seen: dict | None, event: gr.SelectData):
        """The run of the card that was clicked; seen: what the browser has."""
        place = event.index
        shown = (seen or {}).get("run") or [None, []]
        names = shown[1] if isinstance(shown, list) and len(shown) == 2 else []
        if type(place) is not int or not isinstance(names, list) or not 0 <= place < len(names):
            return gr.skip()
        return names[place] if names[place] in self.workspace.run_names() else gr.skip()

    def rename_run(self, run: str, name: str) -> tuple:
        renamed = self.changes.rename(run, name)
        notify(f"{run} is now {renamed}")
        return gr.update(choices=self.workspace.run_names(), value=renamed), ""

    def ask(self, run: str) -> tuple:
        folder = self.changes.idle_run(run, "delete")
        question = f"Delete {run} with its adapter, images and checkpoints?"
        return question, gr.update(visible=True), (run, identity(folder))

    @staticmethod
    def withdraw(run: str, asked: tuple | None):
        """Hide the question when another run is chosen than the one that it is about."""
        return gr.skip() if asked and run == asked[0] else gr.update(visible=False)

    def delete_run(self, asked: tuple | None) -> tuple:
        run, folder = asked or (None, None)
        if folder is None or identity(self.workspace.runs / run) != folder:
            raise ConfigError("the question is out of date: choose Delete run again")
        self.changes.delete(run)
        notify(f"{run} was deleted. Undo delete restores it within {removed.DAYS} days")
        names = self.workspace.run_names()
        chosen = gr.update(choices=names, value=names[0] if names else None)
        return chosen, gr.update(visible=False)

    def undo_delete(self):
        name = self.changes.undo_delete()
        notify(f"{name} was restored")
        return gr.update(choices=self.workspace.run_names(), value=name)

    def empty_bin(self, confirmed: str) -> None:
        if confirmed == "true":
            notify(f"{counted(self.changes.delete_for_good(), 'run')} deleted for good")

    @staticmethod
    def undo_update(deleted: list[Path]):
        """deleted: the runs in the bin, the latest last."""
        if not deleted:
            return gr.update(visible=False)
        return gr.update(value=f"Undo delete of {deleted[-1].name}", visible=True)

    @staticmethod
    def empty_update(deleted: list[Path]):
        if not deleted:
            return gr.update(visible=False)
        size = sum(size_of(run) for run in deleted)
        return gr.update(value=f"Empty bin ({size_text(size)})", visible=True)

    def mover(self, places: int):
        def move(run: str) -> None:
            notify(self.queue.move(run, places))

        return move
