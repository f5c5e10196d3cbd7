"""A table of training runs that differ in method, size, learning rate and seed alone; several processes share it, and it resumes at any run."""

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from filelock import FileLock

from .cache import Cache
from .comparators import Spec, adapt
from .config import ConfigError, TrainConfig
from .evaluation import Against, Encoder, Generated, measure
from .folders import Picture
from .interrupts import Interrupts, Stopped
from .jobs import Job, in_use
from .loss import generator
from .optimization import make_optimizer, make_schedule
from .sampling import draw
from .sdxl import load_sdxl
from .series import Series, encode_captions, make_series
from .training import NotFinite, Optimization, make_trainable, objective, run_steps
from .writing import complete_or_absent

RESULTS = "runs.jsonl"
HELD_OUT_BATCHES = 8


def name_of(run: dict) -> str:
    """A run's name: what can be read of it, and a hash of all of it."""
    parts = [run["method"], f"r{run['rank']}", f"k{run['k']}" if run.get("k") else "", f"lr{run['lr']:g}", f"seed{run['seed']}"]
    return "-".join(filter(None, parts)) + "-" + hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]


def results(folder: Path) -> list[dict]:
    """All finished runs; a line that a killed process left half-written is none."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / RESULTS).read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


@contextlib.contextmanager
def claimed(folder: Path, run: dict) -> Iterator[bool]:
    """Whether this process may do the run: nobody has done it, and no living process has it.  The claim ends with the block.

    A claim is a file that names its process, made with O_EXCL; one whose process is gone is taken over.
    """
    claim, mine = folder / "claims" / name_of(run), False
    claim.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not any(done["run"] == run for done in results(folder)):
            if claim.exists() and not alive(claim):
                claim.unlink()
            with contextlib.suppress(FileExistsError):
                handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                with open(handle, "w") as file:
                    json.dump(dict(host=socket.gethostname(), pid=os.getpid(), began=psutil.Process().create_time()), file)
                mine = True
    try:
        yield mine
    finally:
        if mine:
            claim.unlink(missing_ok=True)


def alive(claim: Path) -> bool:
    """Whether the process of a claim lives; another machine's is taken to."""
    try:
        owner = json.loads(claim.read_text())
        return owner["host"] != socket.gethostname() or psutil.Process(owner["pid"]).create_time() == owner["began"]
    except (ValueError, KeyError, psutil.NoSuchProcess):
        return False


def sweep(folder: Path, runs: list[dict], do: Callable[[dict], dict], say: Callable[[str], None] = print) -> None:
    """Do all runs that are not done and that nobody else is doing: a line of runs.jsonl for each.  do(run) -> what came out."""
    for number, run in enumerate(runs, 1):
        with claimed(folder, run) as mine:
            if not mine:
                continue
            line = json.dumps(dict(run=run, name=name_of(run)) | do(run)) + "\n"
            with FileLock(folder / ".lock"), open(folder / RESULTS, "a+b") as file:
                file.seek(max(0, file.tell() - 1))
                torn = file.read() not in (b"", b"\n")  # a killed process's half line
                file.write(b"\n" * torn + line.encode())
                file.flush()
                os.fsync(file.fileno())
        say(f"{number} of {len(runs)}: {name_of(run)}")


def split(pictures: list[Picture], part: str) -> tuple[list[Picture], list[Picture]]:
    """(to learn, to test on): a tenth is for validation, another for the test, the same for every run.  part: validation or test."""
    if len(pictures) < 10:
        raise ConfigError(f"{len(pictures)} pictures are too few to hold a tenth out twice: give at least 10, or --prompts with a subject's pictures")
    order = torch.randperm(len(pictures), generator=generator(0, 102)).tolist()
    tenth = round(len(pictures) / 10)
    held = dict(test=order[:tenth], validation=order[tenth : 2 * tenth])[part]
    return [pictures[i] for i in sorted(order[2 * tenth :])], [pictures[i] for i in sorted(held)]


@dataclass
class Bench:
    """What all runs of a sweep have in common.  prompts: what is drawn, with references to compare with; else the captions of `held`."""

    folder: Path
    config: TrainConfig
    accelerator: object
    pictures: list[Picture]
    held: list[Picture]
    prompts: list[str]
    encoders: list[Encoder]
    features: Callable


def train_one(run: dict, bench: Bench, interrupts: Interrupts) -> dict:
    """One run of the sweep, with run_steps() and objective() as every training: its losses, scores, and costs.

    A run whose loss is not finite has `failed` in place of scores: that is a result too.  Raises Stopped after a signal.
    """
    config = dataclasses.replace(bench.config, seed=run["seed"], learning_rate=run["lr"], max_train_steps=run["steps"])
    device, folder = bench.accelerator.device, bench.folder / "runs" / name_of(run)
    pipeline = load_sdxl(config.pretrained_model_name_or_path, dtype=torch.float32).to(device)
    config = in_use(config, pipeline, bench.pictures, "no", 1)
    fixed = dataclasses.replace(config, seed=0)
    cache, accelerator = Cache(bench.folder / "cache"), bench.accelerator
    learnt = make_series(bench.pictures, [], pipeline.vae, config, cache, accelerator)
    held = make_series(bench.held, [], pipeline.vae, fixed, cache, accelerator) if bench.held else None
    encode = encode_captions(sorted({*learnt.captions(), *(p.caption for p in bench.held)}), pipeline, cache, accelerator)
    loss_of = objective(pipeline.unet, pipeline.scheduler, learnt, encode, config, accelerator, torch.float32)

    def look(index: int) -> None:
        with torch.no_grad():
            loss_of(index)

    spec = Spec(run["method"], run["size"], run.get("k"), run["seed"], config.adapter.targets)
    adapted = adapt(pipeline.unet, spec, look)
    optimizer = make_optimizer(adapted.groups(run["lr"], config.adam_weight_decay), config)
    schedule = make_schedule(optimizer, config, run["steps"])
    optimization = Optimization(accelerator.prepare(optimizer), schedule, None, accelerator.scaler)
    job = Job(config, folder, accelerator, pipeline, dict(unet=pipeline.unet), bench.pictures, [], torch.float32, {}, 0, run["steps"], {})
    make_trainable(job.models, config)
    found = dict(parameters=sum(p.numel() for p in adapted.parameters.values()))
    lines = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        for line, stopping in run_steps(job, optimization, loss_of, interrupts):
            lines.append(line)
            if stopping:
                raise Stopped(f"stopped in {name_of(run)}, which the same command begins again")
    except NotFinite as error:
        return found | dict(failed=str(error))
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else max(line["memory"] for line in lines)
    found |= dict(seconds_per_step=statistics.median(line["seconds"] for line in lines), memory=memory, losses=[round(x["loss"], 5) for x in lines])
    adapted.save(folder / "adapter.safetensors")
    pipeline.unet.eval()
    return found | dict(file_bytes=(folder / "adapter.safetensors").stat().st_size, scores=scores_of(pipeline, held, encode, bench, config, folder))


@torch.no_grad()
def scores_of(pipeline, held: Series | None, encode: Callable, bench: Bench, config: TrainConfig, folder: Path) -> dict[str, list[float]]:
    """{score: a value per picture}: the loss on pictures held out, with the same noise in every run, and the scores of what is drawn."""
    scores = {}
    if held:
        loss_of = objective(pipeline.unet, pipeline.scheduler, held, encode, held.config, bench.accelerator, torch.float32)
        scores["held-out loss"] = [round(loss_of(index).item(), 6) for index in range(HELD_OUT_BATCHES)]
    prompts = bench.prompts or [p.caption for p in bench.held]
    images = draw(pipeline, list(zip(prompts, range(len(prompts)), strict=True)), config.num_inference_steps, config.guidance_scale)
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        with complete_or_absent(path) as part:
            image.save(part, "PNG")
    size = images[0].size
    against = Against([p.path for p in bench.pictures], size=size) if bench.prompts else Against(originals=[p.path for p in bench.held], size=size)
    for encoder in bench.encoders:
        for score in measure(encoder, Generated(folder.name, paths, prompts), against, bench.features):
            scores[f"{score.name}, {encoder.name}"] = [round(v, 6) for v in score.values.tolist()]
    return scores
