"""What a sweep found: means over seeds with their intervals, differences from a baseline, a table and plots."""

import math
import statistics
from pathlib import Path

import torch

from .config import ConfigError
from .writing import complete_or_absent


def by_setting(done: list[dict]) -> dict[tuple, list[dict]]:
    """{(part, rank, method, k, learning rate, steps): its runs, one for each seed}"""
    groups = {}
    for entry in done:
        run = entry["run"]
        groups.setdefault((run["part"], run["rank"], run["method"], run.get("k") or 0, run["lr"], run["steps"]), []).append(entry)
    return dict(sorted(groups.items()))


def t_interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean: for the few seeds or subjects of a sweep, where a bootstrap is too narrow.  None for one value."""
    n = len(values)
    if n < 2:
        return None
    nu = n - 1
    x = torch.linspace(0, math.atan(1000), 200_001, dtype=torch.float64)  # the density after t = tan x
    density = (1 + x.tan().square() / nu) ** (-(nu + 1) / 2) * (1 + x.tan().square())
    area = torch.cumulative_trapezoid(density, x)
    area = area / area[-1] if nu > 1 else area / (math.pi / 2)
    t = math.tan(x[1:][int(torch.searchsorted(area, level))].item())
    half = t * statistics.stdev(values) / math.sqrt(n)
    return statistics.mean(values) - half, statistics.mean(values) + half


def at_best_rate(done: list[dict], score: str) -> dict[tuple, list[dict]]:
    """{(part, rank, method, k, steps): its runs} at one learning rate for each: the best in the validation runs, where there are any."""
    lower, best = "loss" in score or score.startswith("drift"), {}
    groups = by_setting([d for d in done if score in d.get("scores", {})])
    for (part, *setting, lr, steps), runs in groups.items():
        mean = statistics.mean(statistics.mean(r["scores"][score]) for r in runs)
        key, rank = (*setting, steps), (part == "validation", -mean if lower else mean)
        best[key] = max(best.get(key, (rank, lr)), (rank, lr))
    return {(part, *setting, steps): runs for (part, *setting, lr, steps), runs in groups.items() if best[*setting, steps][1] == lr}


def differences(done: list[dict], score: str, baseline: str) -> list[dict]:
    """Each setting less the baseline's of the same rank, part and steps, both at their best rate, seed by seed: mean and t interval."""
    rows, settings = [], at_best_rate(done, score)

    def by_seed(runs: list[dict]) -> dict[int, float]:
        return {r["run"]["seed"]: statistics.mean(r["scores"][score]) for r in runs}

    for (part, rank, method, k, steps), runs in settings.items():
        mine, base = by_seed(runs), by_seed(settings.get((part, rank, baseline, 0, steps), []))
        gaps = [mine[seed] - base[seed] for seed in sorted(mine.keys() & base.keys())]
        if gaps and method != baseline:
            row = dict(part=part, rank=rank, method=method, k=k or None, lr=runs[0]["run"]["lr"], score=score, against=baseline)
            rows.append(row | dict(n=len(gaps), mean=statistics.mean(gaps), interval=t_interval(gaps)))
    return rows


def summary_table(done: list[dict], score: str, baseline: str) -> str:
    """The settings with their mean and interval over seeds, parameters, time, memory and file; below, the differences from the baseline."""
    lines = [f"{'part':<10}  {'method':<14}  {'rank':>4}  {'k':>2}  {'lr':>7}  {'seeds':>5}  {score:>14.14}  {'95 % interval':<20}  "]
    lines[0] += f"{'parameters':>11}  {'s/step':>7}  {'MiB':>7}  {'file kB':>8}"
    for (part, rank, method, k, lr, _), runs in by_setting(done).items():
        good = [r for r in runs if score in r.get("scores", {})]
        values = [statistics.mean(r["scores"][score]) for r in good]
        mean = f"{statistics.mean(values):.4f}" if values else "failed"
        costs = [statistics.median(r[name] for r in good) for name in ("seconds_per_step", "memory", "file_bytes")] if good else [0, 0, 0]
        line = f"{part:<10}  {method:<14}  {rank:>4}  {k or '':>2}  {lr:>7g}  {len(values):>5}  {mean:>14}  {shown(t_interval(values)):<20}  "
        lines.append(line + f"{runs[0]['parameters']:>11,}  {costs[0]:>7.3f}  {costs[1] / 2**20:>7.0f}  {costs[2] / 1000:>8.0f}")
        lines += [f"    {r['name']}: {r['failed']}" for r in runs if "failed" in r]
    gaps = differences(done, score, baseline)
    for d in gaps:
        name = f"{d['method']} k{d['k']}" if d["k"] else d["method"]
        what = f"{name} - {baseline}, rank {d['rank']}, {d['part']}, best learning rates"
        lines.append(f"{what}: {d['mean']:+.4f}  {shown(d['interval'])}  ({d['n']} seeds)")
    return "\n".join(lines)


def half_width(values: list[float]) -> float:
    interval = t_interval(values)
    return (interval[1] - interval[0]) / 2 if interval else 0.0


def shown(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} .. {interval[1]:.4f}"


def plot(done: list[dict], score: str, folder: Path) -> list[Path]:
    """score-rank.png, score-parameters.png and loss.png, each line a method at its best rate.  Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the plots need the extra plots: pip install 'gralora-diffusion[plots]'") from None
    lines = {}
    for (part, rank, method, k, _), runs in at_best_rate(done, score).items():
        lines.setdefault(f"{method}{f' k{k}' if k else ''} ({part})", []).append((rank, runs))
    written = []
    for name, label in (("score-rank", "rank of the LoRA with as many parameters"), ("score-parameters", "trainable parameters"), ("loss", "step")):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel=label, ylabel="training loss, mean of 20 steps" if name == "loss" else score)
        for line, points in lines.items():
            if name == "loss":
                losses = [r["losses"] for r in points[-1][1]]
                mean = [statistics.mean(step) for step in zip(*losses, strict=True)]
                axes.plot([statistics.mean(mean[max(0, i - 19) : i + 1]) for i in range(len(mean))], label=f"{line}, rank {points[-1][0]}")
                continue
            values = [[statistics.mean(r["scores"][score]) for r in runs] for _, runs in points]
            x = [rank if name == "score-rank" else runs[0]["parameters"] for rank, runs in points]
            spread = [half_width(v) for v in values]
            axes.errorbar(x, [statistics.mean(v) for v in values], spread, marker="o", capsize=3, label=line)
        axes.legend(fontsize=7)
        with complete_or_absent(folder / f"{name}.png") as part:
            figure.savefig(part, format="png", dpi=120)
        written.append(folder / f"{name}.png")
    return written
