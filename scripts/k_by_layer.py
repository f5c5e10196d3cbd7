"""Do the values of k that `gralora entanglement` recommends by layer beat one k for all of them?

    python scripts/k_by_layer.py    # several at once; resumes
    python scripts/k_by_layer.py --report    # the tables of the runs in docs/experiments/results/k-by-layer

Half of the norms of the base have a strong outlier channel, drawn anew for each seed.
docs/experiments/README.md has the design, which was written before the runs.
"""

import argparse
import contextlib
import io
import json
import random
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gralora_diffusion.cli import entanglement
from gralora_diffusion.command_line import parse
from gralora_diffusion.evaluation.statistics import p_value, t_interval
from gralora_diffusion.experiments.entanglement_report import OPTIONS
from gralora_diffusion.experiments.markdown import markdown
from gralora_diffusion.experiments.outliers import plant_outliers
from gralora_diffusion.experiments.results import append_result, read_results
from gralora_diffusion.files import write_text
from gralora_diffusion.sdxl.load import load_sdxl
from gralora_diffusion.training.run_folder import read_metrics
from gralora_diffusion.training.train import train

KEPT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "k-by-layer"
SCALE, RANK, STEPS, KS = 1000, 64, 300, (1, 2, 4, 8)
RECOMMENDED, FIXED = "k by layer", "k 2"  # the two of the primary comparison
ARMS = ("LoRA", FIXED, "k 8", RECOMMENDED)
RATES = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3)
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
    args = parser.parse_args()
    if not args.report:
        KEPT.mkdir(parents=True, exist_ok=True)
        shared([(arm, rate, seed) for seed in VALIDATION for arm in ARMS for rate in RATES], args.state)
        rates = best_rates()
        shared([(arm, rates[arm], seed) for seed in TEST for arm in ARMS], args.state)
    text = "\n".join(report())
    write_text(KEPT / "table.md", f"{text}\n")
    print(text)


def shared(runs: list[tuple], state: Path) -> None:
    """Do runs that no other process does, then wait for the others'."""
    for wait in (False, True):
        for arm, rate, seed in runs:
            lock = FileLock(made(state) / f"{arm}-{rate:g}-{seed}.lock", timeout=-1 if wait else 0)
            with contextlib.suppress(Timeout), lock:
                if (arm, rate, seed) not in losses():
                    do_run(arm, rate, seed, state)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def do_run(arm: str, rate: float, seed: int, state: Path) -> None:
    base = base_of(seed, state)
    folder = state / f"{arm.replace(' ', '-')}-{rate:g}-{seed}"
    words = shlex.split(f"{COMMON} --learning_rate {rate} --seed {seed}")
    words += ["--pretrained_model_name_or_path", str(base), "--output_dir", str(folder)]
    train(parse("", words + options_of(arm, base)))
    loss = statistics.mean(line["loss"] for line in read_metrics(folder)[-LAST:])
    run = dict(arm=arm, lr=rate, seed=seed)
    append_result(KEPT, dict(run=run, loss=round(loss, 6), layers_by_k=layers_by_k(base)))


def base_of(seed: int, state: Path) -> Path:
    """The folder of the base with outliers, with what `gralora entanglement` says of it beside."""
    base = made(state) / f"base-{seed}"
    with FileLock(state / f"base-{seed}.lock"):
        if not (base / "model_index.json").is_file():
            pipeline = load_sdxl()
            norms = [*plant_outliers(load_sdxl().unet, SCALE)]
            chosen = random.Random(seed).sample(norms, len(norms) // 2)
            plant_outliers(pipeline.unet, SCALE, seed=seed, norms=chosen)
            pipeline.save_pretrained(base)
        output = report_of(base)
        if not (output / "report.html").is_file():
            own = ["--ranks", RANK, "--ks", *KS, "--seed", seed, "--output", output]
            with contextlib.redirect_stdout(io.StringIO()):
                entanglement.main([*map(str, own), "--pretrained_model_name_or_path", str(base)])
    return base


def report_of(base: Path) -> Path:
    return base.with_name(f"{base.name}-report")


def layers_by_k(base: Path) -> dict[str, int]:
    """{k: layers for which it is recommended}."""
    layers = json.loads((report_of(base) / "report.json").read_text())["layers"].values()
    return dict(sorted(Counter(str(layer["recommended"]["k"]) for layer in layers).items()))


def options_of(arm: str, base: Path) -> list[str]:
    if arm == RECOMMENDED:
        return shlex.split((report_of(base) / OPTIONS).read_text())
    k = arm.removeprefix("k ") if arm != "LoRA" else "1"
    return ["--gralora_rank", str(RANK), "--gralora_k", k]


def losses() -> dict[tuple, float]:
    """{(arm, rate, seed): loss} of the runs so far."""
    found = {}
    for entry in read_results(KEPT):
        run = entry["run"]
        found[run["arm"], run["lr"], run["seed"]] = entry["loss"]
    return found


def best_rates() -> dict[str, float]:
    """The rate of each arm with the lowest mean loss of the validation seeds."""
    return {arm: min(RATES, key=lambda rate, arm=arm: mean_of(arm, rate, VALIDATION)) for arm in ARMS}


def mean_of(arm: str, rate: float, seeds: tuple[int, ...]) -> float:
    return 1000 * statistics.mean(losses()[arm, rate, seed] for seed in seeds)


def report() -> Iterator[str]:
    """Markdown: validation losses, and test losses with each arm's difference from the fixed k."""
    rates = best_rates()
    rows = []
    for arm in ARMS:
        rows.append([arm, *(f"{mean_of(arm, rate, VALIDATION):.2f}" for rate in RATES)])
    yield markdown(["loss x 1000", *(f"{rate:g}" for rate in RATES)], rows)
    yield ""
    found = losses()
    rows = []
    for arm in ARMS:
        cells = [arm, f"{rates[arm]:g}", f"{mean_of(arm, rates[arm], TEST):.2f}"]
        for other in (FIXED, "LoRA"):
            pairs = [(found[arm, rates[arm], seed], found[other, rates[other], seed]) for seed in TEST]
            cells.append("" if arm == other else difference([1000 * (one - two) for one, two in pairs]))
        rows.append(cells)
    yield markdown(["arm", "rate", "loss x 1000", f"less {FIXED}'s, 95 % t", "less LoRA's, 95 % t"], rows)


def difference(values: list[float]) -> str:
    low, high = t_interval(values)
    return f"{statistics.mean(values):+.2f} ({low:+.2f} to {high:+.2f}), p {p_value(values):.2g}"


if __name__ == "__main__":
    main()
