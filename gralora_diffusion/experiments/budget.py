"""Which size of a method has as many trainable parameters as a LoRA of some rank."""

from gralora_diffusion.experiments.methods import METHODS
from gralora_diffusion.experiments.sizes import Shapes
from gralora_diffusion.options import ConfigError

TOLERANCE = 0.1  # part of a budget that may be left over
EXCESS = 0.02  # part of it that may be added where a method's sizes are so far apart: OFT's blocks double


def fit(method: str, budget: int, shapes: Shapes, k: int | None = None) -> tuple[int, int]:
    """(size, trainable parameters): the most that the budget allows.

    Where TOLERANCE of it, or more, would be left over, up to EXCESS above it is taken.  Raises ConfigError
    where no size comes so near.
    """
    spec = METHODS[method]
    found = [(spec.count(size, shapes), size) for size in spec.sizes_for(shapes, k)]
    if not found:
        raise ConfigError(f"{method} has no size that fits these layers" + (f" with k {k}" if k else ""))
    if spec.any_budget:
        parameters, size = found[0]
        return size, parameters
    within = [pair for pair in found if pair[0] <= budget]
    if within and max(within)[0] >= (1 - TOLERANCE) * budget:
        parameters, size = max(within)
        return size, parameters
    above = [pair for pair in found if budget < pair[0] <= (1 + EXCESS) * budget]
    if not above:
        counts = [parameters for parameters, _ in found]
        nearest = min(counts, key=lambda parameters: abs(parameters - budget))
        raise ConfigError(
            f"{method} cannot have {budget:,} parameters here: its sizes give {min(counts):,} to "
            f"{max(counts):,}; the nearest is {nearest:,}"
        )
    parameters, size = min(above)
    return size, parameters
