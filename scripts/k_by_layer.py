"""Do the values of k that `gralora entanglement` recommends by layer beat one k for all layers?

    python scripts/k_by_layer.py    # several at once; resumes
    python scripts/k_by_layer.py --report    # the tables of the runs in docs/experiments/results/k-by-layer
    python scripts/k_by_layer.py --bases    # makes the bases, and prints which layers have which k

Half of the norms of the base have a strong outlier channel, drawn anew for each seed.
docs/experiments/README.md has the design, which was written before the runs.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import math
import os
import random
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from torch import nn

from gralora_diffusion.cli import entanglement
from gralora_diffusion.command_line import parse
from gralora_diffusion.console import fail
from gralora_diffusion.evaluation.statistics import p_value, t_interval
from gralora_diffusion.experiments.entanglement_report import OPTIONS
from gralora_diffusion.experiments.markdown import markdown
from gralora_diffusion.experiments.outliers import norms_of, plant_outliers, readers_of
from gralora_diffusion.experiments.results import append_result, read_results
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.sdxl.load import load_sdxl
from gralora_diffusion.training.run_folder import read_metrics
from gralora_diffusion.training.signals import Stopped
from gralora_diffusion.training.step_metrics import NotFinite
from gralora_diffusion.training.train import train

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "k-by-layer"
SCALE, RANK, STEPS, KS = 1000, 64, 300, (1, 2, 4, 8)
RECOMMENDED = "k by layer"
ONE_K = ("LoRA", "k 2", "k 8")  # for all layers
ARMS = (*ONE_K, RECOMMENDED)
RATES = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3)
VALIDATION, TEST = (0, 1), (2, 3, 4, 5, 6)
LAST = 100  # steps, whose mean training loss is the score
COMMON = (
    f"--max_train_steps {STEPS} --train_batch_size 8 --skip_final_inference --checkpointing_steps {STEPS}"
)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument(
        "--state", type=Path, default=Path("build/k-by-layer"), help="folder of bases and runs"
    )
    parser.add_argument("--report", action="store_true", help="print the tables of the runs that are kept")
    parser.add_argument("--bases", action="store_true", help="print which layers of the bases have which k")
    args = parser.parse_args()
    try:
        if args.bases:
            print("\n".join(recommendations(args.state)))
            return
        if not args.report:
            KEPT.mkdir(parents=True, exist_ok=True)
            shared([(arm, rate, seed) for seed in VALIDATION for arm in ARMS for rate in RATES], args.state)
            rates = best_rates()
            shared([(arm, rates[arm], seed) for seed in TEST for arm in ARMS], args.state)
        text = "\n".join(report())
    except Stopped as stop:
        fail(str(stop), 130)
    except (ConfigError, TrainingError) as error:
        fail(str(error))
    write_text(KEPT / "table.md", f"{text}\n")
    print(text)


def shared(runs: list[tuple], state: Path) -> None:
    """Do the runs that no other process is doing, then wait for the others."""
    for wait in (False, True):
        for arm, rate, seed in runs:
            lock = FileLock(made(state) / f"{run_name(arm, rate, seed)}.lock", timeout=-1 if wait else 0)
            with contextlib.suppress(Timeout), lock:
                if (arm, rate, seed) not in losses():
                    do_run(arm, rate, seed, state)


def run_name(arm: str, rate: float, seed: int) -> str:
    return f"{arm.replace(' ', '-')}-{rate:g}-{seed}"


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def do_run(arm: str, rate: float, seed: int, state: Path) -> None:
    """Train, and keep the loss: None where a step was not finite, so that the run ended."""
    base = base_of(seed, state)
    folder = state / run_name(arm, rate, seed)
    words = shlex.split(f"{COMMON} --learning_rate {rate} --seed {seed}")
    words += ["--pretrained_model_name_or_path", str(base), "--output_dir", str(folder)]
    try:
        train(parse("", words + options_of(arm, base)))
        loss = round(statistics.mean(line["loss"] for line in read_metrics(folder)[-LAST:]), 6)
    except TrainingError as error:
        if not isinstance(error.__context__, NotFinite):
            raise
        loss = None
    append_result(KEPT, dict(run=dict(arm=arm, lr=rate, seed=seed), loss=loss, layers_by_k=layers_by_k(base)))


def base_of(seed: int, state: Path) -> Path:
    """The folder of the base with outliers; its entanglement report is beside it."""
    base = state / f"base-{seed}"
    with FileLock(state / f"base-{seed}.lock"):
        if not base.is_dir():
            pipeline = load_sdxl()
            plant_outliers(pipeline.unet, SCALE, seed=seed, norms=norms_with_outliers(pipeline.unet, seed))
            part = base.with_name(f"{base.name}.part")
            pipeline.save_pretrained(part)
            os.replace(part, base)
        output = report_of(base)
        if not (output / "report.html").is_file():
            own = ["--ranks", RANK, "--ks", *KS, "--seed", seed, "--output", output]
            with contextlib.redirect_stdout(io.StringIO()):
                entanglement.main([*map(str, own), "--pretrained_model_name_or_path", str(base)])
    return base


def norms_with_outliers(unet: nn.Module, seed: int) -> list[str]:
    norms = norms_of(unet)
    return random.Random(seed).sample(norms, len(norms) // 2)


def report_of(base: Path) -> Path:
    return base.with_name(f"{base.name}-report")


def recommended(base: Path) -> dict[str, int]:
    """{layer: the k that its entanglement report recommends}."""
    layers = json.loads((report_of(base) / "report.json").read_text())["layers"]
    return {path: layer["recommended"]["k"] for path, layer in layers.items()}


def layers_by_k(base: Path) -> dict[str, int]:
    """{k: the number of layers for which it is recommended}."""
    return dict(sorted(Counter(map(str, recommended(base).values())).items()))


def options_of(arm: str, base: Path) -> list[str]:
    if arm == RECOMMENDED:
        return shlex.split((report_of(base) / OPTIONS).read_text())
    k = arm.removeprefix("k ") if arm != "LoRA" else "1"
    return ["--gralora_rank", str(RANK), "--gralora_k", k]


def losses() -> dict[tuple, float]:
    """{(arm, rate, seed): 1000 x loss} of the runs so far; infinite where a step was not finite."""
    found = {}
    for entry in read_results(KEPT):
        run = entry["run"]
        found[run["arm"], run["lr"], run["seed"]] = (
            math.inf if entry["loss"] is None else 1000 * entry["loss"]
        )
    return found


def best_rates() -> dict[str, float]:
    """The rate of each arm with the lowest mean loss of the validation seeds."""
    return {arm: min(RATES, key=functools.partial(validation_loss, arm)) for arm in ARMS}


def validation_loss(arm: str, rate: float) -> float:
    """Raises ConfigError where the runs are not complete."""
    found = losses()
    try:
        return statistics.mean(found[arm, rate, seed] for seed in VALIDATION)
    except KeyError:
        raise ConfigError(f"the runs of {arm} at {rate:g} are not complete") from None


def test_losses(rates: dict[str, float]) -> dict[str, list[float]]:
    """{arm: the loss of each test seed}.  Raises ConfigError where the runs are not complete."""
    found = losses()
    try:
        return {arm: [found[arm, rates[arm], seed] for seed in TEST] for arm in ARMS}
    except KeyError:
        raise ConfigError("the test runs are not complete") from None


def report() -> Iterator[str]:
    """Markdown: validation losses, then test losses and the differences from each k for all layers."""
    rates = best_rates()
    rows = [[arm, *(f"{validation_loss(arm, rate):.2f}" for rate in RATES)] for arm in ARMS]
    yield markdown(["loss x 1000", *(f"{rate:g}" for rate in RATES)], rows)
    best = min(ONE_K, key=lambda arm: validation_loss(arm, rates[arm]))
    yield f"\nBest k for all layers, by these: {best}\n"
    found = test_losses(rates)
    rows = []
    for arm in ARMS:
        cells = [arm, f"{rates[arm]:g}", f"{statistics.mean(found[arm]):.2f}"]
        for other in ONE_K:
            cells.append("" if arm == other else difference(found[arm], found[other]))
        rows.append(cells)
    yield markdown(["arm", "rate", "loss x 1000", *(f"less {arm}'s" for arm in ONE_K)], rows)


def recommendations(state: Path) -> Iterator[str]:
    """Markdown: the layers of each base by recommended k; those that read an outlier, and the others."""
    unet = load_sdxl().unet
    rows = []
    for seed in (*VALIDATION, *TEST):
        by_layer = recommended(base_of(seed, made(state)))
        read = itertools.chain.from_iterable(map(readers_of, norms_with_outliers(unet, seed)))
        readers = {f"unet.{path}" for path in read}
        others = by_layer.keys() - readers
        strange = sorted(path for path in others if by_layer[path] > 1)
        counts = [counts_by_k(by_layer[path] for path in paths) for paths in (readers, others)]
        rows.append([str(seed), *counts, ", ".join(strange)])
    yield markdown(["seed", "layers that read an outlier", "others", "others with k above 1"], rows)


def counts_by_k(ks: Iterable[int]) -> str:
    return ", ".join(f"{count} with k {k}" for k, count in sorted(Counter(ks).items()))


def difference(first: list[float], second: list[float]) -> str:
    """The mean difference of pairs, its 95 % t-interval, and p."""
    values = [one - other for one, other in zip(first, second, strict=True)]
    low, high = t_interval(values)
    return f"{statistics.mean(values):+.2f} ({low:+.2f} to {high:+.2f}), p {p_value(values):.2g}"


if __name__ == "__main__":
    main()
