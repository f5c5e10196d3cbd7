"""What tells one base from another."""

import hashlib
import json

import torch

from gralora_diffusion.adapters.registry import adapted_layers, handles


def fingerprint(unet) -> dict:
    """A hash of the UNet's names and shapes, and one weight of each of 64 tensors.

    Adapters, merged or not, change nothing.  Compare with same_base(): the weights differ a little by dtype.
    """
    for handle in handles(unet).values():
        if handle.fingerprint is not None:  # the weights were quantized or sharded since
            return handle.fingerprint
    tensors = base_tensors(unet)
    shapes = [(name, list(t.shape)) for name, t in tensors.items()]
    matrices = [t for t in tensors.values() if t.ndim > 1]
    picked = matrices[:: max(1, len(matrices) // 64)][:64]
    return dict(
        names=hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        weights=[round(float(t.flatten()[0]), 6) for t in picked],
    )


def base_tensors(model) -> dict[str, torch.Tensor]:
    """The state dict without adapters, and with the weights from before merge()."""
    layers = adapted_layers(model)
    found = {}
    for name, tensor in model.state_dict().items():
        path, inside, _ = name.partition(".adapters.")
        if not inside or path not in layers:
            found[name] = tensor
    for path, layer in layers.items():
        if layer.merged:
            found[f"{path}.weight"] = layer.unmerged_weight
    return found


def same_base(first: dict, second: dict) -> bool:
    """Whether two fingerprints are of one base, in whichever dtypes it was loaded."""
    try:
        pairs = list(zip(first["weights"], second["weights"], strict=True))
        close = all(abs(a - b) <= 0.01 * max(abs(a), abs(b)) + 1e-5 for a, b in pairs)
        return first["names"] == second["names"] and close
    except (KeyError, TypeError, ValueError):  # not written by fingerprint(), or of another kind of model
        return False
