"""What Export gives of an adapter beside its files: a preview, trigger words, whether it fits SDXL."""

from pathlib import Path

from gralora_diffusion.data.images import open_image
from gralora_diffusion.files import sha256
from gralora_diffusion.formats.preview import copy_preview
from gralora_diffusion.ui.export import OTHER_TOOLS, export
from gralora_diffusion.ui.export_sizes import shapes
from gralora_diffusion.ui.run_view import sample_files
from gralora_diffusion.ui.workspace import CHECKPOINT, Workspace

SIDE = 512  # pixels
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


def export_with_preview(
    workspace: Workspace, name: str, kind: str, rank: int | None, dtype: str
) -> list[tuple[Path, str]]:
    """export(); of a LoRA for other tools also its preview, an image of the same name, where there is one."""
    path, digest = export(workspace, name, kind, rank, dtype)
    found = [(path, digest)]
    preview = preview_of_adapter(workspace, name) if kind == OTHER_TOOLS else None
    if preview is not None:
        copy = path.with_suffix(".png")
        copy_preview(preview, copy)
        found.append((copy, sha256(copy)))
    return found


def fits_sdxl(workspace: Workspace, name: str) -> bool:
    """Whether the adapter's layers have the sizes of SDXL's, which the demo model's have not."""
    from gralora_diffusion.formats import load

    return load.fits_sdxl(shapes(workspace.adapter(name)))


def preview_html(path: Path | None) -> str:
    """A small copy of the image as HTML, which holds nothing but its pixels; "" without one."""
    from gralora_diffusion.formats.preview import jpeg_of_image

    try:
        data = jpeg_of_image(open_image(path), SIDE) if path else ""
    except (OSError, ValueError):  # no image
        data = ""
    return f'<img src="data:image/jpeg;base64,{data}" alt="a sample image">' if data else ""


def trigger_words(workspace: Workspace, name: str) -> str:
    """The trigger prompt and the commonest captions that the adapter's file records, a line each."""
    from gralora_diffusion.formats.inspection import triggers_of
    from gralora_diffusion.formats.read import read_adapter
    from gralora_diffusion.formats.safetensors_files import opened

    path = workspace.adapter(name)
    with opened(path) as file:
        header = dict(file.metadata() or {})
    return "\n".join(triggers_of(read_adapter(path), header)[:MOST_WORDS])
