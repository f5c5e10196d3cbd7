"""The history of runs as cards: an image, and in a few words what the run was and how good it got."""

import datetime
from pathlib import Path

from PIL import Image, ImageDraw

from gralora_diffusion.console import duration
from gralora_diffusion.files import without_folders
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.run_folder import steps_seconds, wall_seconds
from gralora_diffusion.ui import run_view
from gralora_diffusion.ui.run_files import WORDS, config_of, raw_status, read_job
from gralora_diffusion.ui.run_queue import ACTIVE
from gralora_diffusion.ui.served import save_served, served_copy, still_served
from gralora_diffusion.ui.workspace import Workspace, created

SIDE = 256  # pixels
MOST = 100  # runs that have a card
KEPT = 500  # runs whose facts are kept: more than MOST, or those listed would push each other out
_facts: dict[Path, tuple] = {}  # {run: (version of its files, what facts_of() found)}
_times: dict[Path, tuple] = {}  # {run: (version of its files, what time_of() found)}
_blanks: dict[Path, str] = {}  # {HOME: the image of runs without images}


def cards(queue) -> list[tuple[str, str]]:
    """[(served image, lines)] of the newest runs, the newest first, at most MOST.

    queue: a RunQueue, or a Look at one.
    """
    queued = queue.queued()
    found = []
    for name in queue.workspace.run_names()[:MOST]:
        run = queue.workspace.runs / name
        status = queue.state(run)
        state = WORDS.get(status["state"], status["state"])
        if name in queued:
            state = f"number {queued.index(name) + 1} in the queue"
        image, lines = facts(queue.workspace, run)
        first, *others = lines
        if status["state"] not in ACTIVE and (time := time_of(run)):
            first = f"{first} · {time}"
        found.append((image, "\n".join([f"{name} · {state}", first, *others])))
    return found


def facts(workspace: Workspace, run: Path) -> tuple[str, list[str]]:
    """facts_of(), found again when a file of the run has changed."""
    version = tuple(version_of(run / name) for name in ("config.json", "job.json", "evaluations.jsonl"))
    images = [path for _, files in run_view.sample_files(run) for path in files[:1]]
    version = (*version, images[-1:], [version_of(path) for path in images[-1:]])
    known, found = _facts.get(run, (None, None))
    if known != version or not still_served(found[0]):
        while len(_facts) >= KEPT:
            del _facts[next(iter(_facts))]
        _facts[run] = version, facts_of(workspace, run, images[-1] if images else None)
    return _facts[run][1]


def version_of(path: Path) -> tuple | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def facts_of(workspace: Workspace, run: Path, image: Path | None) -> tuple[str, list[str]]:
    """(served image, [date, base and rank, best score])."""
    lines = [date_of(run)]
    try:
        config = config_of(run)
        base = without_folders(config.pretrained_model_name_or_path or "Demo model")
        lines.append(f"{base} · {config.adapter_name}, rank {config.adapter.rank}")
    except ConfigError:
        lines.append("its settings cannot be read")
    if score := score_text(run):
        lines.append(score)
    return card_image(workspace, image), lines


def date_of(run: Path) -> str:
    day = datetime.datetime.fromtimestamp(asked_at(run))
    return f"{day.day} {day:%b %Y, %H:%M}"


def asked_at(run: Path) -> float:
    """When the run was last asked for: at first, or to be resumed."""
    when = read_job(run).get("created")
    return when if run_view.is_number(when) and 0 < when < 1e11 else created(run)


def time_of(run: Path) -> str:
    """How long a run that has ended took, resumes summed; its steps alone where no more is known."""
    status = raw_status(run)
    version = status.get("time"), version_of(run / "metrics.jsonl")
    known, text = _times.get(run, (None, ""))
    if known == version:
        return text
    lines = run_view.metrics(run)
    seconds = wall_seconds(status, lines)
    if seconds is not None:
        text = duration(seconds)
    else:
        text = f"steps {duration(steps_seconds(lines))}" if lines else ""
    while len(_times) >= KEPT:
        del _times[next(iter(_times))]
    _times[run] = version, text
    return text


def score_text(run: Path) -> str:
    """The best evaluation's score or loss, as --keep_best has it; "" for a run without evaluations."""
    step = run_view.best_step(run)
    best = next((line for line in run_view.measured(run) if line["step"] == step), None)
    if best is None:
        return ""
    for name, label in (("score", "score"), ("validation_loss", "validation loss")):
        if name in best:
            return f"best {label} {best[name]:.3g} at step {best['step']}"
    return ""


def card_image(workspace: Workspace, path: Path | None) -> str:
    """A small served copy of an image, or a blank one."""
    if path is not None:
        try:
            return served_copy(workspace, path, SIDE)
        except (OSError, ValueError):  # deleted meanwhile, or no image
            pass
    blank = _blanks.get(workspace.root)
    if not still_served(blank):
        image = Image.new("RGB", (SIDE, SIDE), "#8fa3b0")
        ImageDraw.Draw(image).rounded_rectangle((64, 64, 191, 191), 24, fill="#a9bac5")
        blank = _blanks[workspace.root] = save_served(workspace, image, "no-image.png")
    return blank
