"""Other ways to adapt the same layers, to compare with: PEFT's, MoRA and RaSA by their formulas, our own, and full fine-tuning.

All are put into a model by adapt() and have one `size`, which budget.py finds for a number of trainable parameters.  Methods of GRADIENTS
start as the base with equal ranks; allocation.apply() then gives them what the gradients say, and ours() takes the model as it is.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion.adapters.allocation_file import inject_sized
from gralora_diffusion.adapters.control import merge, remove
from gralora_diffusion.adapters.gora import GAMMA
from gralora_diffusion.adapters.inject import TARGETS, compiled, inject, replace
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.experiments.budget import GRIDS, LOKR_FACTOR, mora_side, pooled
from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError, one_of

ALL = dict(
    gora_tolerance=0.0
)  # as many batches for each: where the controls reorder importances, ranks settle later
GRADIENTS = {  # methods whose ranks or start come from a gradient pass: its options, as in TrainConfig
    "gora": ALL
    | dict(allocate="gora", gora_init="random", gora_gamma=GAMMA),  # as published, but for the exact budget
    "gora-ours": ALL | dict(allocate="gora", gora_init="svd"),
    **{
        f"gralora-{rule}": ALL | dict(allocate=rule, gora_init="svd")
        for rule in ("gora", "energy", "ralora", "random", "inverse")
    },
    "gralora-ranks": ALL | dict(allocate="gora", gora_init="zero"),  # the allocation alone
    "gralora-start": ALL | dict(allocate="uniform", gora_init="svd"),  # the start alone
}
OURS = ("gralora", "hybrid", "our-lora", "t-lora", "t-gralora", *GRADIENTS)
LORA = {  # LoraConfig's options; all have alpha = rank
    "lora": dict(), "rslora": dict(use_rslora=True), "lora+": dict(), "dora": dict(use_dora=True),
    "pissa": dict(init_lora_weights="pissa"), "olora": dict(init_lora_weights="olora"), "eva": dict(init_lora_weights="eva"),
}  # fmt: skip
PEFT = (*LORA, "vera", "fourierft", "lokr", "loha", "oft")
METHODS = (*OURS, *PEFT, "mora", "rasa", "full")
LORAPLUS_RATIO = 16  # LoRA+ (arXiv 2402.12354): lr(B) = 16 lr(A)


@dataclass(frozen=True)
class Spec:
    """A method at one size: the rank; VeRA's shared dimension, FourierFT's frequencies per layer, OFT's block size; nothing for full."""

    method: str
    size: int
    k: int | None = None  # GraLoRA's blocks per side
    seed: int = 0
    targets: str = "attention"
    sizes: dict[str, list[int]] | None = None  # [rank, k] of each layer, where gradients chose them

    def __post_init__(self):
        one_of("method", self.method, METHODS)
        if self.k is not None and self.method not in GRIDS:
            raise ConfigError(f"k belongs to {', '.join(GRIDS)}, not to {self.method}")


@dataclass(frozen=True)
class Adapted:
    """A model with a method in it: the parameters that train, by name; merge() bakes them in and leaves plain layers."""

    spec: Spec
    parameters: dict[str, nn.Parameter]
    merge: Callable[[], None]

    def groups(self, lr: float, decay: float) -> list[dict]:
        """Parameter groups for an optimizer; two for LoRA+."""
        fast = [p for name, p in self.parameters.items() if self.spec.method == "lora+" and "lora_B" in name]
        rest = [p for p in self.parameters.values() if not any(p is f for f in fast)]
        rates = [(rest, lr), (fast, lr * LORAPLUS_RATIO)] if fast else [(rest, lr)]
        return [dict(params=params, lr=rate, weight_decay=decay) for params, rate in rates]

    def save(self, path: Path) -> None:
        """One .safetensors file of what trains, with the spec in its header; complete or absent."""
        from safetensors.torch import save_file

        with complete_or_absent(path) as part:
            tensors = {name: p.detach().cpu().contiguous() for name, p in self.parameters.items()}
            save_file(tensors, part, {"comparator": json.dumps(dataclasses.asdict(self.spec))})

    @classmethod
    def load(cls, model: nn.Module, path: Path) -> "Adapted":
        """The file's method, put into a plain model.  Raises ConfigError when it does not fit."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                spec = Spec(**json.loads(file.metadata()["comparator"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} is not a comparator's file, or is damaged: {error}") from None
        self = adapt(model, spec)
        if {n: p.shape for n, p in self.parameters.items()} != {n: t.shape for n, t in tensors.items()}:
            raise ConfigError(f"{path} was made for another model than this one")
        for name, p in self.parameters.items():
            p.data.copy_(tensors[name])
        return self


def chosen(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """{path: layer} of the plain linear layers that targets names; raises ConfigError when there are none."""
    pattern = compiled(TARGETS.get(targets, targets), "targets")
    layers = {path: m for path, m in model.named_modules() if type(m) is nn.Linear and pattern.search(path)}
    if not layers:
        raise ConfigError(f"targets {targets!r} matches no linear layer")
    return layers


def adapt(model: nn.Module, spec: Spec, batches: Callable[[int], object] | None = None) -> Adapted:
    """Freeze the model and put the method into it, as a function of the spec alone; at the start it computes as before.

    batches(i) runs the model on batch i: EVA takes its start from 8 of them.  Raises ConfigError where the size does not fit.
    """
    layers = chosen(model, spec.targets)
    model.requires_grad_(False)
    torch.manual_seed(spec.seed)  # PEFT draws from the global generator
    if spec.method in PEFT:
        return adapt_with_peft(model, spec, list(layers), batches)
    if spec.method in OURS:
        try:
            if spec.sizes:
                inject_sized(
                    {"unet": model},
                    config_of(spec),
                    {f"unet.{path}": tuple(size) for path, size in spec.sizes.items()},
                    spec.seed,
                )
            else:
                inject(model, config_of(spec))
        except ValueError as error:
            raise ConfigError(f"{spec.method} of rank {spec.size}: {error}") from None
        return ours(model, spec)
    if spec.method == "full":
        ends = [train_whole(layer) for layer in layers.values()]
        return Adapted(
            spec,
            {f"{path}.weight": layer.weight for path, layer in layers.items()},
            lambda: [end() for end in ends] and None,
        )
    pools = {}
    for path, linear in layers.items():
        shape = tuple(linear.weight.shape)
        number = sum(tuple(other.weight.shape) == shape for other in layers.values())
        replace(
            model,
            path,
            MoRALinear(linear, spec.size)
            if spec.method == "mora"
            else RaSALinear(linear, spec.size, pools, number),
        )

    def bake_in() -> None:
        for path in layers:
            replace(model, path, model.get_submodule(path).merged())

    return Adapted(spec, {name: p for name, p in model.named_parameters() if p.requires_grad}, bake_in)


def train_whole(linear: nn.Linear) -> Callable[[], None]:
    """Let a layer's weight train, in fp32 whatever the model's precision; returns what ends that and rounds the weight back."""
    dtype = linear.weight.dtype
    linear.float().weight.requires_grad_(True)
    autocast = torch.is_autocast_enabled
    hooks = [
        linear.register_forward_pre_hook(lambda _, x: None if autocast(x[0].device.type) else x[0].float()),
        linear.register_forward_hook(lambda _, x, out: out if autocast(x[0].device.type) else out.to(dtype)),
    ]

    def end() -> None:
        for hook in hooks:
            hook.remove()
        linear.requires_grad_(False).to(dtype)

    return end


def config_of(spec: Spec) -> AdapterConfig:
    """What train_sdxl.py would be told, for one of OURS."""
    kind = "gralora" if "gralora" in spec.method or spec.method == "hybrid" else "lora"
    gora = dict(rslora=True, alpha=16.0) if spec.method.startswith("gora") else {}
    hybrid = spec.size // 2 if spec.method == "hybrid" else 0
    return AdapterConfig(
        kind,
        spec.size,
        spec.k,
        hybrid_rank=hybrid,
        targets=spec.targets,
        tlora=spec.method.startswith("t-"),
        **gora,
    )


def ours(model: nn.Module, spec: Spec) -> Adapted:
    """A model that has our adapters in it, with the sizes that they have."""
    if spec.method in GRADIENTS:
        spec = dataclasses.replace(
            spec,
            sizes={
                path: [layer.adapter.rank, layer.adapter.k] for path, layer in adapted_layers(model).items()
            },
        )
    return Adapted(spec, adapter_parameters(model), lambda: (merge(model), remove(model)))


def adapt_with_peft(model: nn.Module, spec: Spec, paths: list[str], batches) -> Adapted:
    import peft

    r = spec.size
    if spec.method in LORA:
        eva = (
            dict(eva_config=peft.EvaConfig(rho=1.0)) if spec.method == "eva" else {}
        )  # rho 1: the same rank everywhere
        config = peft.LoraConfig(r=r, lora_alpha=r, target_modules=paths, **LORA[spec.method], **eva)
    else:
        config = {
            "vera": lambda: peft.VeraConfig(r=r, projection_prng_key=spec.seed, target_modules=paths),
            "fourierft": lambda: peft.FourierFTConfig(
                n_frequency=r, init_weights=True, random_loc_seed=spec.seed, target_modules=paths
            ),
            "lokr": lambda: peft.LoKrConfig(r=r, alpha=r, decompose_factor=LOKR_FACTOR, target_modules=paths),
            "loha": lambda: peft.LoHaConfig(r=r, alpha=r, target_modules=paths),
            "oft": lambda: peft.OFTConfig(r=0, oft_block_size=r, target_modules=paths),
        }[spec.method]()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that EVA could do with less memory
        wrapped = peft.get_peft_model(model, config)
    if spec.method == "eva" and batches is not None:
        peft.initialize_lora_eva_weights(
            wrapped, list(torch.arange(8)), forward_fn=lambda _, index: batches(int(index)), prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=lambda inputs, *_: eva_inputs(inputs, r), show_progress_bar=False,
        )  # fmt: skip
    return Adapted(
        spec,
        {name: p for name, p in model.named_parameters() if p.requires_grad},
        lambda: wrapped.merge_and_unload() and None,
    )


def eva_inputs(inputs, rank: int) -> torch.Tensor:
    """A layer's inputs as rows.  Raises ConfigError for fewer than `rank`: PEFT would pass over them, and wait for more for ever."""
    rows = (inputs[0] if isinstance(inputs, tuple) else inputs).flatten(0, -2)
    if len(rows) < rank:
        raise ConfigError(
            f"eva of rank {rank} needs {rank} inputs of each layer in a batch, and one layer has {len(rows)}: take larger batches"
        )
    return rows


class AddedLinear(nn.Module):
    """A frozen linear layer and added(x), which is linear in x and starts as zero."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.base, self.in_features, self.out_features = linear, linear.in_features, linear.out_features
        self.new = dict(device=linear.weight.device, dtype=torch.float32)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        return out + self.added(x if torch.is_autocast_enabled(x.device.type) else x.float()).to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with the delta, added(I), in its weight."""
        delta = self.added(torch.eye(self.in_features, **self.new)).T
        self.base.weight.data = (self.base.weight + delta).to(self.base.weight.dtype)
        return self.base


class MoRALinear(AddedLinear):
    """MoRA (arXiv 2405.12130, eq. 6 and section 4.2, rotation): one square matrix [s, s] with s = floor(sqrt((M + N) r)), made even.

    The input is cut into pieces of s, the last filled up from the start; piece i is turned by the rotary embedding of position i, so that
    one matrix serves all pieces; the output is cut, or repeated, to M.
    """

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__(linear)
        self.side = mora_side(rank, linear.out_features, linear.in_features)
        self.square = nn.Parameter(torch.zeros(self.side, self.side, **self.new))
        self.pieces = math.ceil(linear.in_features / self.side)
        frequencies = 10000.0 ** (-torch.arange(0, self.side, 2, **self.new) / self.side)
        angles = torch.outer(torch.arange(self.pieces, **self.new), frequencies).repeat(1, 2)  # [pieces, s]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def added(self, x: torch.Tensor) -> torch.Tensor:
        rounds = math.ceil(self.pieces * self.side / self.in_features)
        x = torch.cat([x] * rounds, -1)[..., : self.pieces * self.side].unflatten(
            -1, (self.pieces, self.side)
        )
        first, second = x.chunk(2, -1)
        turned = x * self.cos + torch.cat([-second, first], -1) * self.sin
        out = F.linear(turned, self.square).flatten(-2)
        return torch.cat([out] * math.ceil(self.out_features / out.shape[-1]), -1)[..., : self.out_features]


class RaSALinear(AddedLinear):
    """RaSA (ICLR 2025): of r ranks, p = max(1, r/8) go to a pool shared by the L layers of one shape:

    delta = [B | B_pool] diag(d) [A ; A_pool], A [r - p, N], A_pool [p L, N]; A Kaiming-uniform, B zero, d one, scale 1.
    """

    def __init__(self, linear: nn.Linear, rank: int, pools: dict, layers: int):
        super().__init__(linear)
        m, n = linear.weight.shape
        p = pooled(rank)
        if (m, n) not in pools:
            pools[m, n] = self.kaiming(p * layers), nn.Parameter(torch.zeros(m, p * layers, **self.new))
        self.pool_A, self.pool_B = pools[m, n]
        self.rasa_A, self.rasa_B = self.kaiming(rank - p), nn.Parameter(torch.zeros(m, rank - p, **self.new))
        self.rasa_d = nn.Parameter(torch.ones(rank - p + p * layers, **self.new))

    def kaiming(self, rank: int) -> nn.Parameter:
        return nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(rank, self.in_features, **self.new), a=math.sqrt(5))
        )

    def added(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.cat([F.linear(x, self.rasa_A), F.linear(x, self.pool_A)], -1) * self.rasa_d
        own, shared = h.split([self.rasa_A.shape[0], self.pool_A.shape[0]], -1)
        return F.linear(own, self.rasa_B) + F.linear(shared, self.pool_B)


def shapes_of(model: nn.Module, targets: str) -> list[tuple[int, int]]:
    """(M, N) of each layer that targets names, in a plain or adapted model of ours."""
    if layers := adapted_layers(model):
        return [tuple(layer.weight.shape) for layer in layers.values()]
    return [tuple(linear.weight.shape) for linear in chosen(model, targets).values()]


def family(method: str) -> str:
    """The method whose learning rate this one takes: the controls and halves of GraLoRA with gradients take that of the whole."""
    return "gralora-gora" if method.startswith("gralora-") else method
