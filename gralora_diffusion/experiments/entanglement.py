"""Where gradients entangle: outlier channels, how low-rank steps bend away from the gradient, and k by layer.

A step of B and A changes the weight by G A^T A + B B^T G (arXiv 2505.20355, eq. 2-4; G = dL/dW, [M, N]),
where full training would move along G.  One input channel that is much larger than the others bends every
column of that fused update in LoRA, and only its own strip of blocks in GraLoRA.
"""

import math
from collections import Counter
from collections.abc import Callable

import torch

from gralora_diffusion.adapters.gora import blocks, effective_rank, energies, importance, whitened
from gralora_diffusion.adapters.gradients import Gradients
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.console import counted
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

OUTLIER = 6.0  # a channel this many times the mean one is an outlier
STABLE = 0.8  # and stable if it is the largest in this part of the batches
GIVEN_UP = 0.1  # part of the best k's energy that may be given up to confine a stable outlier


def fused_update(G: torch.Tensor, A: torch.Tensor, B: torch.Tensor | None = None) -> torch.Tensor:
    """G A^T A + B B^T G by block, [M, N], without lr and scale.

    A [k, k, r/k, N/k], B [k, k, M/k, r/k]; None stands for zero, the usual start.
    """
    G_blocks = blocks(G, A.shape[0])
    fused = G_blocks @ A.mT @ A
    if B is not None:
        fused = fused + B @ (B.mT @ G_blocks)
    return fused.transpose(1, 2).reshape(G.shape)


def kaiming_blocks(rank: int, k: int, n: int, random: torch.Generator) -> torch.Tensor:
    """A fresh GraLoRA's A by block [k, k, r/k, N/k]; k = 1 is LoRA's."""
    return (torch.rand(k, k, rank // k, n // k, generator=random) * 2 - 1) * math.sqrt(k / n)


def alignment(G: torch.Tensor, A: torch.Tensor, channel: int) -> dict[str, float | None]:
    """Mean cosine of fused update and gradient over input columns: {mean, inside, outside}.

    inside, outside: over those in the strip of blocks that the channel is in, and the others.
    Columns without any gradient are left out; `outside` is None for LoRA, whose one strip is everything.
    """
    k, n = A.shape[0], G.shape[1]
    cosines = torch.nn.functional.cosine_similarity(fused_update(G, A.to(G)), G, dim=0)
    used = G.norm(dim=0) > 0
    strip = torch.arange(n, device=G.device) // (n // k) == channel // (n // k)

    def mean_over(columns: torch.Tensor) -> float | None:
        return float(cosines[columns].mean()) if columns.any() else None

    return dict(mean=mean_over(used), inside=mean_over(strip & used), outside=mean_over(~strip & used))


def outlier_of(channels: list[torch.Tensor]) -> dict:
    """The channel that is the largest most often, from the mean |x| of each channel in each batch.

    {channel, ratio, share, stable}.  ratio: how many times the mean channel it is, over all batches.
    share: of the batches in which it is the largest.
    """
    (channel, times), *_ = Counter(int(batch.argmax()) for batch in channels).most_common()
    mean = torch.stack(channels).mean(0)
    ratio = float(mean[channel] / mean.mean().clamp_min(1e-30))
    share = times / len(channels)
    return dict(channel=channel, ratio=ratio, share=share, stable=ratio >= OUTLIER and share >= STABLE)


def recommend(row: dict, rank: int) -> tuple[int, str]:
    """(k, the reason) at this rank, from a layer's outlier and the whitened energy that each k can hold."""
    held = row["energy_whitened"][rank]
    best = max(held, key=lambda k: (held[k], -k))
    outlier = row["outlier"]
    size = f"is {outlier['ratio']:.1f} x the mean and the largest in {outlier['share']:.0%} of the batches"
    where = f"channel {outlier['channel']} {size}"
    if not outlier["stable"]:
        energy = f"most whitened energy, {held[best]:.2f} (LoRA {held[1]:.2f})"
        return best, f"no stable outlier ({where}): {energy}"
    if max(held) == 1:
        return 1, f"{where}; no larger k was measured"
    widest = max(k for k in held if held[k] >= (1 - GIVEN_UP) * held[best])
    if widest == 1:
        most = max(held[k] for k in held if k > 1)
        return 1, f"{where}, but blocks would give up {1 - most / held[1]:.0%} of the energy"
    energy = f"holds {held[widest]:.2f} of the whitened energy (LoRA {held[1]:.2f})"
    return widest, f"{where}: k {widest} confines it to 1/{widest} of the inputs and {energy}"


class Channels:
    """While entered, records the mean |x| of each input channel of each layer at every forward pass.

    with Channels(layers) as seen: seen is {path: [tensor [N], ...]}.
    """

    def __init__(self, layers: dict[str, AdaptedLinear]):
        self.layers = layers
        self.seen = {path: [] for path in layers}
        self.hooks = []

    def __enter__(self) -> dict[str, list[torch.Tensor]]:
        for path, layer in self.layers.items():
            self.hooks.append(layer.register_forward_pre_hook(self.recorder(path)))
        return self.seen

    def recorder(self, path: str) -> Callable:
        def record(_, inputs) -> None:
            self.seen[path].append(inputs[0].detach().float().abs().flatten(0, -2).mean(0).cpu())

        return record

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def measure_layers(
    layers: dict[str, AdaptedLinear],
    losses: list[Callable],
    accelerator,
    batches: int,
    ranks: list[int],
    ks: list[int],
    seed: int,
    deltas: dict[str, torch.Tensor],
) -> dict[str, dict]:
    """One row per layer, from `batches` batches in each bin of timesteps.

    losses: a loss_of(index) for each bin.
    row: shape, importance, outlier, effective_rank (of G, and of deltas[path] where there is one),
    alignment[rank][k] {mean, inside, outside}, by_bin[rank][k] [mean], energy_whitened[rank][k],
    energy_raw[rank][k], recommended {k, reason, rank} at the first rank that fits.
    """
    for path, layer in layers.items():
        if min(layer.weight.shape) < min(ranks):
            raise ConfigError(
                f"{path} has {counted(min(layer.weight.shape), 'channel')}, fewer than every one of --ranks: "
                "give a lower rank",
                option="ranks",
            )
    totals = {}  # {path: mean gradient [M, N]}
    channels = {path: [] for path in layers}
    by_bin = {path: [] for path in layers}
    keys = {path: (seed, i) for i, path in enumerate(layers)}  # each layer has an A of its own, in all bins
    for loss_of in losses:
        with Channels(layers) as seen:
            for path, G in Gradients(layers, loss_of, accelerator, batches):
                totals[path] = totals.get(path, 0) + G.cpu() / len(losses)
                channels[path] += seen[path]
                largest = outlier_of(channels[path])["channel"]
                by_bin[path].append(align_all(G, ranks, ks, largest, *keys[path]))
    rows = {}
    for path, layer in layers.items():
        G = totals[path]
        outlier = outlier_of(channels[path])
        aligned = align_all(G, ranks, ks, outlier["channel"], *keys[path])
        rows[path] = row_of(layer, G, outlier, aligned, by_bin[path])
        if path in deltas:
            rows[path]["delta_effective_rank"] = effective_rank(deltas[path])
        rank = next(iter(aligned))
        k, reason = recommend(rows[path], rank)
        rows[path]["recommended"] = dict(k=k, reason=reason, rank=rank)
    return rows


def row_of(layer: AdaptedLinear, G: torch.Tensor, outlier: dict, aligned: dict, by_bin: list[dict]) -> dict:
    """aligned: align_all() of the mean gradient; by_bin: of each bin's."""
    ks = set()
    for by_k in aligned.values():
        ks.update(by_k)
    whitened_G = whitened(G)
    energy_whitened = {k: energies(whitened_G, k) for k in sorted(ks)}
    energy_raw = {k: energies(G, k) for k in sorted(ks)}
    row = dict(
        outlier=outlier,
        shape=list(G.shape),
        importance=importance(layer.weight.cpu(), G),
        effective_rank=effective_rank(G),
        alignment=aligned,
        by_bin={},
        energy_whitened={},
        energy_raw={},
    )
    for rank, by_k in aligned.items():
        row["by_bin"][rank] = {}
        for k in by_k:
            row["by_bin"][rank][k] = [one[rank][k]["mean"] for one in by_bin]
        row["energy_whitened"][rank] = {k: float(energy_whitened[k][rank - 1]) for k in by_k}
        row["energy_raw"][rank] = {k: float(energy_raw[k][rank - 1]) for k in by_k}
    return row


def align_all(G: torch.Tensor, ranks, ks, channel: int, *key: int) -> dict[int, dict[int, dict]]:
    """{rank: {k: alignment()}} of fresh adapters of every rank and k that fit; A depends on the key alone."""
    m, n = G.shape
    found = {}
    for rank in ranks:
        if rank > min(m, n):
            continue
        found[rank] = {}
        for k in ks:
            if rank % k == 0 and m % k == 0 and n % k == 0:
                A = kaiming_blocks(rank, k, n, generator(*key, 10, rank, k))
                found[rank][k] = alignment(G, A, channel)
    return found


def mean_over_layers(rows: dict[str, dict]) -> dict[int, dict[int, dict]]:
    """{rank: {k: {mean, inside, outside, whitened, raw, layers, by_bin}}}, over the layers that fit both."""
    members = {}  # {(rank, k): its layers' rows}
    for row in rows.values():
        for rank, by_k in row["alignment"].items():
            for k in by_k:
                members.setdefault((rank, k), []).append(row)
    found = {}
    for (rank, k), group in sorted(members.items()):
        means = {}
        for name in ("mean", "inside", "outside"):
            means[name] = mean_of_known([row["alignment"][rank][k][name] for row in group])
        for name in ("whitened", "raw"):
            means[name] = mean_of_known([row[f"energy_{name}"][rank][k] for row in group])
        means["layers"] = len(group)
        by_layer = [row["by_bin"][rank][k] for row in group]
        means["by_bin"] = [mean_of_known(values) for values in zip(*by_layer, strict=True)]
        found.setdefault(rank, {})[k] = means
    return found


def mean_of_known(values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
