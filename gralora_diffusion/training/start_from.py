"""--start_from: a run that begins with the factors of another adapter, of any kind that can be read."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.best_factors import Best, best_of_matrix, best_of_pair
from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.gora import as_gralora, by_block
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.adapters.low_rank import joined
from gralora_diffusion.adapters.registry import adapted_layers, handles
from gralora_diffusion.console import counted
from gralora_diffusion.formats.adapter_state import Adapter, Factors
from gralora_diffusion.formats.conv_factors import as_matrices
from gralora_diffusion.formats.inspection import file_of
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.formats.load import learn_shapes
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.run_files import name_of
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.fingerprint import fingerprint, same_base
from gralora_diffusion.sdxl.objective import objective_text

ZERO = 1e-7  # singular values up to this part of the largest are rounding
EXACT = 1e-5  # relative errors up to this are rounding
NAMED = 3  # layers that a message names


@dataclass
class Started:
    """name, digest: of the adapter; errors: {layer: relative error}; error: of the whole, Frobenius norms.

    lost: layers of the adapter that the run does not train, with an error of 1; unknown: how many of them
    depend on a base that is not there, so that the whole error does not count them.  schedules: how its noise
    schedule differs from the run's, if it does.
    """

    name: str
    digest: str
    errors: dict[str, float] = field(default_factory=dict)
    error: float = 0.0
    lost: list[str] = field(default_factory=list)
    unknown: int = 0
    schedules: str = ""

    def parent(self) -> dict:
        """What the run's files record of it."""
        return dict(name=self.name, sha256=self.digest, relative_error=self.error)

    def text(self) -> str:
        """Lines for the console: the error of each layer that is not exact, and of the whole."""
        lines = [
            f"{layer}: relative error {error:.2e}" for layer, error in self.errors.items() if error > EXACT
        ]
        exact = len(self.errors) - len(lines)
        without = f" (not counting {counted(self.unknown, 'change')} of unknown size)" if self.unknown else ""
        copied = f"{counted(exact, 'layer')} exact"
        lines.append(f"started from {self.name}: {copied}, relative error {self.error:.3e}{without}")
        if self.schedules:
            lines.append(f"note: {self.schedules}")
        return "\n".join(lines)


def digest_of(path: str) -> str:
    """The SHA-256 of an adapter's file, or of the tensors of a PEFT folder."""
    file = file_of(Path(path))
    content = hashlib.sha256()
    files = [file] if file else sorted(Path(path).rglob("adapter_*"))
    for part in files:
        content.update(part.read_bytes())
    return content.hexdigest()


@torch.no_grad()
def start_from(path: str, models: dict[str, nn.Module], objective: dict) -> Started:
    """Set the adapters of {component: model} to the change of the adapter in `path`, or nearest to it.

    Layers of the same kind and sizes are copied; for all others the best factors of the change are taken, of
    each block for GraLoRA. Layers that it does not have start as always.  Raises ConfigError for an adapter
    of another base or another prediction, or that fits no layer of the run.
    """
    adapter = read_adapter(path)
    check_parent(path, adapter, models, objective)
    learn_shapes(adapter, models)
    schedules = other_schedule(adapter.facts.get("objective", {}), objective)
    started = Started(name_of(path), digest_of(path), schedules=schedules)
    waiting = {(component, name): delta for component, name, delta in adapter.changes()}
    lost = total = 0.0
    for component, model in models.items():
        for layer_path, layer in adapted_layers(model).items():
            key = (component, f"{canonical(component, layer_path)}.weight")
            delta = waiting.pop(key, None)
            if delta is None:
                continue
            where = f"{component}.{key[1].removesuffix('.weight')}"
            own = adapter.layers.get(component, {}).get(canonical(component, layer_path))
            scale = adapter.scale(layer_path, own) if own else 1.0
            error, norm = set_factors(layer, delta, own, scale, f"{path}: {where}")
            started.errors[where] = error / norm if norm else 0.0
            lost += error**2
            total += norm**2
    if not started.errors:
        some = ", ".join(f"{component}.{name}" for component, name in list(waiting)[:NAMED])
        problem = f"none of its layers, such as {some}, is one that this run trains"
        ways = "see --targets and --train_text_encoder"
        raise ConfigError(f"--start_from {path}: {problem}: {ways}", option="start_from")
    for (component, name), delta in waiting.items():
        started.lost.append(f"{component}.{name}")
        norm = norm_in(models.get(component), name, delta)
        if norm is None:
            started.unknown += 1
            continue
        lost += norm**2
        total += norm**2
    started.error = math.sqrt(lost / total) if total else 0.0
    return started


def norm_in(model: nn.Module | None, name: str, delta: Delta) -> float | None:
    """|delta| of a parameter; None where it depends on a base that the run does not have."""
    if not delta.needs_base:
        return float(delta.delta().norm())
    own_name = name if model is None or hasattr(model, "text_model") else name.removeprefix("text_model.")
    try:
        base = None if model is None else model.get_parameter(own_name).float()
    except AttributeError:
        base = None
    return None if base is None else float(delta.applied(base).norm())


def check_parent(path: str, adapter: Adapter, models: dict[str, nn.Module], objective: dict) -> None:
    """Raises ConfigError for an adapter of another base, or that predicts something else."""
    base = adapter.facts.get("base", {})
    unet = models.get("unet")
    known = next(iter(handles(unet).values())).fingerprint if unet is not None else None
    if "fingerprint" in base and not same_base(base["fingerprint"], known or fingerprint(unet)):
        name = base.get("name") or "a base without a name"
        problem = f"it was trained on a different base, {name}"
        raise ConfigError(f"--start_from {path}: {problem}: train on that one", option="start_from")
    trained = adapter.facts.get("objective", {})
    if trained and trained["prediction_type"] != objective["prediction_type"]:
        problem = (
            f"it was trained for {objective_text(trained)}, and this run is for {objective_text(objective)}"
        )
        raise ConfigError(f"--start_from {path}: {problem}", option="start_from")


def other_schedule(trained: dict, objective: dict) -> str:
    """A sentence where an adapter for the same prediction was trained on another noise schedule."""
    known = trained.get("rescale_betas_zero_snr")
    if known is None or known == objective.get("rescale_betas_zero_snr", False):
        return ""
    return f"it was trained for {objective_text(trained)}, and this run is for {objective_text(objective)}"


def set_factors(
    layer: AdaptedLayer, delta: Delta, own: Factors | None, scale: float, where: str
) -> tuple[float, float]:
    """(|error|, |delta|) of the layer's adapter as it is now; own: factors of our kinds, of this scale."""
    adapter = layer.adapter
    parameters = dict(adapter.named_parameters())
    matrices = as_matrices(own) if own else {}
    same = matrices.keys() == parameters.keys()
    if same and all(matrices[name].shape == p.shape for name, p in parameters.items()):
        for name, p in parameters.items():
            p.copy_(matrices[name] * (scale / adapter.scale) if name.endswith("_B") else matrices[name])
        return 0.0, float(adapter.delta().norm())
    if not isinstance(adapter, LoRA | GraLoRA):
        problem = "an adapter of this kind starts only from one of the same kind and sizes"
        raise ConfigError(f"{where}: {problem}: use --adapter lora or gralora", option="start_from")
    try:
        delta.check_fits(tuple(layer.weight.shape))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", option="start_from") from None
    pair = delta.pair()
    matrix = None if pair else delta.applied(layer.weight.float()).flatten(1)
    if adapter.hybrid_rank:
        general = best(pair, matrix, adapter.hybrid_rank, 1)
        put(adapter, general, "lora", adapter.scale)
        down, up = parameters["lora_A"].double(), parameters["lora_B"].double() * adapter.scale
        if pair:
            pair = joined([(pair[0].double(), pair[1].double()), (down, -up)])
        else:
            matrix = matrix - (up @ down).to(matrix.dtype)
    kind = "gralora" if isinstance(adapter, GraLoRA) else "lora"
    rank = adapter.rank - adapter.hybrid_rank
    put(adapter, best(pair, matrix, rank, adapter.k), kind, adapter.scale)
    wanted = delta.applied(layer.weight.float()).flatten(1)
    return float((adapter.delta() - wanted).norm()), float(wanted.norm())


def best(pair, matrix: torch.Tensor | None, rank: int, k: int) -> Best:
    return best_of_pair(*pair, rank, k) if pair else best_of_matrix(matrix, rank, k)


def put(adapter: LayerAdapter, found: Best, kind: str, scale: float) -> None:
    """The factors of one part: A's rows as long as Kaiming's, and B with the adapter's scale taken out.

    Ranks that the change does not need keep their random A, with a B of zeros, so that they can be trained.
    """
    is_gralora = kind == "gralora"
    old_A = adapter.gralora_A if is_gralora else adapter.lora_A
    random_A = by_block(old_A) if is_gralora else old_A[None, None]
    found_A, found_B = found.A.to(random_A.dtype), found.B.to(random_A.dtype)
    g = found_A.shape[2]
    lengths = found_A.norm(dim=-1)  # [k, k, g]: square roots of the singular values
    used = lengths > math.sqrt(ZERO) * lengths.amax().clamp_min(torch.finfo(lengths.dtype).tiny)
    unit = found_A / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)[..., None]
    A = random_A.clone()
    A[:, :, :g] = torch.where(used[..., None], unit / math.sqrt(3), random_A[:, :, :g])
    B = torch.zeros(*found_B.shape[:3], random_A.shape[2], dtype=A.dtype, device=A.device)
    B[..., :g] = torch.where(
        used[..., None, :], found_B * (lengths * math.sqrt(3) / scale)[..., None, :], 0.0
    )
    if is_gralora:
        new_A, new_B = as_gralora(A, B)
        adapter.gralora_A.copy_(new_A)
        adapter.gralora_B.copy_(new_B)
    else:
        adapter.lora_A.copy_(A[0, 0])
        adapter.lora_B.copy_(B[0, 0])
