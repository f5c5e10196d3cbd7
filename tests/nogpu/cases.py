"""cases.py CASES.json FOUND.json: commands on the stub, one after the other in one process.

CASES.json: {name: {"commands": [[command, options ...], ...],
                    "full": the place of full_card.full_during() in the last command, or none,
                    "reads": the value of stand_ins.set_reads(), or none,
                    "late": whether steps are read late, as without this script}}
Beside those of gralora there is a command page: page HOME ADAPTER draws an image as the page does.
FOUND.json: {name: what run_case() found}
"""

import contextlib
import dataclasses
import gc
import io
import json
import os
import sys
import traceback
import warnings
from pathlib import Path

import card

if __name__ == "__main__":
    card.start()

import counters
import full_card
import gradio as gr
import phases
import stand_ins
import torch

from gralora_diffusion.cli.main import main as gralora
from gralora_diffusion.ui.handlers import guarded
from gralora_diffusion.ui.sampler import ImageRequest, Sampler
from gralora_diffusion.ui.workspace import Workspace

GIB = 4.0  # of the card


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    recorder = phases.Recorder(printing=False)
    recorder.install()
    stand_ins.color_images()
    warnings.simplefilter("always", UserWarning)  # in every case, not in the first that meets it
    counters.set_limit(GIB)
    found = {}
    for name, case in cases.items():
        print(f"--- {name}", file=sys.stderr, flush=True)
        found[name] = run_case(case, recorder)
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1))


def run_case(case: dict, recorder: phases.Recorder) -> dict:
    """What run_command() gives for the last command, its phases, and whether it met a full card."""
    recorder.lines.clear()
    recorder.at_once = not case.get("late")
    stand_ins.set_reads(case.get("reads", 0.0))
    *before, last = case["commands"]
    for command in before:
        done = run_command(command)
        if done["code"] != 0:
            return done | dict(phases=[], met=False)
    place = case.get("full")
    with full_card.full_during(place) if place else contextlib.nullcontext([]) as met:
        done = run_command(last)
    torch.cuda.reset_peak_memory_stats()
    return done | dict(phases=list(recorder.lines), met=bool(met))


def run_command(command: list[str]) -> dict:
    """Exit code (None where it ended with a traceback), what it printed, the traceback, the run's status."""
    said = io.StringIO()
    code, trace = 0, ""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            page(*command[1:]) if command[0] == "page" else gralora(command)
        except SystemExit as stop:
            code = stop.code or 0
        except gr.Error as error:  # what a browser shows
            code = 1
            print(f"page: {error.message}")
        except BaseException:
            code, trace = None, traceback.format_exc()
    forget_run()
    return dict(code=code, said=said.getvalue(), traceback=trace, status=status_of(command))


def status_of(command: list[str]) -> dict:
    """What a training command's run folder says of it; {} where there is none."""
    if "--output_dir" not in command:
        return {}
    file = Path(command[command.index("--output_dir") + 1], "status.json")
    return json.loads(file.read_text()) if file.is_file() else {}


@guarded
def page(home: str, adapter: str) -> None:
    """An image and the base's beside it, as the page draws them; errors are what a browser would get."""
    sampler = Sampler(Workspace(Path(home)))
    request = ImageRequest("a robot", 0, ((adapter, 1.0),), 2, None)
    try:
        for wanted in (dataclasses.replace(request, adapters=()), request):
            sampler.generate(wanted, None)
    finally:
        sampler.unload()


def forget_run() -> None:
    """Let the next run choose its precision, and start on an empty card."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # accelerate's, for processes that it starts
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
