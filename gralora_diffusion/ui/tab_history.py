"""The lower part of Watch: all runs as cards; rename, delete and reorder the chosen one."""

import gradio as gr

from gralora_diffusion.ui.handlers import PRIVATE, guarded, notify
from gralora_diffusion.ui.run_changes import RunChanges
from gralora_diffusion.ui.run_queue import RunQueue


class RunHistory:
    """Its components and handlers; Watch updates `cards` and `order`, and follows changes of `run`."""

    def __init__(self, queue: RunQueue, run: gr.Dropdown):
        self.queue = queue
        self.workspace = queue.workspace
        self.changes = RunChanges(queue)
        self.run = run
        self.cards = gr.Gallery(
            label="All runs: choose one to watch it",
            columns=6,
            height="auto",
            format="png",
            allow_preview=False,
            object_fit="cover",
            elem_id="history",
            buttons=[],
        )
        with gr.Row(elem_classes="tight"):
            self.name = gr.Textbox(
                label="New name for the run",
                max_length=64,
                elem_id="new-run-name",
                min_width=180,
                scale=2,
            )
            self.rename = gr.Button("Rename", elem_id="rename-run", min_width=80)
            self.delete = gr.Button("Delete run", elem_id="delete-run", min_width=80)
            self.undo = gr.Button("Undo delete", elem_id="undo-delete-run", visible=False, min_width=80)
            with gr.Row(visible=False, elem_classes="tight", elem_id="queue-order") as self.order:
                self.earlier = gr.Button("Earlier in the queue", elem_id="queue-earlier", min_width=80)
                self.later = gr.Button("Later in the queue", elem_id="queue-later", min_width=80)
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

    def connect(self, names: gr.State, refresh_event: dict) -> None:
        """names: the `seen` of Watch, whose part "run" has the names in the order of the cards."""
        self.cards.select(guarded(self.run_of_card), names, self.run, queue=False, **PRIVATE)
        quiet = dict(show_progress="hidden", **PRIVATE)  # in the queue, without which no error is shown
        renamed = self.rename.click(
            guarded(self.rename_run), [self.run, self.name], [self.run, self.name], **quiet
        )
        question = [self.question, self.confirmation]
        self.delete.click(guarded(self.ask), self.run, question, **quiet)
        self.keep.click(lambda: gr.update(visible=False), None, self.confirmation, **quiet)
        self.run.change(lambda: gr.update(visible=False), None, self.confirmation, **quiet)
        deleted = self.confirm.click(
            guarded(self.delete_run), self.run, [self.run, self.confirmation, self.undo], **quiet
        )
        undone = self.undo.click(guarded(self.undo_delete), None, [self.run, self.undo], **quiet)
        moved = [self.earlier.click(guarded(self.mover(-1)), self.run, None, **quiet)]
        moved.append(self.later.click(guarded(self.mover(1)), self.run, None, **quiet))
        for changed in (renamed, deleted, undone, *moved):
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
        self.changes.idle_run(run, "delete")
        question = f"Delete {run} with its adapter, images and checkpoints?"
        return question, gr.update(visible=True)

    def delete_run(self, run: str) -> tuple:
        self.changes.delete(run)
        notify(f"{run} was deleted. Undo delete restores it until the page is restarted")
        names = self.workspace.run_names()
        chosen = gr.update(choices=names, value=names[0] if names else None)
        return chosen, gr.update(visible=False), gr.update(visible=True)

    def undo_delete(self) -> tuple:
        name = self.changes.undo_delete()
        notify(f"{name} was restored")
        chosen = gr.update(choices=self.workspace.run_names(), value=name)
        return chosen, gr.update(visible=bool(self.changes.deleted))

    def mover(self, places: int):
        def move(run: str) -> None:
            notify(self.queue.move(run, places))

        return move
