"""What the page shows of a run: its progress, its loss, its evaluations, its sample images."""

import re
from dataclasses import dataclass
from pathlib import Path

from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.report_charts import best_evaluation
from gralora_diffusion.training.run_folder import read_evaluations, read_metrics
from gralora_diffusion.training.time_left import costs_from_json, recent_speed, seconds_left
from gralora_diffusion.training.validation_images import label_of_start, prompts_of
from gralora_diffusion.ui.run_files import clean, config_of, resolved_config_of
from gralora_diffusion.ui.run_queue import ACTIVE, RunQueue
from gralora_diffusion.ui.served import served_copy
from gralora_diffusion.ui.workspace import EMBEDDED, Workspace, folders, real_file

MAX_STEPS = 10**12  # a file that says more is wrong
HISTORY = ("run", "state", "step", "loss", "adapter", "rank", "base")  # the columns of history()
ENDING = ("exporting", "writing the report")  # what a run does last, also where it ends before its last step
_metrics: dict[Path, tuple] = {}  # {run: (version of the file, lines)} of the last run


@dataclass(frozen=True)
class Progress:
    """How far a run is; None where it is not known."""

    state: str
    message: str
    step: int
    steps: int | None
    seconds: float | None  # per step
    device: str  # the card, with its memory
    memory: int | None  # bytes, of the last step
    peak: int | None  # the most of any step so far
    reserved: int | None  # the most that was taken from the card
    loss: float | None  # smoothed
    doing: str  # what it does when it is not at a step
    seconds_left: float | None


def metrics(run: Path) -> list[dict]:
    """The complete lines of metrics.jsonl that hold numbers; read again only when the file has changed."""
    try:
        stat = (run / "metrics.jsonl").stat()
    except OSError:
        return []
    version = (stat.st_mtime_ns, stat.st_size)
    kept_version, kept = _metrics.get(run, (None, []))
    if kept_version == version:
        return kept
    try:
        found = read_metrics(run)
    except (OSError, RecursionError):
        found = []
    lines = [line for line in found if isinstance(line, dict) and is_complete(line)]
    _metrics.clear()  # mostly one run is watched at a time
    _metrics[run] = version, lines
    return lines


def is_complete(line: dict) -> bool:
    return is_step(line.get("step")) and all(is_number(line.get(name)) for name in ("loss", "seconds"))


def is_step(value) -> bool:
    return type(value) is int and 0 <= value < MAX_STEPS


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def number_or_none(value) -> int | None:
    return value if is_number(value) else None


def progress(queue, run: Path) -> Progress:
    """queue: a RunQueue, or a Look at one."""
    status = queue.state(run)
    lines = metrics(run)
    step = lines[-1]["step"] if lines else status.get("step")
    last = lines[-1] if lines else {}
    memory, peak, reserved = (number_or_none(last.get(name)) for name in ("memory", "peak", "reserved"))
    speed = speed_of(lines)
    losses = smoothed([line["loss"] for line in lines], 0.95)
    return Progress(
        state=status["state"],
        message=str(status.get("message") or ""),
        step=step if is_number(step) else 0,
        steps=status.get("steps") if is_number(status.get("steps")) else None,
        seconds=speed,
        device=str(status.get("device") or ""),
        memory=memory,
        peak=peak,
        reserved=reserved,
        loss=losses[-1] if losses else None,
        doing=doing_of(status),
        seconds_left=time_left(status, step, speed),
    )


def birth(run: Path) -> int:
    """When the run's config was written, in nanoseconds; another run of the same name has another birth."""
    try:
        return (run / "config.json").stat().st_mtime_ns
    except OSError:
        return 0


def speed_of(lines: list[dict]) -> float | None:
    """Mean seconds of the last steps; None without steps."""
    return recent_speed([line["seconds"] for line in lines])


def doing_of(status: dict) -> str:
    """What an active run does when it is not at a step, as its trainer wrote it; "" where it does not say."""
    doing = status.get("doing")
    if status["state"] not in ACTIVE or not isinstance(doing, str):
        return ""
    return clean(doing)


def time_left(status: dict, step, speed: float | None) -> float | None:
    """Seconds that an active run still takes, as its log has them; None where they are not known."""
    costs, steps = costs_from_json(status.get("costs")), status.get("steps")
    looked, share = status.get("looked"), status.get("share")
    if status["state"] not in ACTIVE or costs is None:
        return None
    if not all(map(is_number, (step, steps, looked, share))):
        return None
    if (step >= steps and looked >= steps) or status.get("doing") in ENDING:  # which take an unknown time
        return None
    return seconds_left(costs, int(step), int(steps), speed, int(looked), share)


def smoothed(values: list[float], weight: float) -> list[float]:
    """The bias-corrected exponential moving average, as Adam has it; `weight` is that of the past."""
    averages = []
    total = norm = 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        averages.append(total / norm)
    return averages


def evaluations(run: Path) -> list[dict]:
    """The lines of evaluations.jsonl that name a step; numbers are checked where they are used."""
    try:
        found = read_evaluations(run)
    except (OSError, RecursionError):
        return []
    return [line for line in found if isinstance(line, dict) and is_step(line.get("step"))]


def measured(run: Path) -> list[dict]:
    """evaluations() without what is no number where one has to be."""
    found = []
    for line in evaluations(run):
        found.append({name: value for name, value in line.items() if name == "step" or is_number(value)})
    return found


def best_step(run: Path) -> int | None:
    """The step that --keep_best would export now; without it that of the lowest validation loss, or score."""
    try:
        by = config_of(run).keep_best
    except ConfigError:
        by = None
    best = best_evaluation(measured(run), by)
    return best["step"] if best else None


def sample_files(run: Path) -> list[tuple[int, list[Path]]]:
    """[(step, its images)], step 0 first; links are not followed."""
    parent = run / "samples"
    if parent.is_symlink() or resolved(run) not in resolved(parent).parents:
        return []
    found = [p for p in folders(parent) if re.fullmatch(r"step-\d{1,9}", p.name)]
    steps = sorted((int(p.name.removeprefix("step-")), p) for p in found)
    return [(step, sorted(filter(real_file, folder.glob("*.png")))) for step, folder in steps]


def samples(workspace: Workspace, run: Path, most: int = 8) -> tuple[list[tuple[str, str]], int]:
    """([(served file, caption)] prompt by prompt, number of columns): the base, then the latest steps."""
    columns = [(step, files) for step, files in sample_files(run) if files]
    columns = columns[:1] + columns[1:][-(most - 1) :]
    prompts = sample_prompts(run)
    first = first_column(run)
    found = []
    for row in range(max((len(files) for _, files in columns), default=0)):
        prompt = prompts[row] if row < len(prompts) else f"image {row + 1}"
        for step, files in columns:
            if row >= len(files):
                continue
            column = f"step {step}" if step else first
            try:
                found.append((served_copy(workspace, files[row]), f"{column} · {prompt}"))
            except (OSError, ValueError):  # deleted meanwhile, or no image
                continue
    return found, max(1, len(columns))


def first_column(run: Path) -> str:
    """What the images of step 0 are of."""
    try:
        start = resolved_config_of(run).start_from
    except ConfigError:
        start = None
    return label_of_start(start) if start else "base"


def sample_prompts(run: Path) -> list[str]:
    """The prompt of each sample image; [] where the config has none."""
    try:
        config = resolved_config_of(run)
    except ConfigError:
        return []
    if not config.validation_prompt:
        return []
    return [prompt for prompt in prompts_of(config) for _ in range(config.num_validation_images)]


def history(queue: RunQueue) -> list[list]:
    """A row for every run, with the columns HISTORY."""
    rows = []
    for name in queue.workspace.run_names():
        run = queue.workspace.runs / name
        now = progress(queue, run)
        step = f"{now.step}/{now.steps}" if now.steps else str(now.step)
        loss = "" if now.loss is None else f"{now.loss:.4f}"
        try:
            config = config_of(run)
            base = config.pretrained_model_name_or_path or EMBEDDED
            facts = [config.adapter_name, config.adapter.rank, base]
        except ConfigError:
            facts = ["?", None, "?"]
        rows.append([name, now.state, step, loss, *facts])
    return rows


def memory_text(now: Progress) -> str:
    """5.74 GiB, peak 6.17, reserved 6.43; what is not counted is left out."""
    if not now.memory:
        return "-"
    text = f"{now.memory / 2**30:.2f} GiB"
    for name, size in (("peak", now.peak), ("reserved", now.reserved)):
        text += f", {name} {size / 2**30:.2f}" if size else ""
    return text
