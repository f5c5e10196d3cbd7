"""Do the runs of a plan in this process, shared with others that have the same folder."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from gralora_diffusion.console import note
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.experiments.plan import SweepPlan
from gralora_diffusion.experiments.queue import do_runs, others_at_work
from gralora_diffusion.experiments.run import run_experiment
from gralora_diffusion.training.signals import Interrupts


def do_sweep(plan: SweepPlan, folder: Path, mixed_precision: str | None = None) -> None:
    """All runs of the plan: a line of the folder's runs.jsonl for each.  Raises Stopped after a signal."""
    with Interrupts(lambda: None) as interrupts:
        do = runner(plan, mixed_precision, interrupts)
        on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
        if on_cpu and torch.get_num_threads() > 1 and others_at_work(folder):
            faster = "set OMP_NUM_THREADS=1 for each, several times faster on a CPU"
            note(f"another process shares these runs: {faster}")
        interrupts.patient = True
        do_runs(folder, plan.runs, do, stop_requested=lambda: interrupts.asked)


def runner(plan: SweepPlan, mixed_precision: str | None, interrupts: Interrupts) -> Callable[[dict], dict]:
    """A function that does one run of the plan and returns its result."""
    accelerator = Accelerator(mixed_precision=mixed_precision or "no")
    encoders = tuple(load_encoder(name, str(accelerator.device)) for name in plan.encoders)
    experiments = {}
    for subject, experiment in plan.experiments.items():
        experiments[subject] = dataclasses.replace(experiment, accelerator=accelerator, encoders=encoders)

    def do(run: dict) -> dict:
        return run_experiment(run, experiments[run.get("subject")], interrupts)

    return do
