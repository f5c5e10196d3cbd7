"""The report of a run after the run has another name: with that name, and those of its files now."""

from pathlib import Path

from gralora_diffusion.console import note
from gralora_diffusion.ui.report_route import MAX_BYTES
from gralora_diffusion.ui.workspace import real_file


def write_report_of_renamed(run: Path) -> None:
    """Write report.html again where the run has one; a run without stays without.

    A folder with links is left alone, since the report would show what they lead to.  Anybody may have
    written the folder: where no report can be made of it, the earlier one stays.
    """
    from gralora_diffusion.training.report import write_report_again  # torch takes seconds

    report = run / "report.html"
    if not real_file(report) or report.stat().st_size > MAX_BYTES:
        return
    if any(path.is_symlink() for path in run.rglob("*")):
        return
    try:
        write_report_again(run)
    except Exception as error:  # of any kind: the run has its name already
        note(f"the report of {run.name} was not written again: {error}")
