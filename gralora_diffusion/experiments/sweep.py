"""Do the runs of a plan, shared with the other processes that have the same folder."""

import dataclasses
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
    accelerator = Accelerator(mixed_precision=mixed_precision or "no")
    encoders = tuple(load_encoder(name, str(accelerator.device)) for name in plan.encoders)
    experiments = {}
    for subject, experiment in plan.experiments.items():
        experiments[subject] = dataclasses.replace(experiment, accelerator=accelerator, encoders=encoders)
    many_threads = accelerator.device.type == "cpu" and torch.get_num_threads() > 1
    if many_threads and others_at_work(folder):
        note(
            "another process shares these runs: set OMP_NUM_THREADS=1 for each, several times faster on a CPU"
        )
    with Interrupts(lambda: None) as interrupts:
        interrupts.patient = True

        def do(run: dict) -> dict:
            return run_experiment(run, experiments[run.get("subject")], interrupts)

        do_runs(folder, plan.runs, do, stop_requested=lambda: interrupts.asked)
