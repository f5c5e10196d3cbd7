"""Which adapters a model has, and the layers that they are in.

{name: AdapterHandle} is the model's attribute `adapters`.
That attribute is the only one that this package sets on a model of a library, and register() the only place
that sets it. A copy of a model (copy.deepcopy) has its own; remove() deletes it with the last adapter.
"""

from collections import Counter
from dataclasses import dataclass
from re import escape

from torch import nn
from torch.utils.hooks import RemovableHandle

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.config import AdapterConfig


@dataclass
class AdapterHandle:
    """One adapter of a model.

    layers: {module path: the adapter of that layer}; hook: T-LoRA's, which sets the active ranks.
    fingerprint: the base's, taken before its weights were quantized or sharded; None: the weights can be
    read.
    """

    config: AdapterConfig
    layers: dict[str, LayerAdapter]
    hook: RemovableHandle | None = None
    fingerprint: dict | None = None


class Handles(dict):
    """{name: AdapterHandle}"""


def handles(model: nn.Module) -> Handles:
    """The adapters of a model by name; empty where there are none."""
    found = vars(model).get("adapters")
    return found if isinstance(found, Handles) else Handles()


def register(model: nn.Module, name: str, handle: AdapterHandle) -> None:
    check_free(model)
    model.adapters = handles(model)
    model.adapters[name] = handle


def forget(model: nn.Module, name: str | None) -> None:
    """Delete the handle of this name, or all, together with T-LoRA's hooks."""
    registered = handles(model)
    for own_name in list(registered):
        if name in (None, own_name):
            handle = registered.pop(own_name)
            if handle.hook is not None:
                handle.hook.remove()
            if not registered:
                del model.adapters


def check_free(model: nn.Module) -> None:
    """Raises ValueError where the model has an attribute `adapters` of its own."""
    if not isinstance(getattr(model, "adapters", Handles()), Handles):
        raise ValueError(
            f"{type(model).__name__} has an attribute `adapters` of its own: it cannot be adapted"
        )


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """{module path: adapted layer}, in the model's order."""
    return {path: m for path, m in model.named_modules() if isinstance(m, AdaptedLayer)}


def all_layers(models: dict[str, nn.Module]) -> dict[str, AdaptedLayer]:
    """{component.path: adapted layer} of {component: model}."""
    found = {}
    for name, model in models.items():
        found |= {f"{name}.{path}": layer for path, layer in adapted_layers(model).items()}
    return found


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{path.leaf: parameter} of the one adapter of a model.  Raises ValueError where a layer has several."""
    found = {}
    for path, layer in adapted_layers(model).items():
        found |= {f"{path}.{leaf}": p for leaf, p in layer.adapter.named_parameters()}
    return found


def models_of(model) -> list[nn.Module]:
    """A model as it is, or the models of a pipeline."""
    if isinstance(model, nn.Module):
        return [model]
    return [m for m in model.components.values() if isinstance(m, nn.Module)]


def common_and_others(values: list[tuple[str, int]]) -> tuple[int, dict[str, int]]:
    """The commonest value of (path, value), and one regular expression for all paths of each other value."""
    (common, _), *others = Counter(value for _, value in values).most_common()
    patterns = {}
    for value, _ in others:
        paths = "|".join(escape(path) for path, v in values if v == value)
        patterns[f"^({paths})$"] = value
    return common, patterns
