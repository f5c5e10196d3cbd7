"""Adapters of every kind, their deltas, and files of SDXL's own size."""

import torch
from helpers import MODELS

from gralora_diffusion import AdapterConfig
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.base_files import structure, to_checkpoint
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.formats.lazy_tensors import LazyTensor
from gralora_diffusion.sdxl.load import shapes

CONFIGS = {
    "lora": AdapterConfig(method="lora", rank=8, alpha=16.0),
    "gralora": AdapterConfig(rank=16, k=2, alpha=8.0),
    "hybrid": AdapterConfig(rank=16, k=4, hybrid_rank=8, rslora=True),
    "mixed": AdapterConfig(rank=16, k=2, rank_pattern={"attn2": 32}, k_pattern={"attn2": 4, "to_q": 1}),
}

CONVOLUTIONS = {
    "locon": AdapterConfig(method="lora", rank=8, alpha=16.0, targets="attention+ff+conv"),
    "conv": AdapterConfig(rank=16, k=4, hybrid_rank=8, alpha=8.0, targets="attention+ff+conv"),
    "conv mixed": AdapterConfig(
        rank=8, targets=r"conv[12]$|to_q|(q|out)_proj", k_pattern={"conv": 4}, rank_pattern={"conv2": 16}
    ),
}


def weight_ids(model) -> dict[str, int]:
    """{name: identity of the parameter}"""
    return {name: id(p) for name, p in model.named_parameters()}


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    pairs = {
        f"{component}.{path}": adapter.low_rank(component, path) for component, path, _ in adapter.items()
    }
    return {layer: up.double() @ down.double() for layer, (down, up) in pairs.items()}


def close(got: dict, wanted: dict, tolerance: float):
    """The same layers, each delta within this relative Frobenius error; zero deltas exactly."""
    assert set(got) == set(wanted)
    wrong = {
        layer: float((got[layer] - delta).norm() / delta.norm().clamp_min(1e-30))
        for layer, delta in wanted.items()
    }
    assert max(wrong.values(), default=0.0) <= tolerance, max(wrong.items(), key=lambda item: item[1])


def changes(pipeline, base) -> dict[str, torch.Tensor]:
    """{component.path: change} of the weights that differ from the base's; all other tensors are equal."""
    found = {}
    for component in MODELS:
        before = getattr(base, component).state_dict()
        after = getattr(pipeline, component).state_dict()
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            if not torch.equal(after[name], tensor):
                found[f"{component}.{canonical(component, name.removesuffix('.weight'))}"] = (
                    after[name].double() - tensor.double()
                )
    return found


def sdxl_sized(config: AdapterConfig, file) -> Adapter:
    """Random factors for all attention layers of SDXL's three models, from the public config's shapes."""
    from gralora_diffusion import inject

    file.write_bytes(b"")
    torch.manual_seed(0)
    layers = {}
    for component, model in shapes(file).items():
        for path, layer in inject(model, config).items():
            factors = {
                leaf: torch.empty(p.shape).normal_(std=0.02) for leaf, p in layer.adapter.named_parameters()
            }
            layers.setdefault(component, {})[canonical(component, path)] = factors
    return Adapter(config, layers, dict(layers_per_block=2))


def merged_sdxl(file):
    """SDXL's models, and {name: tensor} of the checkpoint that merging makes of them, all without weights."""
    file.write_bytes(b"")
    models, names, layout = structure(file)
    tensors = {}
    for component, found in names.items():
        tensors[component] = {name: LazyTensor(shape, torch.float16, None) for name, shape in found.items()}
    merged = to_checkpoint(tensors, layout)
    return models, {
        name: torch.empty(tensor.shape, device="meta", dtype=tensor.dtype) for name, tensor in merged.items()
    }
