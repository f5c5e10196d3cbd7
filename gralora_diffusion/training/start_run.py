"""What a run records and prints before it works: its state, its base and images, what it trains."""

from gralora_diffusion.console import counted, note
from gralora_diffusion.data.dataset import concept_lines
from gralora_diffusion.data.listing import printable
from gralora_diffusion.devices import name_of
from gralora_diffusion.options import to_dict
from gralora_diffusion.sdxl.objective import objective_text
from gralora_diffusion.training.run_folder import Run, public_options
from gralora_diffusion.training.run_plan import EMBEDDED_BASE
from gralora_diffusion.training.setup import TrainingSetup
from gralora_diffusion.training.start_from import NAMED, Started
from gralora_diffusion.training.validation_images import prompts_of


def start_run(setup: TrainingSetup, run: Run | None) -> None:
    """The status, a line on the console, and the trackers."""
    if run:
        device = name_of(setup.accelerator.device)
        costs = run.before.get("costs") if setup.start else None  # kept if it stops before its first step
        run.status("starting", step=setup.start, steps=setup.steps, device=device, costs=costs)
        parameters = sum(p.numel() for p in setup.parameters().values())
        dtype = str(setup.dtype).removeprefix("torch.")
        size = f"{counted(len(setup.layers()), 'layer')}, {parameters:,} parameters; {device}, {dtype}"
        resumed = f", from step {setup.start}" if setup.start else ""
        base = setup.config.pretrained_model_name_or_path or EMBEDDED_BASE
        prediction = objective_text(setup.objective())
        print(f"base: {base}; prediction: {prediction}", flush=True)
        if setup.started and not setup.start:
            print(setup.started.text(), flush=True)
            note_lost(setup.started)
        if setup.held_out:
            print(f"held out: {counted(len(setup.held_out), 'image')}, not trained on", flush=True)
        for line in concept_lines(setup.config, setup.images):
            print(f"concept {line}", flush=True)
        if not setup.config.skip_final_inference:
            prompts = " | ".join(map(printable, prompts_of(setup.config)))
            print(f"sample prompts: {prompts}", flush=True)
        if setup.has_earlier_run and not setup.start:
            note("the run was stopped before its first checkpoint: it restarts at step 0")
        print(f"{size} -> {setup.path}{resumed}", flush=True)
    if setup.accelerator.log_with:
        values = public_options(to_dict(setup.config))
        scalars = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
        setup.accelerator.init_trackers("gralora_diffusion", scalars)


def note_lost(started: Started) -> None:
    """Note which layers of the adapter to start from the run does not train."""
    if started.lost:
        some = ", ".join(started.lost[:NAMED])
        more = f" and {len(started.lost) - NAMED} more" if len(started.lost) > NAMED else ""
        verb = "it is" if len(started.lost) == 1 else "they are"
        note(f"this run does not train {some}{more}, which {started.name} changes: {verb} left out")
