"""Where gradients entangle: outlier channels, how a low-rank step bends away from the gradient it follows, and which k suits each layer.

A step of B and A changes the weight by G A^T A + B B^T G (arXiv 2505.20355, eq. 2-4; G = dL/dW, [M, N]), where full training would move along G.
One input channel that is much larger than the others bends every column of that fused update in LoRA, and only its own strip of blocks in GraLoRA.
"""

import math
from collections import Counter
from collections.abc import Callable

import torch

from gralora_diffusion.adapters.gora import blocks, effective_rank, energies, importance, whitened
from gralora_diffusion.adapters.gradients import Gradients
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

OUTLIER = 6.0  # a channel this many times the mean one is called an outlier, and stable if it is the largest in 4 batches of 5
STABLE, GIVEN_UP = (
    0.8,
    0.1,
)  # the part of LoRA's captured energy that may be given up to confine a stable outlier


def fused_update(G: torch.Tensor, A: torch.Tensor, B: torch.Tensor | None = None) -> torch.Tensor:
    """G A^T A + B B^T G by block, [M, N], without lr and scale: A [k, k, r/k, N/k], B [k, k, M/k, r/k] (None: zero, the usual start)."""
    G_ = blocks(G, A.shape[0])
    fused = G_ @ A.mT @ A
    if B is not None:
        fused = fused + B @ (B.mT @ G_)
    return fused.transpose(1, 2).reshape(G.shape)


def kaiming_blocks(rank: int, k: int, n: int, random: torch.Generator) -> torch.Tensor:
    """A fresh GraLoRA's A by block [k, k, r/k, N/k]; k = 1 is LoRA's."""
    return (torch.rand(k, k, rank // k, n // k, generator=random) * 2 - 1) * math.sqrt(k / n)


def alignment(G: torch.Tensor, A: torch.Tensor, channel: int) -> dict[str, float]:
    """Cosine between fused update and gradient, mean over input columns: all, and inside and outside the strip of blocks that `channel` is in.

    Columns without any gradient are left out; `outside` is None for LoRA, whose one strip is everything.
    """
    k, n = A.shape[0], G.shape[1]
    cosines, used = (
        torch.nn.functional.cosine_similarity(fused_update(G, A.to(G)), G, dim=0),
        G.norm(dim=0) > 0,
    )
    strip = torch.arange(n, device=G.device) // (n // k) == channel // (n // k)

    def mean(mask):
        return float(cosines[mask & used].mean()) if (mask & used).any() else None

    return dict(mean=mean(torch.ones_like(used)), inside=mean(strip), outside=mean(~strip))


def outlier_of(channels: list[torch.Tensor]) -> dict:
    """The channel that is the largest most often, from the mean |x| of each channel in each batch: {channel, ratio, share, stable}.

    ratio: how many times the mean channel it is, over all batches; share: of the batches in which it is the largest.
    """
    (channel, times), *_ = Counter(int(c.argmax()) for c in channels).most_common()
    mean = torch.stack(channels).mean(0)
    ratio, share = float(mean[channel] / mean.mean().clamp_min(1e-30)), times / len(channels)
    return dict(channel=channel, ratio=ratio, share=share, stable=ratio >= OUTLIER and share >= STABLE)


def recommend(row: dict, rank: int) -> tuple[int, str]:
    """(k, the reason) at this rank, from a layer's outlier and the energy of its whitened gradient that each k can hold."""
    held = row["energy_whitened"][rank]
    best = max(held, key=lambda k: (held[k], -k))
    outlier = row["outlier"]
    if not outlier["stable"]:
        why = f"no stable outlier (largest channel {outlier['ratio']:.1f} x the mean, in {outlier['share']:.0%} of the batches)"
        return best, f"{why}: most whitened energy, {held[best]:.2f} (LoRA {held[1]:.2f})"
    wide = max(k for k in held if held[k] >= (1 - GIVEN_UP) * held[best])
    where = f"channel {outlier['channel']} is {outlier['ratio']:.1f} x the mean in {outlier['share']:.0%} of the batches"
    if wide == 1:
        return (
            1,
            f"{where}, but blocks would give up {1 - max((held[k] for k in held if k > 1), default=0) / held[1]:.0%} of the energy",
        )
    return (
        wide,
        f"{where}: k {wide} confines it to 1/{wide} of the inputs and holds {held[wide]:.2f} of the whitened energy (LoRA {held[1]:.2f})",
    )


class Channels:
    """While entered, keeps the mean |x| of each input channel of each layer at every forward pass: {path: [tensor [N], ...]}."""

    def __init__(self, layers: dict[str, AdaptedLinear]):
        self.layers, self.seen, self.hooks = layers, {path: [] for path in layers}, []

    def __enter__(self) -> dict[str, list[torch.Tensor]]:
        for path, layer in self.layers.items():
            self.hooks.append(
                layer.register_forward_pre_hook(lambda _, inputs, path=path: self.keep(path, inputs[0]))
            )
        return self.seen

    def keep(self, path: str, x: torch.Tensor) -> None:
        self.seen[path].append(x.detach().float().abs().flatten(0, -2).mean(0).cpu())

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def measure(
    layers: dict[str, AdaptedLinear],
    losses: list[Callable],
    accelerator,
    batches: int,
    ranks: list[int],
    ks: list[int],
    seed: int,
    deltas: dict,
) -> dict[str, dict]:
    """One row per layer, from `batches` batches in each bin of timesteps; losses has a loss_of(index) for each bin.

    row: shape, importance, outlier, effective_rank (of G, and of deltas[path] where there is one), alignment[rank][k] {mean, inside, outside},
    by_bin[rank][k] [mean], energy_whitened[rank][k], energy_raw[rank][k], recommended {k, reason} at ranks[0].
    """
    if narrow := [path for path, layer in layers.items() if min(layer.weight.shape) < min(ranks)]:
        raise ConfigError(
            f"{narrow[0]} has {min(layers[narrow[0]].weight.shape)} channels, fewer than every one of --ranks: give a lower rank"
        )
    rows, totals, binned = {path: {} for path in layers}, {}, {path: [] for path in layers}
    order = {
        path: i for i, path in enumerate(layers)
    }  # every layer draws an A of its own, the same in each bin
    for loss_of in losses:
        with Channels(layers) as seen:
            for path, G in Gradients(layers, loss_of, accelerator, batches):
                totals[path] = totals.get(path, 0) + G.cpu() / len(losses)
                rows[path].setdefault("channels", []).extend(seen[path])
                binned[path].append(
                    align_all(G, ranks, ks, outlier_of(rows[path]["channels"])["channel"], seed, order[path])
                )
    for path, G in totals.items():
        row, shape = rows[path], list(G.shape)
        row["outlier"] = outlier_of(row.pop("channels"))
        row |= dict(
            shape=shape, importance=importance(layers[path].weight.cpu(), G), effective_rank=effective_rank(G)
        )
        row["alignment"] = align_all(G, ranks, ks, row["outlier"]["channel"], seed, order[path])
        row["by_bin"] = {
            r: {k: [one[r][k]["mean"] for one in binned[path]] for k in by_k}
            for r, by_k in row["alignment"].items()
        }
        for kind, g in (("whitened", whitened(G)), ("raw", G)):
            held = {
                k: energies(g, k) for k in sorted({k for by_k in row["alignment"].values() for k in by_k})
            }
            row[f"energy_{kind}"] = {
                r: {k: float(held[k][r - 1]) for k in by_k} for r, by_k in row["alignment"].items()
            }
        if path in deltas:
            row["delta_effective_rank"] = effective_rank(deltas[path])
        chosen = next(iter(row["alignment"]))
        row["recommended"] = dict(zip(("k", "reason"), recommend(row, chosen), strict=True)) | dict(
            rank=chosen
        )
    return rows


def align_all(G: torch.Tensor, ranks, ks, channel: int, *key: int) -> dict[int, dict[int, dict]]:
    """alignment() for fresh adapters of every rank and k that fit the layer; the same key draws the same A."""
    m, n = G.shape
    fits = {r: [k for k in ks if r % k == 0 and m % k == 0 and n % k == 0] for r in ranks if r <= min(m, n)}
    return {
        r: {k: alignment(G, kaiming_blocks(r, k, n, generator(*key, 10, r, k)), channel) for k in by_k}
        for r, by_k in fits.items()
    }


def summary(rows: dict[str, dict]) -> dict[str, dict]:
    """{rank: {k: {mean, inside, outside, whitened, raw, by_bin}}}: means over the layers that can have this rank and k."""
    out = {}
    for r in sorted({r for row in rows.values() for r in row["alignment"]}):
        out[r] = {}
        for k in sorted({k for row in rows.values() for k in row["alignment"].get(r, {})}):
            mine = [row for row in rows.values() if k in row["alignment"].get(r, {})]
            columns = {
                name: [row["alignment"][r][k][name] for row in mine] for name in ("mean", "inside", "outside")
            }
            columns |= {kind: [row[f"energy_{kind}"][r][k] for row in mine] for kind in ("whitened", "raw")}
            out[r][k] = {name: average(values) for name, values in columns.items()} | dict(layers=len(mine))
            out[r][k]["by_bin"] = [
                average(values) for values in zip(*(row["by_bin"][r][k] for row in mine), strict=True)
            ]
    return out


def average(values) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def table(rows: dict[str, dict], facts: dict) -> str:
    """The report for people: one line per layer, then the means."""
    width = max(map(len, rows))
    lines = [
        f"{'layer':<{width}}  {'in -> out':>13}  {'outlier':>16}  {'erank G':>7}  {'delta':>6}  {'k':>2}"
    ]
    for path, row in rows.items():
        outlier = f"{row['outlier']['channel']}: {row['outlier']['ratio']:.1f}x {row['outlier']['share']:.0%}"
        delta = f"{row['delta_effective_rank']:.1f}" if "delta_effective_rank" in row else "-"
        sizes = f"{row['shape'][1]} -> {row['shape'][0]}"
        lines.append(
            f"{path:<{width}}  {sizes:>13}  {outlier:>16}  {row['effective_rank']:>7.1f}  {delta:>6}  {row['recommended']['k']:>2}"
        )
    lines += [
        "",
        f"{'rank':>4}  {'k':>2}  {'cosine':>6}  {'inside':>6}  {'outside':>7}  {'energy whitened':>15}  {'raw':>5}  by timestep bin, low noise first",
    ]
    for r, by_k in facts["means"].items():
        for k, row in by_k.items():
            cells = [
                f"{row[name]:.3f}" if row[name] is not None else "-"
                for name in ("mean", "inside", "outside", "whitened", "raw")
            ]
            bins = " ".join(f"{value:.3f}" for value in row["by_bin"])
            lines.append(
                f"{r:>4}  {k:>2}  {cells[0]:>6}  {cells[1]:>6}  {cells[2]:>7}  {cells[3]:>15}  {cells[4]:>5}  {bins}"
            )
    stable = sum(row["outlier"]["stable"] for row in rows.values())
    counts = Counter(row["recommended"]["k"] for row in rows.values())
    found = ", ".join(f"k {k}: {n}" for k, n in sorted(counts.items()))
    return "\n".join(
        [
            *lines,
            "",
            f"{stable} of {len(rows)} layers have a stable outlier (>= {OUTLIER:g} x the mean channel); recommended {found}",
        ]
    )
