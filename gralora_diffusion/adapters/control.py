"""Operations on the adapters in a model: strength, on and off, merge, remove."""

import contextlib
from collections.abc import Iterator

from torch import nn

from gralora_diffusion.adapters.inject import replace
from gralora_diffusion.adapters.registry import adapted_layers, forget, models_of


def set_strength(model, strength: float, name: str | None = None) -> None:
    """Set the strength: 0 is the base, 1 the adapter as trained.

    Of all adapters or of the one of this name, in a model or a pipeline; merged layers are merged again.
    Raises ValueError for a name that no adapter has.
    """
    change(model, name, strength=float(strength))


def enable(model, on: bool = True, name: str | None = None) -> None:
    """Switch all adapters, or the one of this name, on or off.

    While all are off, the layers compute as the base does.  Raises ValueError for a name that no adapter has.
    """
    change(model, name, enabled=on)


@contextlib.contextmanager
def disabled(models: list[nn.Module]) -> Iterator[None]:
    """Within it these models compute as the base does; afterward each adapter is on or off as before.

    Nothing is copied. The models must not be merged.
    """
    adapters = []
    for model in models:
        for layer in layers_of(model):
            adapters += layer.adapters.values()
    before = [adapter.enabled for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in zip(adapters, before, strict=True):
            adapter.enabled = enabled


def change(model, name: str | None, **settings) -> None:
    """Set attributes of all adapters, or of the one of this name."""
    check_name(model, name)
    for layer in layers_of(model):
        merged = layer.merged
        layer.unmerge()
        for own_name in layer.names:
            if name in (None, own_name):
                for setting, value in settings.items():
                    setattr(layer.get(own_name), setting, value)
        if merged:
            layer.merge()


def layers_of(model) -> list:
    """The adapted layers of a model or a pipeline."""
    found = []
    for part in models_of(model):
        found += adapted_layers(part).values()
    return found


def check_name(model, name: str | None) -> None:
    """Raises ValueError for a name that no adapter has."""
    known = set()
    for layer in layers_of(model):
        known |= set(layer.names)
    if name is not None and name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise ValueError(f"there is no adapter named {name!r}; known: {there}")


def merge(model: nn.Module) -> None:
    """Add the enabled adapters to the weights of their layers: see AdaptedLayer.merge()."""
    for layer in adapted_layers(model).values():
        layer.merge()


def bake_in(model: nn.Module) -> None:
    """Add the enabled adapters to the weights for good: the layers become plain ones.

    Layer by layer, so that no second copy of all weights is kept.
    """
    for path, layer in adapted_layers(model).items():
        layer.merge()
        replace(model, path, layer.to_plain())
        layer.unmerged_weight = layer.unmerged_bias = None
    forget(model, None)


def unmerge(model: nn.Module) -> None:
    """Restore the weights from before merge()."""
    for layer in adapted_layers(model).values():
        layer.unmerge()


def remove(model, name: str | None = None) -> None:
    """Take out the adapter of this name, or all of them, in a model or a pipeline.

    A layer without adapters becomes the plain layer again.  Where all are taken out at once, merged weights
    stay merged. Raises ValueError for a name that no adapter has.
    """
    check_name(model, name)
    for part in models_of(model):
        for path, layer in adapted_layers(part).items():
            if name in layer.names:
                layer.remove(name)
            if name is None or not layer.adapters:
                replace(part, path, layer.to_plain())
        forget(part, name)
