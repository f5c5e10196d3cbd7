"""One look at the runs: the state of each is read once, so that all that is updated together agrees."""

from pathlib import Path

from gralora_diffusion.ui.run_queue import RunQueue, current_run, queued_runs


class Look:
    """What is read of a RunQueue, as it is at the first time that each is asked for."""

    def __init__(self, queue: RunQueue):
        self.workspace = queue.workspace
        self._queue = queue
        self._states: dict[Path, dict] = {}

    def state(self, run: Path) -> dict:
        if run not in self._states:
            self._states[run] = self._queue.state(run)
        return self._states[run]

    def current(self) -> str | None:
        return current_run(self)

    def queued(self) -> list[str]:
        return queued_runs(self)
