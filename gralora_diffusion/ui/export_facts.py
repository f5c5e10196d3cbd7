"""What Export shows of an adapter beside its files: a preview and the words that trigger it."""

from pathlib import Path

from gralora_diffusion.ui.run_view import sample_files
from gralora_diffusion.ui.workspace import CHECKPOINT, Workspace

MOST_WORDS = 5  # trigger prompts and captions


def preview_of_adapter(workspace: Workspace, name: str) -> Path | None:
    """A sample image of the adapter's step, or of the last one; None without."""
    run, _, checkpoint = name.partition("/")
    if run not in workspace.run_names():
        return None
    by_step = {step: files for step, files in sample_files(workspace.runs / run) if step and files}
    step = int(match[1]) if (match := CHECKPOINT.fullmatch(checkpoint)) else None
    if not by_step:
        return None
    return by_step.get(step, by_step[max(by_step)])[0]


def trigger_words(workspace: Workspace, name: str) -> str:
    """The trigger prompt and the commonest captions that the adapter's file records, a line each."""
    from gralora_diffusion.formats.inspection import triggers_of
    from gralora_diffusion.formats.read import read_adapter
    from gralora_diffusion.formats.safetensors_files import opened

    path = workspace.adapter(name)
    with opened(path) as file:
        header = dict(file.metadata() or {})
    return "\n".join(triggers_of(read_adapter(path), header)[:MOST_WORDS])
