"""What a run's folder shows: how far it is, its loss, its sample images."""

import re
from pathlib import Path

import pandas

from gralora_diffusion.data.images import open_image
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.run_folder import read_metrics
from gralora_diffusion.training.validation_images import prompts_of
from gralora_diffusion.ui.run_queue import AT_WORK, RunQueue, config_of
from gralora_diffusion.ui.workspace import Workspace, folders, real_file

POINTS = 900  # a series of the plot has no more
LAST = 20  # steps that speed is measured over
_seen: dict[Path, tuple] = {}


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl that are whole and hold numbers; read again only when the file has changed."""
    try:
        stat = (run / "metrics.jsonl").stat()
    except OSError:
        return []
    version = (stat.st_mtime_ns, stat.st_size)
    if _seen.get(run, (None,))[0] != version:
        try:
            found = read_metrics(run)
        except (OSError, RecursionError):
            found = []
        lines = [
            line
            for line in found
            if isinstance(line, dict) and all(number(line.get(n)) for n in ("step", "loss", "seconds"))
        ]
        _seen.clear()  # one run is watched at a time, mostly
        _seen[run] = version, lines
    return _seen[run][1]


def number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def progress(work: RunQueue, run: Path) -> dict:
    """{"state", "message", "step", "steps", "seconds", "left", "memory", "loss", "forecast"}; None where it is not known."""
    status, lines = work.state(run), metrics(run)
    steps, step = status.get("steps"), lines[-1]["step"] if lines else status.get("step") or 0
    recent = [line["seconds"] for line in lines[-LAST:]]
    seconds = sum(recent) / len(recent) if recent else None
    left = (
        max(0, steps - step) * seconds
        if number(steps) and seconds is not None and status["state"] in AT_WORK
        else None
    )
    memory = lines[-1].get("memory") if lines else None
    told = dict(
        state=status["state"],
        message=str(status.get("message") or ""),
        step=step,
        steps=steps if number(steps) else None,
    )
    forecast = status.get("forecast") if isinstance(status.get("forecast"), dict) else None
    return told | dict(
        seconds=seconds,
        left=left,
        memory=memory,
        loss=smoothed([x["loss"] for x in lines], 0.95)[-1:],
        forecast=forecast,
    )


def at_work(work: RunQueue) -> str | None:
    """The run that the strip speaks of: the one at work, or the newest."""
    names = work.home.run_names()
    return next(
        (n for n in names if work.state(work.home.runs / n)["state"] in AT_WORK), names[0] if names else None
    )


def smoothed(values: list[float], weight: float) -> list[float]:
    """Running mean: each value is `weight` of the last one and the rest of the new; its start is not pulled to the first value."""
    out, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        out.append(total / norm)
    return out


def curve(run: Path, weight: float) -> pandas.DataFrame:
    """step, loss, line: each step's loss and its running mean."""
    lines = [line for line in metrics(run) if line["loss"] == line["loss"]]
    losses, every = [line["loss"] for line in lines], max(1, -(-len(lines) // POINTS))
    rows = [
        (line["step"], loss, "each step") for line, loss in list(zip(lines, losses, strict=True))[::every]
    ]
    rows += [
        (line["step"], loss, "smoothed")
        for line, loss in list(zip(lines, smoothed(losses, weight), strict=True))[::every]
    ]
    return pandas.DataFrame(rows, columns=["step", "loss", "line"])


def sample_files(run: Path) -> list[tuple[int, list[Path]]]:
    """[(step, its images)], step 0 first."""
    found = [(int(p.name[5:]), p) for p in folders(run / "samples") if re.fullmatch(r"step-\d{1,9}", p.name)]
    return [(step, sorted(f for f in p.glob("*.png") if real_file(f))) for step, p in sorted(found)]


def samples(home: Workspace, run: Path, most: int = 8) -> tuple[list[tuple[str, str]], int]:
    """([(a file to show, its caption)] prompt by prompt, number of columns): the base is the first column, the latest steps follow."""
    from gralora_diffusion.ui.drawing import serve

    columns = [(step, files) for step, files in sample_files(run) if files]
    columns = columns[:1] + columns[1:][-(most - 1) :]
    try:
        config = config_of(run) if not (run / "config.json").is_file() else drawn_config(run)
        prompts = (
            [p for p in prompts_of(config) for _ in range(config.num_validation_images)]
            if config.validation_prompt
            else []
        )
    except ConfigError:
        prompts = []
    shown = []
    for row in range(max((len(files) for _, files in columns), default=0)):
        for step, files in columns:
            if row < len(files):
                prompt = prompts[row] if row < len(prompts) else f"image {row + 1}"
                try:
                    shown.append(
                        (
                            serve_once(home, files[row], serve),
                            f"{'base' if step == 0 else f'step {step}'} · {prompt}",
                        )
                    )
                except (OSError, ValueError):
                    continue
    return shown, max(1, len(columns))


_served: dict[tuple, str] = {}


def serve_once(home: Workspace, path: Path, serve) -> str:
    """The served copy of a sample image, made when the file is new."""
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _served or not Path(_served[key]).is_file():
        _served[key] = serve(home, open_image(path), f"{path.parent.name}-{path.name}")
    return _served[key]


def drawn_config(run: Path):
    """The config as the trainer resolved it: it says which prompts were drawn."""
    import json

    from gralora_diffusion.config import TrainConfig
    from gralora_diffusion.options import from_dict

    try:
        return from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{run.name}: {error}") from None


def history(work: RunQueue) -> list[list]:
    """A row for every run: name, state, step, smoothed loss, adapter, rank, base."""
    rows = []
    for name in work.home.run_names():
        now = progress(work, work.home.runs / name)
        try:
            config = config_of(work.home.runs / name)
            what = [
                config.adapter_name,
                config.adapter.rank,
                config.pretrained_model_name_or_path or "embedded",
            ]
        except ConfigError:
            what = ["?", None, "?"]
        step = f"{now['step']}/{now['steps']}" if now["steps"] else str(now["step"])
        rows.append([name, now["state"], step, f"{now['loss'][0]:.4f}" if now["loss"] else "", *what])
    return rows


def clock(seconds: float | None) -> str:
    """4:05, or 1:02:03."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def speed(seconds: float | None) -> str:
    if not seconds:
        return "-"
    return f"{1 / seconds:.2f} it/s" if seconds < 1 else f"{seconds:.2f} s/it"
